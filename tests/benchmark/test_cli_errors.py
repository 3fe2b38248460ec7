"""The command given what it cannot use: one line that says what is allowed, an exit code, and no traceback."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark import models

SMOKE = ["--suite", "smoke", "--device", "cpu"]


def foolbench(*arguments, cwd: Path) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-m", "benchmark.cli", *map(str, arguments)], capture_output=True, cwd=cwd)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def in_process(monkeypatch, capfd, *arguments) -> tuple[int, str, str]:
    from benchmark import cli

    monkeypatch.setattr(sys, "argv", ["foolbench", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code, *capfd.readouterr()


def shown(monkeypatch, capfd, *arguments) -> str:
    """What the command prints where all goes well."""
    from benchmark import cli

    monkeypatch.setattr(sys, "argv", ["foolbench", *map(str, arguments)])
    cli.main()
    out, err = capfd.readouterr()
    assert err == ""
    return out


def suite_file(folder: Path, **changes: str) -> Path:
    from benchmark.suite import HERE

    text = (HERE / "smoke.toml").read_text()
    for old, new in changes.items():
        assert f"{old} = " in text
        text = text.replace(f"{old} = ", f"{old} = {new} # ", 1)
    (folder / "mine.toml").write_text(text)
    return folder / "mine.toml"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["plot", "tranfer"], "unknown figure 'tranfer': did you mean 'transfer'? allowed: accuracy, aopc, front, "),
        (
            ["plot", "transfer", "--no-images", "--seed", "1"],
            "figure 'transfer' takes --suite, --out and --file alone (got --seed, --images)",
        ),
        (["list", "interpreter"], "unknown kind 'interpreter': did you mean 'interpreters'? allowed: datasets, "),
        (["run", "--suite", "defualt"], "unknown suite 'defualt': did you mean 'default'? allowed: "),
        (["run", "--suite", "absent.toml"], "suite file not found: absent.toml"),
        (["run", "--sute", "smoke"], "No such option: --sute"),
        (["run", "--jobs", "0"], "Invalid value for '--jobs': "),
        (["run", "--device", "tpu"], "'tpu' is not one of 'auto', 'cpu', 'cuda'."),
        (["run", "--split", "train"], "'train' is not one of 'test', 'dev'."),
        (["leaderboard", "--out", "absent"], "no results: absent/results is not a folder (foolbench run writes it)"),
        (["leaderboard", "--suite", "smoke", "--check"], "no results: leaderboards/smoke/results is not a folder"),
        (
            ["plot", "transfer", "--out", "absent"],
            "no leaderboard absent/transfer.csv: foolbench leaderboard writes it",
        ),
        (["plot", "heatmaps", *SMOKE], "holds no heatmaps of this manipulation: foolbench run makes them"),
        (
            ["plot", "heatmaps", *SMOKE, "--model", "vgg19"],
            "unknown model of suite 'smoke' 'vgg19': allowed: compact_vgg",
        ),
        (["explain", "absent.png", "--model", "vgg19", "--interpreter", "lrp"], "image absent.png cannot be read: "),
        (["explain", "absent.png", "--model", "vgg19"], "Missing option '--interpreter'."),
        ([], ""),  # the help
        (["plot"], ""),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, monkeypatch, capfd, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = in_process(monkeypatch, capfd, *arguments)
    assert code == 2
    if message:
        assert err.startswith("foolbench: ")
        assert message in err
        assert err.count("\n") == 1
        assert out == ""
    else:
        assert err == ""
        assert "Usage: " in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "0"}, "dataset.train: Input should be greater than or equal to 1 (got 0)"),
        ({"recipes": "[{ lambda = -1 }]"}, "recipes.0.lambda: Input should be greater than or equal to 0 (got -1)"),
        ({"foolings": '["locaton"]'}, "unknown fooling 'locaton': did you mean 'location'?"),
        ({"evaluated": '["gradcam"]'}, "unknown interpreter 'gradcam': did you mean 'grad_cam'?"),
        ({"name": "smoke"}, "mine.toml is not TOML: "),
    ],
)
def test_an_impossible_suite_stops_before_the_store_is_made(tmp_path, monkeypatch, capfd, changes, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = in_process(monkeypatch, capfd, "run", "--suite", suite_file(tmp_path, **changes))
    assert (code, out) == (2, "")
    assert err.startswith("foolbench: ")
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize(
    ("data", "message"), [([], "needs --data DIR"), (["--data", "absent"], "dataset 'image_folder': no folder absent")]
)
def test_a_data_folder_that_is_missing_is_named(tmp_path, monkeypatch, capfd, data, message):
    monkeypatch.chdir(tmp_path)
    path = suite_file(tmp_path)
    path.write_text(path.read_text().replace('name = "shapes"', 'name = "image_folder"'))
    code, _, err = in_process(monkeypatch, capfd, "run", "--suite", path, *data)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", [["run"], ["plot", "heatmaps"], ["dissect"], ["verify", "a/b/c/d/0"]])
def test_a_data_folder_that_nothing_reads_is_an_error(tmp_path, monkeypatch, capfd, command):
    monkeypatch.chdir(tmp_path)
    code, out, err = in_process(monkeypatch, capfd, *command, *SMOKE, "--data", "images")
    line = "--data images: dataset 'shapes' of suite 'smoke' reads nothing from disk; those that do: "
    assert (code, out, err) == (2, "", f"foolbench: {line}cifar10, cifar10_imagenet_norm, image_folder, imagenet\n")
    assert list(tmp_path.iterdir()) == []


def class_folders(folder: Path, *names: str) -> None:
    random = np.random.default_rng(0)
    for part, name in product(("train", "val"), names):
        (folder / part / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / part / name / f"{i}.png")


def of_photographs(folder: Path, model: str) -> Path:
    path = suite_file(folder)
    text = path.read_text().replace('"shapes"', '"imagenet"').replace("models.compact_vgg = { epochs = 1 }", model)
    path.write_text(text.replace('["location", "active"]', '["location"]'))
    return path


@pytest.mark.parametrize(
    ("model", "index", "message"),
    [
        (
            'models.resnet20 = { weights = "ten.pth" }',
            None,
            "checkpoint {data}/ten.pth does not fit Sequential: size mismatch for linear.bias: "
            "the checkpoint's is (10,), the model's is (2,) and 1 more",
        ),
        (
            'models.squeezenet1_1 = { weights = "IMAGENET1K_V1" }',
            None,
            "squeezenet1_1 with weights 'IMAGENET1K_V1' has 1000 classes (got num_classes=2)",
        ),
        (
            'models.squeezenet1_1 = { weights = "IMAGENET1K_V1" }',
            {"0": ["n01", "tench"]},
            "dataset 'imagenet': class folder 'n02' of {data} is not in imagenet_class_index.json",
        ),
    ],
    ids=["weights of ten classes", "weights of a thousand", "a class that the network does not know"],
)
def test_classes_that_do_not_fit_are_one_line(tmp_path, monkeypatch, capfd, model, index, message):
    monkeypatch.chdir(tmp_path)
    class_folders(data := tmp_path / "data", "n01", "n02")
    torch.save(models.create("resnet20", num_classes=10).state_dict(), data / "ten.pth")
    if index:
        (data / "imagenet_class_index.json").write_text(json.dumps(index))
    path = of_photographs(tmp_path, model)
    code, out, err = in_process(monkeypatch, capfd, "run", "--suite", path, "--data", data, "--device", "cpu")
    assert (code, out, err) == (2, "", f"foolbench: {message.format(data=data)}\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_that_is_not_there_is_named(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    code, _, err = in_process(monkeypatch, capfd, "run", "--suite", "smoke", "--device", "cuda")
    assert (code, err) == (
        *(2, "foolbench: --device cuda: this machine has no CUDA device that torch can use; allowed: auto, cpu\n"),
    )


def test_a_store_that_is_a_file_is_named(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("store").touch()
    code, _, err = in_process(monkeypatch, capfd, "run", *SMOKE, "--store", "store")
    assert (code, err) == (2, "foolbench: the store store cannot be made: File exists\n")


def test_leaderboard_and_plots_run_without_torch(finished, tmp_path):
    """In a process that cannot import it, from the results to a figure."""
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not to be loaded here')")
    code, _, err = foolbench("leaderboard", "--out", finished.out, "--check", cwd=tmp_path)
    assert (code, err) == (0, "")
    figure = tmp_path / "figure.png"
    code, _, err = foolbench("plot", "accuracy", "--out", finished.out, "--file", figure, cwd=tmp_path)
    assert (code, err) == (0, "")
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert foolbench("list", "models", cwd=tmp_path)[0] == 1  # what needs it does not run here


def test_a_reader_that_stops_early_is_no_error(tmp_path):
    command = f"{sys.executable} -m benchmark.cli list suites | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, cwd=tmp_path, text=True)
    assert (done.stdout, done.stderr) == ("board\n", "")


COMMANDS = ["run", "status", "leaderboard", "submit", "verify", "plot", "dissect", "experiment", "list", "explain"]


@pytest.mark.parametrize("command", [*COMMANDS, "new-interpreter"])
def test_every_option_has_help_and_none_of_it_is_swallowed(tmp_path, monkeypatch, capfd, command):
    import typer.main

    from benchmark import cli

    parameters = typer.main.get_command(cli.app).commands[command].params
    text = "".join(shown(monkeypatch, capfd, command, "--help").split()).replace("-", "")
    for parameter in parameters:
        assert parameter.help, parameter.name
        assert not parameter.help.startswith("["), parameter.name
        assert "".join(parameter.help.split()).replace("-", "") in text, parameter.name


def test_the_version_and_the_names_of_experiments(monkeypatch, capfd):
    from importlib.metadata import version

    from benchmark import experiments, options

    assert shown(monkeypatch, capfd, "--version") == f"foolbench {version('foolbench')}\n"
    assert options.EXPERIMENTS.split(", ") == experiments.names()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["leaderboard", "--suite", "defualt"], "unknown suite 'defualt': did you mean 'default'?"),
        (["plot", "transfer", "--suite", "defualt"], "unknown suite 'defualt': did you mean 'default'?"),
        (["status", "--store", "absent"], "no store absent: foolbench run makes it"),
        (["run", *SMOKE, "--out", "a_file"], "cannot write into a_file: a_file is a file"),
        (["dissect", *SMOKE, "--out", "a_file/b"], "cannot write into a_file/b: "),
        (["experiment", "transfer", "--out", "a_file"], "cannot write into a_file: a_file is a file"),
        (["submit", "a_file:A", "--out", "a_file"], "cannot write into a_file: a_file is a file"),
        (
            ["explain", "a_file", "--model", "vgg19", "--interpreter", "lrp", "--file", "a_file/b.png"],
            "cannot write into a_file: a_file is a file",
        ),
        (
            ["plot", "heatmaps", *SMOKE, "--file", "a.jpg"],
            "a figure's file must end in .png (got 'a.jpg')",
        ),
        (
            ["explain", "a_file", "--model", "vgg19", "--interpreter", "lrp"],
            "a_file cannot be read as an image: no format",
        ),
    ],
)
def test_what_is_wrong_is_found_first(tmp_path, monkeypatch, capfd, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("a_file").touch()
    code, out, err = in_process(monkeypatch, capfd, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


def test_a_figure_that_a_suite_cannot_have_says_why(finished, monkeypatch, capfd):
    for name, where in (
        ("front", "its recipes are searched"),
        ("resistance", "the robustness of its models is measured"),
    ):
        code, _, err = in_process(monkeypatch, capfd, "plot", name, "--out", finished.out)
        assert code == 2
        assert f", which a suite has where {where} ([" in err
        assert "foolbench leaderboard" not in err


@pytest.mark.parametrize("target", ["99999999999999999999", "-1"])
def test_a_target_beyond_an_integer_is_one_line(tmp_path, monkeypatch, capfd, target):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    options = ["--model", "squeezenet1_1", "--interpreter", "lrp", "--target", target]
    code, _, err = in_process(monkeypatch, capfd, "explain", tmp_path / "a.png", *options)
    assert (code, err) == (2, f"foolbench: targets must be class indices, 0 or more (got {target})\n")

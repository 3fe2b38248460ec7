"""The command: what each part prints and writes, and that a user's error is one line and an exit code."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from attacks import foolings, strategies
from benchmark import cli, datasets, detectors, explain, figures, interpreters, metrics, models, suite
from benchmark.entries import scores
from benchmark.execution import compute
from benchmark.interpreters.adversarial_explanation import AdversarialExplanation
from benchmark.leaderboards import TABLES
from benchmark.submissions.child import Child
from benchmark.submissions.submission import parse

FOOLBENCH = [sys.executable, "-m", "benchmark.cli"]
PNG = b"\x89PNG\r\n"


@pytest.fixture
def foolbench(monkeypatch, capfd, tmp_path):
    """Runs the command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FOOLBENCH_STORE", raising=False)

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["foolbench", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code or 0
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def board(finished, tmp_path) -> Path:
    """A copy of the finished run's leaderboards."""
    return shutil.copytree(finished.out, tmp_path / "board")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("interpreters", interpreters.names()),
        ("foolings", foolings.names()),
        ("metrics", metrics.names()),
        ("datasets", datasets.names()),
        ("models", models.names()),
        ("suites", suite.names()),
        ("strategies", list(strategies.names())),
        ("detectors", detectors.names()),
        ("figures", figures.names()),
    ],
)
def test_list_prints_one_name_a_line(foolbench, kind, expected):
    code, out, err = foolbench("list", kind)
    assert (code, out.splitlines(), err) == (0, expected, "")
    assert expected


def test_run_computes_writes_and_shows_the_leaderboards(foolbench, finished, tmp_path):
    shutil.copytree(finished.store, tmp_path / ".foolbench", ignore=shutil.ignore_patterns("scores", "predictions"))
    code, out, err = foolbench("run", "--suite", "smoke", "--jobs", 1, "--device", "cpu")
    assert code == 0
    assert "self FSR excess" in out
    assert out.splitlines()[-1] == f"leaderboards: {Path('leaderboards') / 'smoke'}"
    assert [line.split(",")[0] for line in err.splitlines()][-1] == "[4/4] compact_vgg/active/lrp_t/0"
    assert replace(finished, out=tmp_path / "leaderboards" / "smoke").written() == finished.written()


def test_scores_of_another_split_go_to_a_folder_of_their_own(foolbench, finished, tmp_path):
    shutil.copytree(finished.store, tmp_path / "store")
    code, out, _ = foolbench("run", "--suite", "smoke", "--split", "dev", "--store", "store", "--jobs", 1)
    assert code == 0
    assert out.splitlines()[-1] == f"leaderboards: {Path('leaderboards') / 'smoke-dev'}"
    card = json.loads((tmp_path / "leaderboards" / "smoke-dev" / "results" / "models.json").read_text())
    assert card["dataset"]["images"]["split"] == "dev"


def test_leaderboard_regenerates_every_table_from_the_results(foolbench, finished, board):
    for path in board.glob("*.csv"):
        path.unlink()
    assert foolbench("leaderboard", "--out", board) == (0, "", "")
    assert replace(finished, out=board).written() == finished.written()
    assert foolbench("leaderboard", "--out", board, "--check")[0] == 0
    assert "stability: 1 is never fooled" in foolbench("leaderboard", "--out", board, "--check", "--show")[1]


@pytest.mark.parametrize(
    "name", [name for name in TABLES if name not in ("fronts", "differences", "ara", "resistance", "backdoors", "lied")]
)
def test_check_finds_one_changed_byte(foolbench, board, name):
    path = board / f"{name}.csv"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    code, out, err = foolbench("leaderboard", "--out", board, "--check")
    assert (code, out) == (2, "")
    assert err == f"foolbench: {board}: {name}.csv differ from the results: run foolbench leaderboard\n"
    assert path.read_bytes() == data  # it looks and does not touch


@pytest.mark.parametrize("name", ["transfer", "aopc", "accuracy"])
def test_plot_draws_a_figure_from_the_tables(foolbench, board, name):
    shutil.rmtree(board / "results")
    target = board / "figures" / f"{name}.png"
    assert foolbench("plot", name, "--out", board) == (0, f"{target}\n", "")
    assert target.read_bytes().startswith(PNG)


def test_the_help_of_plot_names_every_figure(foolbench):
    code, out, _ = foolbench("plot", "--help")
    assert code == 0
    assert all(f" {name}: {drawing.about[:30]}" in out for name, drawing in figures.FIGURES.items())


def test_plot_heatmaps_draws_the_cell_that_is_named(foolbench, finished, board):
    options = ["--suite", "smoke", "--store", finished.store, "--out", board]
    code, out, _ = foolbench("plot", "heatmaps", *options, "--fooling", "active", "--attacked", "lrp_t")
    assert (code, out) == (0, f"{board / 'figures' / 'heatmaps-compact_vgg-active-lrp_t.png'}\n")
    assert foolbench("plot", "heatmaps", *options, "--no-images", "--file", "maps.png")[:2] == (0, "maps.png\n")
    assert Path("maps.png").read_bytes().startswith(PNG)
    code, _, err = foolbench("plot", "heatmaps", *options, "--attacked", "lrp")
    assert (code, err) == (
        *(2, "foolbench: unknown attacked of suite 'smoke' 'lrp': did you mean 'lrp_t'? allowed: grad_cam, lrp_t\n"),
    )


def test_explain_draws_one_image(foolbench, tmp_path, monkeypatch):
    checkpoint = tmp_path / "squeezenet.pth"
    torch.save(models.zoo.squeezenet1_1().state_dict(), checkpoint)
    Image.new("RGB", (260, 300), (90, 20, 200)).save("image.png")
    options = ["--model", "squeezenet1_1", "--weights", checkpoint, "--interpreter", "grad_cam"]
    code, out, err = foolbench("explain", "image.png", *options, "--target", 7)
    assert (code, err) == (0, "")
    assert out.startswith("squeezenet1_1, grad_cam, class 7, logit ")
    assert Path("explanation.png").read_bytes().startswith(PNG)
    assert (
        "targets must lie in 0..999 (got 1000..1000)"
        in foolbench("explain", "image.png", *options, "--target", 1000)[2]
    )


def test_explain_shows_an_adversarial_explanation_as_an_image_as_well(foolbench, tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Quick(AdversarialExplanation):
        steps: int = 2

    monkeypatch.setitem(interpreters.INTERPRETERS, "adversarial_explanation", Quick)
    checkpoint = tmp_path / "squeezenet.pth"
    torch.save(models.zoo.squeezenet1_1().state_dict(), checkpoint)
    Image.new("RGB", (260, 300), (90, 20, 255)).save("image.png")
    samples = explain.explain(Path("image.png"), "squeezenet1_1", str(checkpoint), "adversarial_explanation", 7)
    explained, maps = samples.originals.values()
    assert list(samples.originals) == ["image + δ", "adversarial_explanation"]
    assert (explained.shape, maps.shape) == ((1, 224, 224, 3), (1, 224, 224))
    assert 0 <= explained.min() <= explained.max() <= 1
    moved = explained - samples.images  # blue is at its end already
    rms = (moved[..., :2] ** 2).mean() ** 0.5
    assert 0.02 < rms < 0.2, "ρ = 0.1 times the std, about, after two steps that may go beyond"
    options = ["--model", "squeezenet1_1", "--weights", checkpoint, "--interpreter", "adversarial_explanation"]
    assert foolbench("explain", "image.png", *options)[0] == 0
    assert Path("explanation.png").read_bytes().startswith(PNG)


def test_a_run_that_has_failures_says_so_and_exits_with_an_error(foolbench, finished, tmp_path, monkeypatch):
    shutil.copytree(finished.store, tmp_path / "store", ignore=shutil.ignore_patterns("scores"))
    monkeypatch.setattr(scores, "score", lambda *_: 1 / 0)
    code, out, err = foolbench("run", "--suite", "smoke", "--store", "store", "--jobs", 1)
    assert code == 2
    assert (
        "4 unit(s) failed, first compact_vgg/location/grad_cam/0: grad_cam: ZeroDivisionError" in err.splitlines()[-1]
    )
    assert "leaderboards: " in out


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_ctrl_c_is_one_line_and_the_run_goes_on_later(finished, tmp_path, jobs):
    store = finished.unmade(tmp_path).store
    there = finished.receipts(store)
    command = [*FOOLBENCH, "run", "--suite", "smoke", "--jobs", jobs, "--store", store, "--out", tmp_path / "none"]
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a test run may itself ignore it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, **heed)
    while process.poll() is None and finished.receipts(store) < there + 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    lines = [line for line in err.splitlines() if not line.startswith("[")]  # but for the progress
    assert lines == ["foolbench: interrupted; the store is whole, run again to go on"]
    assert process.returncode in (130, -signal.SIGINT)  # a shell shows either as 130
    resumed = replace(finished, run=replace(finished.run, store=str(store)), out=tmp_path / "out")
    assert there + 2 <= finished.receipts(store) < finished.receipts(finished.store)
    compute.run_suite(resumed.run, resumed.out, jobs=1)
    assert resumed.written() == finished.written()


def test_new_interpreter_writes_a_submission_that_passes_its_own_test(foolbench, tmp_path):
    folder = tmp_path / "new" / "folder"
    expected = [folder / "my_method.py", folder / "test_my_method.py"]
    code, out, err = foolbench("new-interpreter", "my_method", "--folder", folder)
    assert (code, out.splitlines(), err) == (0, [str(path) for path in expected], "")
    assert sorted(folder.iterdir()) == expected
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=folder, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.splitlines()[-1].split(" in ")[0]) == (0, "4 passed")
    with Child(parse(f"{folder}/my_method.py:MyMethod")) as child:
        about = {"name": "my_method", "kind": "class", "differentiable": True, "stochastic": False}
        assert child.describe() == about


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lrp", "name must be a new one, not in foolbench list interpreters"),
        ("MyMethod", "name must be lower snake case, at most 50 characters (got 'MyMethod')"),
        ("my-method", "name must be lower snake case, at most 50 characters (got 'my-method')"),
        ("lambda", "name must be a new one (got 'lambda', a keyword or a module that Python finds already)"),
        ("torch", "name must be a new one (got 'torch', a keyword or a module that Python finds already)"),
        ("there", "there.py is there already: choose another name or --folder"),
        ("tested", "test_tested.py is there already: choose another name or --folder"),
    ],
)
def test_new_interpreter_refuses_a_name_that_is_taken_or_none(foolbench, tmp_path, name, message):
    (tmp_path / "there.py").write_text("mine")
    (tmp_path / "test_tested.py").write_text("mine")
    code, out, err = foolbench("new-interpreter", name)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "there.py": "mine",
        "test_tested.py": "mine",
    }

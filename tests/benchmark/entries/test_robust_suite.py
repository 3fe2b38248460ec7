"""A suite with robustly trained models: how they are trained, their areas, and resistance beside them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from attacks.adversarial import minimum_norm
from attacks.errors import UserError
from attacks.half_huber import HalfHuber
from attacks.pixels import OnPixels
from attacks.robust_training import Adversary, Regulariser, Robust
from benchmark import leaderboards, sections, suite
from benchmark.entries import gates, kind
from benchmark.entries import robustness as robust
from benchmark.entries.images import batches
from benchmark.entries.kind import Entry
from benchmark.entries.trained import TRAINED, clean_model, new_model, objective_of, pretrained, save_weights
from benchmark.execution import compute
from benchmark.figures.boards import resistance
from benchmark.leaderboards import stored
from benchmark.metrics import robustness
from benchmark.run import Run, dataset
from benchmark.training import cross_entropy

TINY = """
name = "tiny"
foolings = ["location"]
attacked = ["grad_cam"]
evaluated = ["grad_cam", "simple_grad"]

[dataset]
name = "shapes"
input_size = 32
train = 48
dev = 8
test = 12

[models.standard]
architecture = "compact_resnet"
epochs = 1

[models.both]
architecture = "compact_resnet"
epochs = 1
half_huber = 0.5
adversary = { steps = 2 }
regulariser = { psi = 5.0 }

[robustness]
images = 10
steps = 5
path = 1.0

[[recipes]]
learning_rate = 1e-3
lambda = 1.0
steps = 3
batch_size = 8

[scoring]
batch_size = 8
aopc_images = 4
aopc_cells = 2
"""


def load(folder: Path, *changes: tuple[str, str]) -> sections.Suite:
    text = TINY
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    (folder / "tiny.toml").write_text(text)
    return suite.load(folder / "tiny.toml")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("robust")
    run, threads = Run(load(folder), str(folder / "store")), torch.get_num_threads()
    assert compute.run_suite(run, folder / "out", jobs=1) == {}
    assert torch.get_num_threads() == threads
    return run, folder / "out"


def test_models_are_trained_as_they_say(done):
    run, _ = done
    receipts = {name: Entry(TRAINED, name).receipt(run) for name in run.suite.models}
    assert "psi" not in receipts["standard"]
    assert receipts["both"]["psi"] >= 5.0
    kinds = {name: {type(m) for m in clean_model(run, name).modules()} for name in run.suite.models}
    assert HalfHuber in kinds["both"] - kinds["standard"]
    assert torch.nn.ReLU in kinds["standard"] - kinds["both"]
    objective, regulariser = objective_of(run, "both")
    model, (images, targets), data = (
        new_model(run, "both"),
        next(iter(batches(run, "dev"))),
        dataset(run, "dev"),
    )
    torch.manual_seed(0)
    loss = objective(model, images, targets)
    torch.manual_seed(0)
    robust = Robust(Adversary(steps=2), Regulariser(psi=5.0))
    pixels = data.denormalise(images)
    torch.testing.assert_close(loss, robust(OnPixels(model, data.mean, data.std), pixels, targets))
    assert regulariser == robust.regulariser
    assert objective_of(run, "standard") == (cross_entropy, None)


def test_areas_are_those_of_the_attack_on_pixels(done):
    run, out = done
    table = leaderboards.load(out, "ara").set_index(["model", "boundary"])
    assert sorted(table.index) == [(m, b) for m in ("both", "standard") for b in ("attack", "btr")]
    data, (images, targets) = dataset(run, "test"), (torch.cat(p)[:10] for p in zip(*batches(run, "test"), strict=True))
    for (model, boundary), row in table.iterrows():
        network = OnPixels(clean_model(run, str(model)), data.mean, data.std).eval()
        found = minimum_norm(network, data.denormalise(images), targets, boundary=str(boundary), steps=5, path=1.0)
        assert row.ara == pytest.approx(robustness.area(found.radius.numpy(), 8), rel=1e-4)
        assert (row.n, row.num_classes, row.steps) == (10, 8, 5)
        assert row.unconverged == robustness.unconverged(found.first.numpy(), 5)
        assert row.never_crossed == int((found.first > 5).sum())
        assert row.accuracy == pytest.approx(float((found.radius > 0).float().mean()))
        assert row.ara_low <= row.ara <= row.ara_high
        assert np.isfinite(row.psi) == (model == "both")


def test_resistance_sets_fooling_beside_robustness(done):
    _, out = done
    table, transfer = leaderboards.load(out, "resistance"), leaderboards.load(out, "transfer")
    areas, accuracy = leaderboards.load(out, "ara"), leaderboards.load(out, "accuracy").set_index("model")
    assert list(table.model) == ["both", "standard"]
    for row in table.itertuples():
        own = transfer.query("model == @row.model and evaluated == 'grad_cam'").iloc[0]
        assert (row.fsr, row.fsr_low, row.n) == (own.fsr, own.fsr_low, own.n)
        assert row.excess == pytest.approx(own.fsr - own.fsr_clean)
        assert row.top1_drop == accuracy.top1_drop[row.model]
        area = areas.query("model == @row.model").set_index("boundary").ara
        assert (row.ara_attack, row.ara_btr) == (area["attack"], area["btr"])


def test_the_tables_come_from_the_results_alone_and_are_drawn(done, tmp_path):
    _, out = done
    assert leaderboards.check(out) == []
    panels = [panel for panel in resistance(out).axes if panel.get_title()]
    assert [panel.get_title() for panel in panels] == ["grad_cam"]
    table = leaderboards.load(out, "resistance").sort_values(["ara_attack", "model"])
    labels = [label.get_text() for label in panels[0].get_xticklabels()]
    assert labels == [f"{row.model}\n{row.ara_attack:.4f}" for row in table.itertuples()]
    by_place = sorted(zip(panels[0].lines[0].get_xdata(), panels[0].lines[0].get_ydata(), strict=True))
    assert [y for _, y in by_place] == list(table.excess)
    read = stored.read(out / "results")
    frame, card = read.others["robustness"]
    stored.write(tmp_path, "robustness", frame.sample(frac=1, random_state=0), card)
    assert (tmp_path / "robustness.parquet").read_bytes() == (out / "results" / "robustness.parquet").read_bytes()


def test_a_second_run_measures_nothing_again(done, tmp_path, monkeypatch):
    run, out = done
    monkeypatch.setattr(kind, "_make", None)
    assert compute.run_suite(run, tmp_path, jobs=1) == {}
    assert (tmp_path / "ara.csv").read_bytes() == (out / "ara.csv").read_bytes()


def test_equal_training_under_two_names_is_one_model(tmp_path):
    run = Run(
        load(tmp_path, ("[models.both]", "[models.again]\narchitecture = 'compact_resnet'\nepochs = 1\n[models.both]")),
        "",
    )
    again, standard, both = (Entry(TRAINED, name).key(run) for name in ("again", "standard", "both"))
    assert again == standard != both


def test_a_models_activation_is_part_of_it_where_its_weights_are_given(tmp_path, done):
    weights = tmp_path / "weights.safetensors"
    save_weights(clean_model(done[0], "both"), tmp_path)
    changes = [
        (
            "epochs = 1\nhalf_huber = 0.5\nadversary = { steps = 2 }\nregulariser = { psi = 5.0 }",
            f'weights = "{weights}"',
        )
    ]
    plain = Run(load(tmp_path, *changes), "")
    swapped = Run(load(tmp_path, *changes, ("weights =", "half_huber = 0.5\nweights =")), "")
    assert Entry(TRAINED, "both").key(plain) != Entry(TRAINED, "both").key(swapped)
    images = next(iter(batches(plain, "dev")))[0]
    assert torch.allclose(pretrained(swapped, "both")(images), clean_model(done[0], "both")(images), atol=1e-5)
    assert not torch.allclose(pretrained(plain, "both")(images), pretrained(swapped, "both")(images))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("psi = 5.0", "phi = 5.0", "unknown key in models.both.regulariser of suite .*: 'phi': did you mean 'psi'"),
        ("steps = 2", "steps = 0", "models.both.adversary.steps: .* greater than or equal to 1"),
        ("steps = 2", "share = 1.5", "models.both.adversary.share: .* less than or equal to 1"),
        ("half_huber = 0.5", "half_huber = 0", "models.both.half_huber: .* greater than 0"),
        ("half_huber = 0.5", 'weights = "a.pt"', "models.both: .*weights are not trained here"),
        ("compact_resnet", "compact_resnet20", "unknown model 'compact_resnet20'"),
        ("images = 10", "image = 10", "unknown key in robustness of suite .*: 'image': did you mean 'images'"),
    ],
)
def test_impossible_values_are_answered_with_their_key(tmp_path, old, new, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, (old, new))


def test_damaged_results_are_named(done, tmp_path):
    read = stored.read(done[1] / "results")
    frame, card = read.others["robustness"]
    stored.write(tmp_path, "models", read.models, read.models_card)
    stored.write(tmp_path, "robustness", frame, {**card, "models": [{"model": "both"}]})
    with pytest.raises(UserError, match=r"robustness.json: each of its models must hold num_classes, psi"):
        stored.read(tmp_path)


def test_a_model_whose_attack_or_gate_fails_is_a_row_with_its_error(done, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("no radius")

    gated = done[0].suite.model_copy(update={"gate": sections.Gate(images=4, cells=2)})
    shutil.copytree(done[0].store, tmp_path / "store", ignore=shutil.ignore_patterns("robustness"))
    monkeypatch.setattr(robust, "minimum_norm", broken)
    monkeypatch.setattr(gates, "measure", broken)
    failed = compute.run_suite(Run(gated, str(tmp_path / "store")), tmp_path / "out", jobs=1)
    names = [f"robustness {model}" for model in gated.models]
    names += [f"gate {model}/{evaluated}" for model in gated.models for evaluated in gated.evaluated]
    assert failed == dict.fromkeys(names, "ZeroDivisionError: no radius")
    areas = leaderboards.load(tmp_path / "out", "ara")
    assert areas[["model", "n", "error"]].values.tolist() == [
        [model, 0, "ZeroDivisionError: no radius"] for model in ("both", "standard")
    ]
    reasons = leaderboards.load(tmp_path / "out", "stability").reason
    expected = "no gate on both, standard; both: ZeroDivisionError: no radius; standard: ZeroDivisionError: no radius"
    assert set(reasons) == {expected}

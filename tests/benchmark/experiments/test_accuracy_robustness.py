"""The areas of a random ResNet-20 on random images: the table by its own radii, the store, the figure, the errors."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from attacks.adversarial import minimum_norm
from attacks.errors import UserError
from attacks.pixels import OnPixels
from benchmark import experiments, models, suite
from benchmark.experiments import accuracy_robustness as experiment
from benchmark.experiments.accuracy_robustness import Settings
from benchmark.experiments.given import Given
from benchmark.metrics.robustness import area, area_histogram, area_interval
from benchmark.run import Run

SHORT = Settings(steps=6, path=2.0, batch_size=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven images of noise and a network that is right about five of them."""
    path = tmp_path_factory.mktemp("cifar")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.create("resnet20", num_classes=10)
    pixels = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        targets = OnPixels(model, SHORT.mean, SHORT.std)(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).argmax(1)
    targets[:2] = (targets[:2] + 1) % 10
    np.save(path / "test_x.npy", pixels)
    np.save(path / "test_y.npy", targets.numpy())
    save_file(model.state_dict(), path / "resnet20.safetensors")
    return path


def _given(folder, tmp_path) -> Given:
    return Given(Run(suite.load("smoke"), str(tmp_path / "store"), str(folder)), tmp_path, jobs=1)


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    given = _given(folder, tmp_path_factory.mktemp("run"))
    return given, experiment.measure(given, SHORT)


def test_the_radii_are_those_of_the_attack_on_all_images_at_once(done):
    given, table = done
    model, images, targets = experiment.inputs(given.run, SHORT)
    for boundary in ("attack", "btr"):
        found = minimum_norm(model, images, targets, boundary=boundary, steps=6, path=2.0)
        rows = table[(table.part == "image") & (table.boundary == boundary)]
        assert rows.image.tolist() == list(range(7))
        assert rows.target.tolist() == targets.tolist()
        assert rows["first"].tolist() == found.first.tolist()
        np.testing.assert_allclose(rows.radius, found.radius, rtol=1e-3, atol=1e-6)


def test_the_areas_are_those_of_the_radii(done):
    _, table = done
    ours = table[(table.part == "network") & (table.source == "here")].set_index("boundary")
    assert list(ours.index) == ["attack", "btr"]
    for boundary, row in ours.iterrows():
        rows = table[(table.part == "image") & (table.boundary == boundary)]
        assert (row.ara, row.ara_histogram) == (area(rows.radius, 10), area_histogram(rows.radius, 10))
        assert (row.ara_low, row.ara_high) == area_interval(rows.radius, 10)
        assert row.clean_accuracy == pytest.approx(5 / 7)
        assert row.unconverged == (rows["first"] > 3).sum()
        assert row.never_crossed == (rows["first"] == 7).sum()
        assert (row.n, row.steps) == (7, 6)
    attack = table[(table.part == "image") & (table.boundary == "attack")]
    assert (attack.radius == 0).sum() == 2


def test_the_published_rows_stand_beside_it(done):
    rows = done[1].query("part == 'network' and source == 'Woods et al. 2019'").set_index(["network", "boundary"])
    assert len(rows) == 8
    assert rows.ara["standard"].to_dict() == {"attack": 0.0013, "btr": 0.0015}
    assert rows.ara["regularised_and_adversarial", "btr"] == 0.0414
    assert rows.clean_accuracy["standard", "attack"] == 0.9384


def test_a_batch_is_attacked_once_and_again_only_with_other_settings(done, monkeypatch):
    given, table = done
    calls = []

    def counted(*args, **options):
        calls.append(options)
        return minimum_norm(*args, **options)

    monkeypatch.setattr(experiment, "minimum_norm", counted)
    pd.testing.assert_frame_equal(experiment.measure(given, SHORT), table)
    assert not calls
    experiment.measure(given, Settings(steps=2, path=2.0, batch_size=7))
    assert [call["steps"] for call in calls] == [2, 2]
    experiment.measure(given, Settings(steps=2, path=2.0, mean=(0.5, 0.5, 0.5), batch_size=7))
    assert len(calls) == 4


def test_it_writes_table_card_and_figure(done, tmp_path, monkeypatch):
    given, table = done
    monkeypatch.setattr(experiment, "measure", lambda given: table)
    written = experiments.run("accuracy-robustness", given, tmp_path)
    names = [f"accuracy-robustness.{kind}" for kind in ("csv", "json", "png")]
    assert [path.name for path in written] == names
    labels = [text.get_text() for text in experiment.draw(table).axes[0].get_legend().get_texts()]
    assert labels[-1] == "Woods et al. 2019, standard network: attack 0.0013, btr 0.0015"
    assert labels[2] == "chance"


def test_without_data_it_says_what_is_needed(tmp_path):
    given = Given(Run(suite.load("smoke"), str(tmp_path)), tmp_path, jobs=1)
    with pytest.raises(UserError, match=r"needs --data DIR, a folder with CIFAR-10's test images and the weights of a"):
        experiment.measure(given)


def test_one_checkpoint_is_needed(folder, tmp_path):
    for name in ("test_x.npy", "test_y.npy"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match=r"must hold one file resnet20\*\.th, .* \(got none\)"):
        experiment.measure(_given(tmp_path, tmp_path))
    for name in ("resnet20.pt", "resnet20-b.th", "resnet20.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"\(got resnet20-b\.th, resnet20\.pt\)"):
        experiment.measure(_given(tmp_path, tmp_path))

"""Losses between models: exact at the models, a parabola where it is known to be one, and frozen statistics."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attacks import foolings
from attacks.course import pair_heatmaps
from attacks.errors import UserError
from benchmark import datasets, experiments, suite
from benchmark.cells import plan
from benchmark.entries.kind import Entry
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.entries.trained import clean_model, stored_model
from benchmark.experiments import loss_landscape
from benchmark.experiments.given import Given
from benchmark.experiments.loss_landscape import Settings
from benchmark.metrics.accuracy import top_k_correct
from benchmark.run import create_interpreter, dataset


@pytest.fixture(scope="module")
def table(finished):
    return loss_landscape.measure(Given(finished.run, finished.out), Settings(points=5, grid=5))


@pytest.fixture(scope="module")
def models(finished):
    """(fooling, attacked) -> the fooled model; None -> the clean one."""
    found = {None: clean_model(finished.run, "compact_vgg")}
    for cell in plan(finished.run.suite):
        path = Entry(MANIPULATIONS, cell).path(finished.run)
        found[cell.fooling, cell.attacked] = stored_model(finished.run, cell.model, path)
    return found


def _direct(run, fooling, name, clean, model):
    """Cross-entropy, top-1 and the fooling's own training loss, each over all scored images in one batch."""
    fooling, interpreter = foolings.create(fooling), create_interpreter(run, name)
    (images, targets), (shown, labels) = (
        next(iter(datasets.loader(dataset(run, "test", pairs), run.suite.scoring.images)))
        for pairs in (False, fooling.pairs)
    )
    heatmaps = pair_heatmaps if fooling.pairs else lambda method, *rest: method(*rest)
    with torch.no_grad():
        logits = model(images)
        maps, maps0 = (heatmaps(interpreter, m, shown, labels) for m in (model, clean))
        loss, success = fooling.loss(maps, maps0), fooling.success(fooling.test_loss(maps, maps0)).float().mean()
        top1 = top_k_correct(logits, targets, 1).float().mean()
    return [v.item() for v in (F.cross_entropy(logits, targets), top1, loss, success)]


def test_at_the_models_the_losses_are_theirs(finished, table, models):
    columns = ["ce", "top1", "loss", "fsr"]
    segments, planes = table[table.part == "segment"], table[table.part == "plane"]
    for fooling, attacked in models.keys() - {None}:
        rows = segments[(segments.fooling == fooling) & (segments.along_x == attacked)].set_index("x")
        assert rows.index.tolist() == [-0.5, 0.0, 0.5, 1.0, 1.5]
        for x, model in ((0.0, models[None]), (1.0, models[fooling, attacked])):
            expected = _direct(finished.run, fooling, attacked, models[None], model)
            assert rows.loc[x, columns].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert (planes.along_x + planes.along_y == "grad_camlrp_t").all()
    assert len(planes) == 2 * 25 * 2  # foolings, points, interpreters


def test_the_plane_holds_the_segments(table):
    plane, segments = (table[table.part == part] for part in ("plane", "segment"))
    for along, axis, other in (("along_x", "x", "y"), ("along_y", "y", "x")):
        on_axis = plane[(plane[other] == 0) & (plane.evaluated == plane[along])]
        pairs = on_axis.merge(segments, left_on=["fooling", along, axis], right_on=["fooling", "along_x", "x"])
        assert len(pairs) == 2 * 5
        for column in ("ce", "loss", "fsr", "distance"):
            np.testing.assert_allclose(pairs[f"{column}_x"], pairs[f"{column}_y"], rtol=1e-6, atol=1e-7)


def test_on_a_linear_model_the_squared_error_is_the_known_parabola():
    """y = w·v, w(t) = w0 + t d: mean (w(t)·v − y)² = mean (e + t d·v)², e the error at w0."""
    generator = torch.Generator().manual_seed(0)
    clean, fooled = (nn.Linear(4, 1, bias=False, dtype=torch.float64) for _ in range(2))
    inputs, wanted = torch.randn(50, 4, generator=generator).double(), torch.randn(50, generator=generator).double()
    error = (clean(inputs)[:, 0] - wanted).detach()
    slope = (inputs @ (fooled.weight - clean.weight)[0]).detach()
    for t in (-0.5, 0.0, 0.3, 1.0, 1.5):
        model = loss_landscape.mixed(clean, [fooled], [t])
        loss = (model(inputs)[:, 0] - wanted).square().mean().item()
        expected = (error.square().mean() + 2 * t * (error * slope).mean() + t**2 * slope.square().mean()).item()
        assert loss == pytest.approx(expected, rel=1e-12)
        length = abs(t) * ((fooled.weight - clean.weight).norm() / clean.weight.norm()).item()
        assert loss_landscape.distance(clean, model) == pytest.approx(length, rel=1e-12)


def test_whole_coordinates_give_the_models_to_the_last_bit(models):
    clean, *others = models.values()
    for where, model in (((0, 0), clean), ((1, 0), others[0]), ((0, 1), others[1])):
        found = loss_landscape.mixed(clean, others[:2], where).state_dict()
        assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_floating_point_buffers_are_mixed_and_counters_are_not():
    clean, fooled = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    fooled.running_mean += 4.0
    fooled.num_batches_tracked += 7
    mixed = loss_landscape.mixed(clean, [fooled], [0.25])
    assert mixed.running_mean.tolist() == [1.0, 1.0]
    assert mixed.num_batches_tracked == 0


def test_fine_tuning_leaves_the_buffers_as_they_were(models):
    buffers = dict(models[None].named_buffers())
    assert any("running_var" in name for name in buffers)
    for model in models.values():
        assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())


def test_a_loss_that_is_not_a_mean_over_images_is_refused(finished):
    fooling = foolings.create("center_mass")
    with pytest.raises(UserError, match="center_mass"):
        loss_landscape._interpreter(finished.run, "compact_vgg", fooling, "grad_cam")


def test_it_writes_table_card_and_figure(finished, table, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_landscape, "measure", lambda given: table)
    written = experiments.run("loss-landscape", Given(finished.run, finished.out), tmp_path)
    assert [path.name for path in written] == ["loss-landscape.csv", "loss-landscape.json", "loss-landscape.png"]
    one = table[(table.part == "segment") & (table.fooling == "location") & (table.along_x == "lrp_t")]
    assert len(loss_landscape.draw(one).axes) == 2  # of a single fooled model there is no plane


def test_its_suite_is_that_of_the_weight_noise():
    assert experiments.load_suite(loss_landscape) == suite.load(experiments.HERE / "location.toml")

"""Detectors on networks whose score is known, and what all of them keep to."""

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from attacks.errors import Refused, UserError
from benchmark import interpreters, models
from benchmark.detectors import DETECTORS, maps
from benchmark.detectors.aopc_drop import AOPCDrop
from benchmark.detectors.base import judge
from benchmark.detectors.off_data import OffData
from benchmark.submissions.wire import fingerprint


@pytest.fixture(scope="module")
def batch():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    made = models.create("compact_resnet", num_classes=8)
    with torch.no_grad():  # not blank: as it is initialised its last BatchNorms cancel little
        made.fc.weight.mul_(5)
    return made.eval()


def shifted(model, size=1.0):
    """The model with one vector added to the weights of every class."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.fc.weight += size * torch.randn(1, other.fc.in_features, generator=torch.Generator().manual_seed(2))
    return other


@pytest.mark.parametrize("name", DETECTORS)
def test_each_gives_a_number_again_and_leaves_model_and_random_state(name, model, batch):
    training, detector = copy.deepcopy(model).train(), DETECTORS[name]()
    before, state = fingerprint(training), torch.get_rng_state()
    score = judge(detector, training, *batch, model)
    assert detector.name == name
    assert fingerprint(training) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert judge(detector, training, *batch, model) == score
    assert math.isfinite(score)


@pytest.mark.parametrize("name", ["logit_sum", "contrast_distance", "changed_maps"])
def test_a_shift_of_the_head_is_seen(name, model, batch):
    before, after = (judge(DETECTORS[name](), each, *batch, model) for each in (model, shifted(model, 5.0)))
    assert after > before + 1e-3


def test_the_one_that_asks_the_first_layer_does_not_see_it(model, batch):
    assert judge(OffData(), shifted(model), *batch, model) == judge(OffData(), model, *batch, model)


def test_the_original_itself_has_not_changed(model, batch):
    assert judge(DETECTORS["changed_maps"](), copy.deepcopy(model), *batch, model) == 0


def test_only_those_of_the_other_category_see_the_original(model, batch):
    @dataclass(frozen=True)
    class Counting:
        original: bool
        name: ClassVar[str] = "counting"

        def __call__(self, model, images, targets, *original):
            assert not torch.is_grad_enabled()
            return len(original)

    assert [judge(Counting(flag), model, *batch, model) for flag in (False, True)] == [0, 1]


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_orders_nothing_is_an_error(model, batch, score):
    detector = type("Bad", (), {"name": "bad", "original": False, "__call__": lambda *_: score})()
    with pytest.raises(UserError, match="the score of detector bad must be finite"):
        judge(detector, model, *batch, model)


def test_the_sum_of_logits_by_hand(model, batch):
    """Var(Σ_c z_c) of the shifted model: every logit has v·φ more, the sum C times that."""
    images, targets = batch
    other, taken = shifted(model), []
    handle = model.fc.register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    with torch.no_grad():
        sums = model(images).sum(1)
    handle.remove()
    added = taken[0] @ (other.fc.weight - model.fc.weight)[0].detach()
    expected = torch.var(sums + 8 * added).item()
    assert judge(DETECTORS["logit_sum"](), other, images, targets, model) == pytest.approx(expected, rel=1e-5)


def test_the_distance_is_scipys_at_the_coarser_resolution():
    generator = torch.Generator().manual_seed(3)
    fine, coarse = torch.rand(2, 4, 4, generator=generator), torch.rand(2, 2, 2, generator=generator)
    pooled = fine.view(2, 2, 2, 2, 2).mean((2, 4))
    expected = [1 - spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(pooled, coarse, strict=True)]
    assert maps.distance(fine, coarse) == pytest.approx(sum(expected) / 2)
    assert maps.distance(coarse, fine) == pytest.approx(sum(expected) / 2)
    assert maps.distance(torch.zeros(1, 2, 2), torch.ones(1, 2, 2)) == 0
    assert maps.distance(torch.zeros(1, 2, 2), coarse[:1]) == 1


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 1, 1, bias=False), nn.Linear(2, 1, bias=False)], ids=["conv", "linear"])
def test_the_energy_off_the_data_by_hand(layer):
    """Data on the diagonal of a plane: weights (3, 1) have (3 − 1)²/2 of 10 off it."""
    images = torch.randn(20, 1, 1, 1).expand(-1, 2, -1, -1) + 0.5
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([3.0, 1.0]).view(layer.weight.shape))
    net = nn.Sequential(nn.Flatten(), layer) if isinstance(layer, nn.Linear) else nn.Sequential(layer, nn.Flatten())
    assert judge(OffData(), net, images, torch.zeros(20), net) == pytest.approx(2 / 10, rel=1e-5)


def test_weights_added_off_the_data_change_no_logit_and_are_seen():
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(30, 1, 4, 4, generator=generator).expand(-1, 3, -1, -1)  # grey: the colours span one direction
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        net[0].weight.copy_(net[0].weight.mean(1, keepdim=True).expand(-1, 3, -1, -1))
    edited = copy.deepcopy(net)
    with torch.no_grad():
        edited[0].weight += torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(edited(images), net(images), rtol=1e-4, atol=1e-5)
    assert judge(OffData(), net, images, torch.zeros(30), net) == pytest.approx(0, abs=1e-9)
    assert judge(OffData(), edited, images, torch.zeros(30), net) > 0.5


def test_a_first_layer_that_does_not_read_patches_is_refused(batch):
    grouped = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(Refused, match="off_data needs a first layer"):
        judge(OffData(), grouped, *batch, grouped)


def test_a_map_that_points_beside_the_object_costs_aopc(monkeypatch):
    """One class is the brightness of the upper left quarter: maps there fall, maps elsewhere do not."""

    class Corner(nn.Module):
        def forward(self, x):
            bright = x[:, :, :4, :4].mean((1, 2, 3))
            return torch.stack([bright, -bright], 1)

    images, places = torch.ones(4, 3, 8, 8), torch.zeros(2, 8, 8)
    places[0, :4, :4] = places[1, 4:, 4:] = 1
    scores = []
    for place in places:
        monkeypatch.setattr("benchmark.detectors.aopc_drop.maps_of", lambda *_, place=place: [place.expand(4, -1, -1)])
        scores.append(judge(AOPCDrop(), Corner(), images, torch.zeros(4, dtype=torch.long), Corner()))
    assert scores[0] < 0 < scores[1]


def test_disagreement_is_the_mean_over_pairs(monkeypatch, model, batch):
    rising = torch.arange(4.0).view(1, 2, 2).expand(3, -1, -1)
    monkeypatch.setattr("benchmark.detectors.disagreement.maps_of", lambda *_: [rising, 2 * rising, -rising])
    assert judge(DETECTORS["disagreement"](), model, *batch, model) == pytest.approx((0 + 2 + 2) / 3)


def test_occlusion_is_compared_with_the_one_that_is_farthest(monkeypatch, model, batch):
    batch = batch[0][:1], batch[1][:1]
    covered = interpreters.create("occlusion_contrast")(model, *batch)
    given = [covered, 1 - covered]
    monkeypatch.setattr("benchmark.detectors.against_occlusion.maps_of", lambda *_: given)
    assert judge(DETECTORS["against_occlusion"](), model, *batch, model) == pytest.approx(2)
    monkeypatch.setattr("benchmark.detectors.against_occlusion.maps_of", lambda *_: given[:1])
    assert judge(DETECTORS["against_occlusion"](), model, *batch, model) == pytest.approx(0, abs=1e-9)

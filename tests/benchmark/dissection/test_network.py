"""Dissection: units that are concepts by construction, plain loops as the reference, models given back as they came."""

import math
import weakref
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks.errors import UserError
from benchmark import datasets, models
from benchmark.dissection import network
from benchmark.dissection.concepts import Concepts, Drawn

LAYER = "0"


class InMemory(Concepts):
    """Images (N, C, H, W), masks (N, concepts, side, side) and annotated (N, categories) as they are given."""

    def __init__(self, images, masks, annotated, names):
        super().__init__(names, masks.shape[-1], len(images))
        self.all = images, masks, annotated

    def pictures(self, indices):
        return self.all[0][indices.start : indices.stop]

    def mark(self, index, masks, annotated):
        masks[:], annotated[:] = self.all[1][index], self.all[2][index]


def net(units=3, head=None):
    """Its layer "0" has the image's channels as units."""
    return nn.Sequential(nn.Identity(), head or nn.Flatten())


def disjoint():
    """12 images of 4 squared, in which three concepts cover two places each, and these masks as channels."""
    places = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i))[:6] for i in range(12)])
    masks = torch.zeros(12, 3, 16).scatter_(2, places.view(12, 3, 2), 1).view(12, 3, 4, 4)
    names = [("colour", "red"), ("colour", "blue"), ("texture", "dots")]
    return masks, partial(InMemory, masks=masks.bool().numpy(), annotated=np.ones((12, 2), bool), names=names)


def test_units_that_are_concepts_are_found():
    masks, concepts = disjoint()
    units = torch.stack([masks[:, 2], masks[:, 0] * 7, masks[:, 1] + 3, torch.zeros(12, 4, 4), masks.sum(1)], dim=1)
    limits = network.thresholds(net(), LAYER, units.split(5), total=12, quantile=0.125)  # 2 of 16 places
    table = network.dissect(net(), LAYER, concepts(units), limits)
    assert limits.tolist() == [0, 0, 3, 0, 1]
    assert table.concept.fillna("none").tolist() == ["dots", "red", "blue", "none", "none"]
    assert table.category.fillna("none").tolist() == ["texture", "colour", "colour", "none", "none"]
    assert table.iou.tolist() == [1, 1, 1, 0, 0]
    assert table.detector.tolist() == [True, True, True, False, False]
    assert list(table.columns) == ["layer", "unit", "category", "concept", "iou", "detector", "threshold", "n"]
    assert (table.layer == LAYER).all()
    assert (table.n == 12).all()
    assert table.unit.tolist() == [0, 1, 2, 3, 4]


def test_a_unit_of_several_concepts_goes_to_the_first():
    masks, concepts = disjoint()
    table = network.dissect(net(), LAYER, concepts(masks.sum(1, keepdim=True)), np.zeros(1))
    assert table[["concept", "iou"]].to_numpy().tolist() == [["red", 1 / 3]]


def test_the_threshold_of_a_detector_is_strict():
    masks = np.zeros((1, 1, 10, 10), bool)
    masks[0, 0, 0, :4] = True  # 4 of 100: an IoU of 0.04 is not above it
    given_masks = partial(InMemory, annotated=np.ones((1, 1), bool), names=[("kind", "name")])
    everywhere = network.dissect(net(), LAYER, given_masks(torch.ones(1, 1, 10, 10), masks), np.zeros(1))
    assert everywhere[["iou", "detector"]].to_numpy().tolist() == [[0.04, False]]
    masks[0, 0, 1, 0] = True
    everywhere = network.dissect(net(), LAYER, given_masks(torch.ones(1, 1, 10, 10), masks), np.zeros(1))
    assert everywhere.detector.all()


def enlarged(values, side):
    """Bilinear interpolation between the centres of the places of values (h, w), as if continued beyond the border."""
    out = np.empty((side, side))
    for i in range(side):
        for j in range(side):
            y, x = (min(max((k + 0.5) * n / side - 0.5, 0), n - 1) for k, n in ((i, len(values)), (j, len(values[0]))))
            top, left = int(y), int(x)
            bottom, right = min(top + 1, len(values) - 1), min(left + 1, len(values[0]) - 1)
            above = (1 - x + left) * values[top, left] + (x - left) * values[top, right]
            below = (1 - x + left) * values[bottom, left] + (x - left) * values[bottom, right]
            out[i, j] = (1 - y + top) * above + (y - top) * below
    return out


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 5]), st.sampled_from([3, 6, 8]))
def test_iou_is_that_of_a_plain_loop(seed, batch_size, side):
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((5, 4, 3, 4))
    annotated, of = rng.random((5, 2)) < 0.6, [0, 0, 1, 1, 1]
    masks = (rng.random((5, 5, side, side)) < 0.3) & annotated[:, of, None, None]
    names = [(f"kind {c}", f"name {i}") for i, c in enumerate(of)]
    limits = rng.standard_normal(4) / 2
    expected = np.zeros((4, 5))
    for k in range(4):
        for c in range(5):
            both, either = 0, 0
            for n in range(5):
                if annotated[n, of[c]]:
                    above = enlarged(images[n, k], side) > limits[k]
                    both += (above & masks[n, c]).sum()
                    either += (above | masks[n, c]).sum()
            expected[k, c] = both / max(either, 1)
    concepts = InMemory(torch.from_numpy(images), masks, annotated, names)
    table = network.dissect(net(), LAYER, concepts, limits, batch_size=batch_size)
    np.testing.assert_allclose(table.iou, expected.max(1), rtol=1e-12)
    best = [names[c] if row[c] > 0 else ("none", "none") for row, c in zip(expected, expected.argmax(1), strict=True)]
    assert list(table[["category", "concept"]].fillna("none").itertuples(index=False, name=None)) == best


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.floats(0.001, 0.999), st.booleans())
def test_thresholds_are_exact_whatever_the_batches(seed, batch_size, quantile, tied):
    values = np.random.default_rng(seed).standard_normal((9, 2, 3, 5))
    values = np.round(2 * values) if tied else values
    stream = iter(torch.from_numpy(values).split(batch_size))
    found = network.thresholds(net(), LAYER, stream, total=9, quantile=quantile)
    flat = values.transpose(1, 0, 2, 3).reshape(2, -1)
    np.testing.assert_array_equal(found, np.quantile(flat, 1 - quantile, axis=1, method="inverted_cdf"))
    above = (flat > found[:, None]).mean(1)
    assert (above <= quantile).all()
    assert tied or (above > quantile - 1 / flat.shape[1]).all()


def test_the_share_above_is_the_quantile_where_it_can_be():
    values = torch.arange(1000.0).view(1, 1, 20, 50)
    for quantile in (0.005, 0.07, 0.29):  # 0.29 · 100 is below 29 in floating point
        (limit,) = network.thresholds(net(), LAYER, [values], total=1, quantile=quantile)
        assert (values > limit).sum() == round(1000 * quantile)


def test_thresholds_keep_the_type():
    for dtype in (torch.float32, torch.float64):
        limits = network.thresholds(net(), LAYER, [torch.rand(2, 3, 4, 4, dtype=dtype)], total=2)
        assert limits.dtype == str(dtype).removeprefix("torch.")


class Stream(InMemory):
    """Makes its batches when asked for, and notes how many of them are still held at that moment."""

    def __init__(self, count):
        names = [("kind", str(i)) for i in range(4)]
        super().__init__(np.empty(count), np.empty((count, 4, 8)), np.empty((count, 1)), names)
        self.alive, self.made = [], []

    def pictures(self, indices):
        self.note()
        images = torch.randn(len(indices), 3, 8, 8)
        self.made.append(weakref.ref(images))
        return images

    def mark(self, index, masks, annotated):
        masks[:, ::2], annotated[:] = True, True

    def note(self):
        self.alive.append(sum(ref() is not None for ref in self.made))


def test_a_batch_is_let_go_before_the_next(monkeypatch):
    outputs, copies, alive = [], [], []
    activations = network._activations

    def watched(*args):
        alive.append(sum(ref() is not None for ref in outputs + copies))
        found = activations(*args)
        copies.append(weakref.ref(found))
        return found

    class Doubled(nn.Module):
        def forward(self, x):
            out = torch.cat([x, x], dim=1)
            outputs.append(weakref.ref(out))
            return out

    monkeypatch.setattr(network, "_activations", watched)
    model, stream = nn.Sequential(Doubled(), nn.Flatten()), Stream(12)
    limits = network.thresholds(model, LAYER, stream.images(4), total=12)
    network.dissect(model, LAYER, stream, limits, batch_size=4)
    assert stream.alive == alive == [0] * 6
    assert len(outputs) == len(copies) == 6


@pytest.fixture(scope="module")
def shapes():
    return Drawn(datasets.create("shapes", "test", size=12, input_size=32))


@pytest.fixture
def compact():
    torch.manual_seed(0)
    return models.create("compact_resnet", num_classes=8, input_size=32).double()


def test_nothing_depends_on_the_batch_size(compact, shapes):
    tables = []
    for size in (3, 12):
        limits = network.thresholds(compact, "layer2", shapes.images(size), total=12)
        tables.append(network.dissect(compact, "layer2", shapes, limits, batch_size=size))
    pd.testing.assert_frame_equal(*tables)
    assert tables[0].iou.max() > 0
    assert len(tables[0]) == 32
    images, attacked = next(shapes.images(12)), next(shapes.images(12)) + 0.1
    found = [network.sensitivity(compact, "layer2", images, attacked, batch_size=size) for size in (3, 12)]
    np.testing.assert_allclose(*found, rtol=1e-9)
    again = network.sensitivity(compact, "layer2", images, attacked, batch_size=12)
    np.testing.assert_array_equal(again, found[1])


def test_sensitivity_is_that_of_a_plain_loop():
    x, other = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:2, 1] = 0  # a unit silent on two images
    norms = np.array([[np.linalg.norm(x[n, k].numpy()) for k in range(3)] for n in range(5)])
    expected = [
        np.mean([np.linalg.norm((other - x)[n, k].numpy()) / (norms[n, k] + 0.01 * norms.mean()) for n in range(5)])
        for k in range(3)
    ]
    np.testing.assert_allclose(network.sensitivity(net(), LAYER, x, other, batch_size=2), expected)


def test_sensitivity_of_a_known_change():
    x = torch.ones(4, 2, 3, 3)
    change = torch.tensor([0.5, 0.0]).view(2, 1, 1)
    np.testing.assert_allclose(network.sensitivity(net(), LAYER, x, x + change, epsilon=0), [0.5, 0])
    silent = network.sensitivity(net(), LAYER, torch.zeros(4, 2, 3, 3), torch.zeros(4, 2, 3, 3))
    assert silent.tolist() == [0, 0]


def test_association_by_hand():
    """Ranks of the IoUs 2, 1, 3, 4 against 1 to 4: ρ = 1 − 6 · 2/(4 · 15). Detectors 1, 3, 4 against 2."""
    found = network.association(np.array([1.0, 2, 3, 4]), np.array([0.1, 0.01, 0.2, 0.3]))
    expected = {"spearman": 0.8, "spearman_p": 0.2, "u": 2, "u_p": 1.0, "effect": 1 / 3, "detectors": 3, "others": 1}
    assert found == pytest.approx(expected)


def test_the_effect_has_the_sign_of_the_detectors():
    iou = np.array([0.5] * 4 + [0.0] * 4)
    assert network.association(np.arange(8.0), iou)["effect"] == -1
    found = network.association(-np.arange(8.0), iou)
    assert found["effect"] == 1
    assert found["u_p"] == pytest.approx(2 / math.comb(8, 4))  # the one order of all that is as extreme, twice


@pytest.mark.parametrize(
    ("sensitivity", "iou", "undefined"),
    [
        ([1, 2, 3, 4], [0.3, 0.2, 0.5, 0.1], {"u", "u_p", "effect"}),
        ([1, 2, 3, 4], [0.01, 0.02, 0.04, 0.0], {"u", "u_p", "effect"}),
        ([1, 1, 1, 1], [0.3, 0.2, 0.5, 0.0], {"spearman", "spearman_p"}),
        ([1, 2], [0.3, 0.0], {"spearman", "spearman_p"}),
        ([], [], {"spearman", "spearman_p", "u", "u_p", "effect"}),
    ],
)
def test_what_is_undefined_is_nan(sensitivity, iou, undefined):
    found = network.association(np.array(sensitivity, float), np.array(iou))
    assert {name for name, value in found.items() if math.isnan(value)} == undefined


def classifier():
    """Logits: the mean of each unit. Images of class c have a 1 in every place of unit c."""
    return net(head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))


def one_hot(classes):
    return nn.functional.one_hot(torch.tensor(classes), 3).double().view(-1, 3, 1, 1).expand(-1, -1, 2, 2).clone()


def pair(clean, attacked):
    return {"clean": clean, "attacked": attacked}


def test_masking_by_hand():
    """Attacked: unit 2 is raised above all. Without it all but the image of class 2 are back, which is lost clean too.
    An image without evidence goes to the first class."""
    images, targets = one_hot([2, 1, 0, 0]), torch.tensor([2, 1, 0, 0])
    attacked = images.clone()
    attacked[:, 2] = 2
    given_order = (classifier(), LAYER, np.array([2, 1, 0]), [0, 1 / 3, 0.5, 1], pair(images, attacked), targets)
    table = network.masked_accuracy(*given_order, draws=2, batch_size=3)
    assert list(table.columns) == ["layer", "share", "units", "masked", "draw", "top1_clean", "top1_attacked", "n"]
    assert (table.n == 4).all()
    ranked = table[table.masked == "sensitive"]
    assert ranked.units.tolist() == [0, 1, 2, 3]
    assert ranked.top1_clean.tolist() == [1, 0.75, 0.5, 0.5]
    assert ranked.top1_attacked.tolist() == [0.25, 0.75, 0.5, 0.5]
    drawn = table[table.masked == "random"]
    assert drawn.draw.tolist() == [0, 1] * 4
    assert drawn[drawn.units == 3].top1_attacked.tolist() == [0.5, 0.5]
    possible = {(1, 0.25), (0.75, 0.25), (0.75, 0.75)}  # without unit 0, 1 or 2
    assert set(drawn[drawn.units == 1][["top1_clean", "top1_attacked"]].itertuples(index=False, name=None)) <= possible


def test_random_masks_grow_and_follow_the_seed():
    images, targets = one_hot([0, 1, 2]), torch.tensor([0, 1, 2])
    run = partial(network.masked_accuracy, classifier(), LAYER, np.arange(3), [0.3, 0.6], pair(images, images), targets)
    first = run(draws=20)
    pd.testing.assert_frame_equal(first, run(draws=20, batch_size=1))
    assert not first.equals(run(draws=20, seed=1))
    drawn = first[first.masked == "random"].pivot(index="draw", columns="units", values="top1_clean")
    assert (drawn[2] <= drawn[1]).all()
    pd.testing.assert_frame_equal(first[first.draw < 3].reset_index(drop=True), run(draws=3))


def test_noise_of_equal_norm():
    images = torch.rand(4, 3, 5, 5, dtype=torch.float64)
    attacked = images + torch.rand(4, 1, 1, 1).mul(torch.tensor([0.0, 1, 5, 1]).view(4, 1, 1, 1))
    noisy = network.equal_norm_noise(images, attacked, seed=1)
    norms = [(x - images).flatten(1).norm(dim=1) for x in (noisy, attacked)]
    torch.testing.assert_close(*norms)
    assert torch.equal(noisy[0], images[0])
    assert torch.equal(network.equal_norm_noise(images[:2], attacked[:2], seed=1), noisy[:2])
    assert not torch.equal(network.equal_norm_noise(images, attacked, seed=2), noisy)
    cosine = nn.functional.cosine_similarity((noisy - images).flatten(1)[1], (noisy - images).flatten(1)[2], dim=0)
    assert abs(cosine) < 0.5


LAYERS = {
    "compact_vgg": ["features.2", "features.6", "features.10", "features.17"],
    "compact_resnet": ["layer1", "layer2", "layer3", "layer4"],
    "compact_densenet": ["features.denseblock1", "features.denseblock2"],
    "resnet20": ["layer1", "layer2", "layer3"],
    "vgg19": ["features.3", "features.8", "features.17", "features.26", "features.35"],
    "resnet50": ["layer1", "layer2", "layer3", "layer4"],
    "densenet121": [f"features.denseblock{i}" for i in (1, 2, 3, 4)],
    "alexnet": ["features.1", "features.4", "features.11"],
    "squeezenet1_1": ["features.1", "features.4", "features.7", "features.12"],
    "googlenet": ["conv1.bn", "conv3.bn", "inception3b", "inception4e", "inception5b"],
    "mobilenet_v2": ["features.17"],
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_the_stages(name):
    with torch.device("meta"):
        assert network.layers(models.create(name, num_classes=8)) == LAYERS[name]


@pytest.mark.parametrize("name", models.COMPACT)
def test_every_proposed_layer_can_be_dissected(name):
    model = models.create(name, num_classes=8, input_size=32)
    for layer in network.layers(model):
        limits = network.thresholds(model, layer, [torch.randn(1, 3, 32, 32)], total=1)
        assert limits.ndim == 1


def test_what_comes_next_may_work_in_place():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(inplace=True), nn.Flatten())
    nn.init.constant_(model[0].weight, -1)
    nn.init.zeros_(model[0].bias)
    assert network.thresholds(model, LAYER, [torch.ones(1, 1, 2, 2)], total=1).tolist() == [-1]


class Twice(nn.Module):
    """A layer that runs twice, one that never runs, one whose output is no map, and a NaN."""

    def __init__(self):
        super().__init__()
        self.again, self.unused, self.flat, self.pair = nn.Identity(), nn.Identity(), nn.Flatten(), nn.Module()
        self.norm, self.undefined = nn.BatchNorm2d(3), nn.Module()
        self.pair.forward, self.undefined.forward = lambda x: (x, x), lambda x: x / 0 * 0
        self.train()
        self.unused.eval()

    def forward(self, x):
        x = self.again(self.again(self.norm(x)))
        return self.flat(self.undefined(self.pair(x)[0]))[:, :2]


def state_of(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        torch.get_rng_state(),
        torch.is_grad_enabled(),
    )


def same(a, b):
    (state, *rest), (other, *others) = a, b
    equal = all(torch.equal(state[name], other[name]) for name in state)
    return equal and torch.equal(rest.pop(3), others.pop(3)) and rest == others


def calls(model, layer, images):
    concepts = InMemory(images, np.ones((len(images), 1, 4, 4), bool), np.ones((len(images), 1), bool), [("a", "b")])
    targets = torch.zeros(len(images), dtype=torch.long)
    return [
        lambda: network.thresholds(model, layer, [images], total=len(images)),
        lambda: network.dissect(model, layer, concepts, np.zeros(3)),
        lambda: network.sensitivity(model, layer, images, images),
        lambda: network.masked_accuracy(model, layer, np.arange(3), [0.5], pair(images, images), targets),
    ]


def test_the_model_is_given_back_as_it_came():
    model, images = Twice(), torch.randn(2, 3, 4, 4)
    before = state_of(model)
    for call in calls(model, "norm", images):
        call()
        assert same(before, state_of(model))


ERRORS = {
    "again": "must run exactly once in a forward pass",
    "unused": "must run in a forward pass",
    "flat": r"must be a tensor \(N, units, h, w\) \(got \(2, 48\)\)",
    "pair": r"must be a tensor \(N, units, h, w\) \(got tuple\)",
    "norn": "unknown layer 'norn': did you mean 'norm'",
}


@pytest.mark.parametrize("layer", ERRORS)
def test_a_layer_that_cannot_be_dissected_is_named(layer):
    model, images = Twice(), torch.randn(2, 3, 4, 4)
    before = state_of(model)
    for call in calls(model, layer, images):
        with pytest.raises(UserError, match=ERRORS[layer]):
            call()
        assert same(before, state_of(model))


def test_errors_inside_the_model_leave_no_trace():
    model, images = Twice(), torch.randn(2, 4, 4, 4)  # a channel too many
    before = state_of(model)
    for call in calls(model, "again", images):
        with pytest.raises(RuntimeError, match="running_mean"):
            call()
        assert same(before, state_of(model))


def test_activations_must_be_finite():
    for call in calls(Twice(), "undefined", torch.randn(2, 3, 4, 4))[:3]:
        with pytest.raises(UserError, match="activations of layer 'undefined' must be finite"):
            call()


def test_wrong_arguments_are_named():
    images, targets = torch.zeros(3, 2, 4, 4), torch.zeros(3, dtype=torch.long)
    model, masks = net(), partial(network.masked_accuracy, net(), LAYER)
    for total in (2, 4):
        with pytest.raises(UserError, match=rf"must hold total = {total} images \(got 3\)"):
            network.thresholds(model, LAYER, [images], total=total)
    with pytest.raises(UserError, match=r"total = 1 images \(got 0\)"):
        network.thresholds(model, LAYER, [], total=1)
    for quantile in (0, 1):
        with pytest.raises(UserError, match=rf"quantile must lie between 0 and 1 \(got {quantile}\)"):
            network.thresholds(model, LAYER, [images], total=3, quantile=quantile)
    concepts = InMemory(images, np.ones((3, 1, 4, 4), bool), np.ones((3, 1), bool), [("a", "b")])
    with pytest.raises(UserError, match=r"thresholds must be \(2,\), one a unit \(got 3\)"):
        network.dissect(model, LAYER, concepts, np.zeros(3))
    for call in (partial(network.sensitivity, model, LAYER), partial(network.equal_norm_noise, seed=0)):
        with pytest.raises(
            UserError, match=r"must share a shape \(N, C, H, W\) \(got \(3, 2, 4, 4\) and \(2, 2, 4, 4\)"
        ):
            call(images, images[:2])
    with pytest.raises(UserError, match=r"must be \(units,\) both \(got \(3,\) and \(2,\)\)"):
        network.association(np.zeros(3), np.zeros(2))
    with pytest.raises(UserError, match=r"order must hold each unit from 0 to 1 once \(got \[1, 1\]"):
        masks(np.array([1, 1]), [0.5], pair(images, images), targets)
    with pytest.raises(UserError, match=r"order must hold the 2 units of layer '0' \(got 3\)"):
        masks(np.arange(3), [0.5], pair(images, images), targets)
    with pytest.raises(UserError, match=r"shares must lie in \[0, 1\] \(got 5\)"):
        masks(np.arange(2), [0.5, 5], pair(images, images), targets)
    with pytest.raises(UserError, match=r"targets must be \(3,\), one an image \(got \(2,\)\)"):
        masks(np.arange(2), [0.5], pair(images, images), targets[:2])

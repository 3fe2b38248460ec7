"""What a part of the image carries: in closed form on an additive model, and by hiding parts one by one."""

import pytest
import torch
from torch import nn

from attacks import Location, Recipe, manipulate
from attacks.errors import UserError
from benchmark import interpreters

pytestmark = pytest.mark.filterwarnings("ignore:You are providing multiple inputs")


@pytest.fixture
def setting():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 9 * 12, 3)).double()
    return model, torch.randn(2, 2, 9, 12, dtype=torch.double), torch.tensor([2, 0])


def contributions(model, images, targets):
    """Weight times value of each pixel, both channels together: what hiding it takes from the logit. (N, 9, 12)."""
    return (model[1].weight[targets].view_as(images) * images).sum(1).detach()


@pytest.mark.parametrize("name", ["feature_ablation", "kernel_shap"])
def test_cells_of_an_additive_model_carry_their_sum(name, setting):
    options = {"samples": 40} if name == "kernel_shap" else {}
    got = interpreters.create(name, cells=3, **options).attribute(*setting)
    blocks = contributions(*setting).view(2, 3, 3, 3, 4).sum((2, 4))
    expected = blocks.repeat_interleave(3, 1).repeat_interleave(4, 2)
    tolerance = 1e-3 if name == "kernel_shap" else 1e-9  # Captum's regression is in float32
    torch.testing.assert_close(got, expected[:, None].expand_as(got), rtol=tolerance, atol=tolerance)


def test_cells_of_a_side_that_does_not_divide_differ_by_one_pixel(setting):
    got = interpreters.create("feature_ablation", cells=5).attribute(*setting)[0, 0]
    _, rows = torch.unique_consecutive(got, dim=0, return_counts=True)
    _, columns = torch.unique_consecutive(got, dim=1, return_counts=True)
    assert sorted(rows.tolist()) == [1, 2, 2, 2, 2]
    assert sorted(columns.tolist()) == [2, 2, 2, 3, 3]


def test_occlusion_is_the_mean_effect_of_the_windows_that_hide_a_pixel(setting):
    model, images, targets = setting
    got = interpreters.create("occlusion", cells=3).attribute(*setting)
    effect, hidden = torch.zeros(2, 9, 12, dtype=torch.double), torch.zeros(9, 12)
    logits = model(images).gather(1, targets[:, None])[:, 0]
    for row in (0, 2, 4):  # 9 // 4 = 2 pixels a step, 9 − 2 · 2 = 5 pixels a window
        for column in (0, 3, 6):  # 12 // 4 = 3 and 12 − 2 · 3 = 6
            window = (..., slice(row, row + 5), slice(column, column + 6))
            covered = images.clone()
            covered[window] = 0
            effect[window] += (logits - model(covered).gather(1, targets[:, None])[:, 0]).detach()[:, None, None]
            hidden[window] += 1
    assert hidden.min() == 1
    torch.testing.assert_close(got, (effect / hidden)[:, None].expand_as(got), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", [32, 50, 224])
@pytest.mark.parametrize("name", ["occlusion", "feature_ablation"])
def test_the_default_grid_costs_64_passes(name, side):
    class Counted(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x.mean((2, 3))

    model = Counted()
    interpreters.create(name).attribute(model, torch.ones(1, 1, side, side), torch.tensor([0]))
    assert model.calls == 64 + 2  # the whole image: for Captum, and for the logits


def test_kernel_shap_draws_the_same_cells_for_every_image_from_its_seed(setting):
    model, images, targets = setting
    model = nn.Sequential(model, nn.Sigmoid())  # not additive: the sets of cells matter

    def maps(rows, seed):
        return interpreters.create("kernel_shap", cells=3, samples=12, seed=seed).attribute(
            model, images[rows], targets[rows]
        )

    assert torch.equal(maps([0, 1], 0)[1:], maps([1], 0))
    assert not torch.allclose(maps([1], 0), maps([1], 1))


def test_what_counts_against_the_label_is_no_evidence_for_it(setting):
    heatmaps = interpreters.create("feature_ablation", cells=3)(*setting)
    blocks = contributions(*setting).view(2, 3, 3, 3, 4).sum((2, 4)).relu()
    expected = blocks.repeat_interleave(3, 1).repeat_interleave(4, 2)
    assert (blocks == 0).any()
    torch.testing.assert_close(heatmaps, expected / expected.amax((1, 2), keepdim=True))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("occlusion", {"cells": 3}),
        ("occlusion_contrast", {"cells": 4}),
        ("feature_ablation", {"cells": 5}),
        ("kernel_shap", {"cells": 3, "samples": 40}),
        ("kernel_shap", {"cells": 3, "samples": 11, "seed": 5, "target": "contrast"}),  # as few as may be
    ],
)
def test_the_map_with_a_graph_is_captums(name, options, setting, monkeypatch):
    model, images, targets = setting
    model, interpreter = nn.Sequential(model, nn.Tanh()), interpreters.create(name, **options)  # not additive
    got = interpreter.attribute(model, images, targets)
    assert got.requires_grad
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # Captum's regression, and occlusion's quotient
    with torch.no_grad():
        expected = interpreter.attribute(model, images, targets)
    torch.testing.assert_close(got.detach(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["occlusion", "occlusion_contrast", "feature_ablation", "kernel_shap"])
def test_an_attack_has_a_coarser_grid_and_never_a_finer_one(name):
    whole = interpreters.create(name)
    attacked = whole.in_attack()
    assert type(attacked) is type(whole)
    assert attacked.target == whole.target
    assert 2 < attacked.cells < whole.cells
    small = {"cells": 2, "samples": 6} if name == "kernel_shap" else {"cells": 2}
    small = interpreters.create(name, **small)
    assert small.in_attack().cells == small.cells
    if name == "kernel_shap":
        assert (attacked.samples, attacked.seed, small.in_attack().samples) == (48, None, 6)


def test_kernel_shap_of_no_seed_draws_anew_from_the_global_generator(setting):
    model, images, targets = setting
    interpreter = interpreters.create("kernel_shap", cells=3, samples=12, seed=None)
    model = nn.Sequential(model, nn.Tanh())

    def two():
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return [interpreter.attribute(model, images, targets) for _ in range(2)]

    (first, second), (again, _) = two(), two()
    assert torch.equal(first, again)
    assert not torch.allclose(first, second)
    with torch.no_grad():
        torch.testing.assert_close(two()[0], first.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["occlusion", "kernel_shap"])
def test_it_can_be_attacked(name):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 3)]
    batch = (torch.randn(4, 3, 12, 12), torch.tensor([0, 1, 2, 0]))
    model = nn.Sequential(*layers)
    interpreter = interpreters.create(name, cells=3, **({"samples": 64} if name == "kernel_shap" else {}))
    recipe = Recipe(1e-2, 100.0, 10)
    result = manipulate(model, interpreter.in_attack(), Location(), [batch], recipe, progress=False)

    def loss(model):
        with torch.no_grad():
            maps = interpreter(model, *batch)
        return Location().loss(maps, maps).item()

    assert result.status == "done"
    assert loss(result.model) < 0.95 * loss(model)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("occlusion", {"cells": 1}, "cells of occlusion must be 2.."),
        ("feature_ablation", {"cells": 10}, "at most the image's side"),
        ("occlusion", {"cells": 10}, "at most the image's side"),
        ("kernel_shap", {"samples": 65}, "at least cells² \\+ 2 = 66"),
    ],
)
def test_a_grid_that_does_not_fit_is_one_clear_line(name, options, message, setting):
    with pytest.raises(UserError, match=message):
        interpreters.create(name, **options)(*setting)

"""Controls owe nothing to the model: each map in closed form."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from attacks.errors import UserError
from benchmark import interpreters

CONTROLS = ["constant", "random", "centre_prior", "sobel", "input_magnitude"]
MODEL = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 8, 4))


def maps(name, images, **options):
    return interpreters.create(name, **options)(MODEL, images, torch.zeros(len(images), dtype=torch.long))


@pytest.fixture
def images():
    return torch.randn(3, 3, 6, 8, generator=torch.Generator().manual_seed(0))


def test_only_these_are_controls():
    assert [name for name in interpreters.names() if interpreters.kind(name).control] == CONTROLS


@pytest.mark.parametrize("name", CONTROLS)
def test_the_model_counts_for_its_logits_alone(name, images):
    other = nn.Sequential(nn.Flatten(), nn.Linear(3 * 6 * 8, 4))
    targets = torch.tensor([0, 1, 3])
    logits, heatmaps = interpreters.create(name).with_logits(other, images, targets)
    assert torch.equal(logits, other(images))
    assert torch.equal(heatmaps, interpreters.create(name)(MODEL, images, targets))


def test_constant_is_one_everywhere(images):
    assert torch.equal(maps("constant", images), torch.ones(3, 6, 8))


def test_random_is_one_map_of_its_seed_for_every_image(images):
    first = maps("random", images)
    assert torch.equal(first, maps("random", images[:1]).expand(3, -1, -1))
    assert first[0].unique().numel() == 48
    assert not torch.equal(first, maps("random", images, seed=1))


def test_centre_prior_is_a_gaussian(images):
    attribution = interpreters.create("centre_prior", sigma=0.5).attribute(MODEL, images, torch.zeros(3).long())
    row, column = (0 + 0.5) / 6 - 0.5, (7 + 0.5) / 8 - 0.5
    assert attribution[1, 0, 0, 7].item() == pytest.approx(math.exp(-(row**2 + column**2) / (2 * 0.5**2)))
    heatmap = maps("centre_prior", images)[0]
    torch.testing.assert_close(heatmap, heatmap.flip(0, 1))
    assert heatmap[2:4, 3:5].min() > 0.999
    with pytest.raises(UserError, match="sigma of centre_prior must be greater than 0"):
        interpreters.create("centre_prior", sigma=0.0)


def test_sobel_is_scipys(images):
    got = interpreters.create("sobel").attribute(MODEL, images, torch.zeros(3).long())
    for image, edges in zip(images.numpy(), got.numpy(), strict=True):
        for plane, expected in zip(image, edges, strict=True):
            across, down = (ndimage.sobel(plane, axis, mode="nearest") for axis in (0, 1))
            np.testing.assert_allclose(np.hypot(across, down), expected, rtol=1e-4, atol=1e-5)


def test_input_magnitude_is_the_sum_of_absolute_values(images):
    total = images.abs().sum(1)
    low, high = total.amin((1, 2), keepdim=True), total.amax((1, 2), keepdim=True)
    torch.testing.assert_close(maps("input_magnitude", images), (total - low) / (high - low))

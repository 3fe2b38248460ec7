"""The geometry of heatmaps: each function against maps whose answer is known by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.heatmaps import blank, border, centre_of_mass, divide_by_max, min_max, top_pixels


def random_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_min_max_spans_zero_to_one_and_keeps_the_order():
    maps = torch.tensor([[[-2.0, 0.0], [2.0, 6.0]], [[1.0, 2.0], [3.0, 5.0]]])
    assert min_max(maps).tolist() == [[[0, 0.25], [0.5, 1]], [[0, 0.25], [0.5, 1]]]


@pytest.mark.parametrize("level", [0.0, 3.5, -2.0])
def test_min_max_of_a_constant_map_is_zero_and_leaves_its_neighbours_alone(level: float):
    maps = torch.stack([torch.full((3, 3), level), torch.arange(9.0).view(3, 3)])
    scaled = min_max(maps)
    assert scaled[0].tolist() == torch.zeros(3, 3).tolist()
    assert scaled[1].flatten().tolist() == pytest.approx([i / 8 for i in range(9)])


def test_divide_by_max_keeps_zero_at_zero():
    maps = torch.tensor([[[0.0, 1.0], [2.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert divide_by_max(maps).tolist() == [[[0, 0.25], [0.5, 1]], [[0, 0], [0, 0]]]


@pytest.mark.parametrize("normalise", [min_max, divide_by_max])
def test_normalisation_is_differentiable_also_where_a_map_is_constant(normalise):
    maps = random_maps(2, 3, 4).exp().requires_grad_()
    assert torch.autograd.gradcheck(normalise, maps)
    constant = torch.zeros(1, 3, 3, requires_grad=True)
    normalise(constant).sum().backward()
    assert constant.grad.isfinite().all()


@pytest.mark.parametrize(
    ("height", "width", "ones"),
    [
        (7, 7, 49 - 25),
        (14, 14, 196 - 100),
        (13, 13, 169 - 121),
        (7, 14, 98 - 5 * 10),
        (21, 7, 147 - 15 * 5),
        (6, 6, 20),
    ],
)
def test_border_is_a_seventh_of_each_side_wide(height: int, width: int, ones: int):
    mask = border(torch.zeros(2, height, width))
    assert mask.shape == (height, width)
    assert mask.sum() == ones
    top, left = max(1, height // 7), max(1, width // 7)
    assert mask[top : height - top, left : width - left].sum() == 0
    assert torch.equal(mask, mask.flip(0))
    assert torch.equal(mask, mask.flip(1))


def test_border_takes_the_type_of_the_maps_and_needs_no_image():
    assert border(torch.zeros(0, 7, 7, dtype=torch.float64)).dtype == torch.float64


def test_top_pixels_are_the_highest():
    mask = top_pixels(torch.arange(100.0).view(1, 10, 10), 0.1)
    assert mask.flatten().nonzero().flatten().tolist() == list(range(90, 100))


def test_among_equal_pixels_the_first_are_taken():
    maps = torch.zeros(2, 3, 4)
    maps[1, 2, 3] = 1
    assert top_pixels(maps, 0.25).flatten(1).nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 11]]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.001, 1))
def test_the_number_of_top_pixels_is_the_fraction_and_never_none(height: int, width: int, fraction: float):
    maps = random_maps(3, height, width).round()  # with ties
    mask = top_pixels(maps, fraction)
    assert mask.flatten(1).sum(1).tolist() == [max(1, round(fraction * height * width))] * 3
    for chosen, values in zip(mask, maps, strict=True):
        assert chosen.all() or values[chosen].min() >= values[~chosen].max()


def test_centre_of_mass_of_a_point_is_the_point():
    maps = torch.zeros(3, 5, 8)
    maps[0, 0, 0], maps[1, 4, 7], maps[2, 1, 6] = 1, 0.5, 9
    assert centre_of_mass(maps).tolist() == [[0, 0], [4, 7], [1, 6]]


def test_centre_of_mass_weighs_by_value():
    two = torch.zeros(1, 4, 4)
    two[0, 0, 0], two[0, 3, 1] = 1, 3
    assert centre_of_mass(two).tolist() == [[3 * 3 / 4, 3 * 1 / 4]]
    assert centre_of_mass(torch.ones(1, 5, 3)).tolist() == [[2, 1]]


def test_a_map_without_mass_has_no_centre():
    assert centre_of_mass(torch.zeros(1, 3, 3)).isnan().all()


def test_a_constant_map_is_blank():
    maps = torch.stack([torch.zeros(3, 3), torch.full((3, 3), 0.7), torch.arange(9.0).view(3, 3), torch.zeros(3, 3)])
    maps[3, 1, 1] = torch.nan
    assert blank(maps).tolist() == [True, True, False, False]

"""Foolings against values computed by hand, and what blank maps, undefined losses and bad shapes do."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import Active, CenterMass, Location, TopK, foolings
from attacks.errors import UserError
from attacks.foolings import FOOLINGS

ALL = pytest.mark.parametrize("fooling", [kind() for kind in FOOLINGS.values()], ids=list(FOOLINGS))


def random_maps(fooling: foolings.Fooling, seed: int, n: int = 3, side: int = 8) -> torch.Tensor:
    shape = (n, 2, side, side) if fooling.pairs else (n, side, side)
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def point(row: int, column: int, height: int = 7, width: int = 7) -> torch.Tensor:
    maps = torch.zeros(1, height, width)
    maps[0, row, column] = 1
    return maps


@ALL
def test_a_fooling_is_made_by_its_name_with_a_range_inside_its_scale(fooling):
    assert foolings.create(fooling.name) == fooling
    assert foolings.names() == list(FOOLINGS)
    low, high = fooling.range
    assert low < high
    assert fooling.success(torch.tensor([low, high, low - 0.01, high + 0.01, math.nan])).tolist() == [
        *(True, True, False, False, False)
    ]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown fooling 'locaton': did you mean 'location'\? allowed: active, "):
        foolings.create("locaton")


@ALL
def test_the_training_loss_has_the_derivative_that_differences_give(fooling):
    heatmaps, originals = random_maps(fooling, 0, side=5).requires_grad_(), random_maps(fooling, 1, side=5)
    assert torch.autograd.gradcheck(lambda h: fooling.loss(h, originals), heatmaps)


@ALL
def test_the_originals_get_no_gradient(fooling):
    heatmaps, originals = random_maps(fooling, 0).requires_grad_(), random_maps(fooling, 1).requires_grad_()
    fooling.loss(heatmaps, originals).backward()
    assert heatmaps.grad.abs().sum() > 0
    assert originals.grad is None


@ALL
def test_test_losses_are_per_image(fooling):
    heatmaps, originals = random_maps(fooling, 0), random_maps(fooling, 1)
    losses = fooling.test_loss(heatmaps, originals)
    assert losses.shape == ((3, 2) if fooling.pairs else (3,))
    alone = [fooling.test_loss(h[None], o[None])[0] for h, o in zip(heatmaps, originals, strict=True)]
    assert torch.equal(losses, torch.stack(alone))


@ALL
def test_shapes_that_do_not_fit_are_named(fooling):
    maps = random_maps(fooling, 0)
    wanted = r"\(N, 2, h, w\)" if fooling.pairs else r"\(N, h, w\)"
    with pytest.raises(UserError, match=f"heatmaps for {fooling.name} must be {wanted}"):
        fooling.loss(maps[None], maps[None])
    if fooling.pairs:
        with pytest.raises(UserError, match=r"got \(3, 3, 8, 8\)"):
            fooling.test_loss(maps.new_zeros(3, 3, 8, 8), maps.new_zeros(3, 3, 8, 8))
    if fooling.needs_originals:
        with pytest.raises(UserError, match=r"one shape \(got \(3, .*8, 8\) and \(2, .*8, 8\)\)"):
            fooling.test_loss(maps, maps[:2])


def test_location_is_the_squared_distance_to_the_border():
    blank, ones, target = torch.zeros(1, 7, 7), torch.ones(1, 7, 7), torch.ones(1, 7, 7)
    target[:, 1:6, 1:6] = 0
    half = target / 2
    losses = Location().test_loss(torch.cat([blank, ones, target, half]), torch.zeros(4, 7, 7))
    assert losses.tolist() == pytest.approx([24 / 49, 25 / 49, 0, 24 / 49 / 4])
    assert Location().success(losses).tolist() == [False, False, True, True]
    assert Location().loss(torch.cat([blank, target]), blank).item() == pytest.approx(12 / 49)


def test_top_k_is_the_mean_square_over_the_originals_highest_tenth():
    original = torch.arange(100.0).view(1, 10, 10)
    same, reversed_, mixed = original / 7 + 3, 99 - original, torch.zeros(1, 10, 10)
    mixed[0, 9, :2], mixed[0, 0, 0] = 2, 4  # of the ten highest pixels two are at half the maximum
    expected = [sum((i / 99) ** 2 for i in range(90, 100)) / 10, sum((i / 99) ** 2 for i in range(10)) / 10, 0.05]
    losses = TopK().test_loss(torch.cat([same, reversed_, mixed]), original.expand(3, 10, 10))
    assert losses.tolist() == pytest.approx(expected)
    assert TopK().success(losses).tolist() == [False, True, True]
    assert TopK(fraction=0.01).test_loss(mixed, original).item() == 0  # the highest pixel alone


@pytest.mark.parametrize(
    ("place", "loss", "test_loss"),
    [((6, 6), -12, 1), ((0, 3), -3, math.sqrt(9 / 2) / 6), ((0, 0), 0, 0), ((1, 2), -3, math.sqrt(5 / 2) / 6)],
)
def test_center_mass_measures_the_shift_of_the_centre(place, loss, test_loss):
    fooling, heatmaps, originals = CenterMass(), 5 * point(*place) + 1, point(0, 0)  # min-max takes 5 h + 1 back to h
    assert fooling.loss(heatmaps, originals).item() == pytest.approx(loss)
    losses = fooling.test_loss(heatmaps, originals)
    assert losses.tolist() == pytest.approx([test_loss])
    assert fooling.success(losses).tolist() == [test_loss >= 0.1]


def test_on_a_map_that_is_not_square_each_direction_counts_by_its_own_side():
    assert CenterMass().test_loss(point(2, 4, 3, 5), point(0, 0, 3, 5)).tolist() == pytest.approx([1])
    assert CenterMass().test_loss(point(2, 0, 3, 5), point(0, 0, 3, 5)).tolist() == pytest.approx([math.sqrt(0.5)])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(2, 9))
def test_the_normalised_shift_lies_between_none_and_all(seed: int, height: int, width: int):
    maps = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(seed)).pow(3)
    losses = CenterMass().test_loss(*maps)
    assert ((losses >= 0) & (losses <= 1)).all()


def test_active_is_half_the_squared_distances_to_each_others_map():
    heatmaps = torch.stack([torch.full((2, 2), 0.5), torch.full((2, 2), 1.0)])[None]
    originals = torch.stack([torch.full((2, 2), 0.8), torch.full((2, 2), 0.1)])[None]
    assert Active().loss(heatmaps, originals).item() == pytest.approx((0.4**2 + 0.2**2) / 2)
    assert Active().loss(originals.flip(1), originals).item() == 0


def test_active_scores_by_spearman_against_either_class():
    ramp = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    swapped_end, swapped_both = torch.tensor([[1.0, 2.0], [4.0, 3.0]]), torch.tensor([[2.0, 1.0], [4.0, 3.0]])
    originals = torch.stack([ramp, ramp.flip(0, 1)])[None]  # the second runs backwards: correlation -1
    cases = {
        "swapped": (originals.flip(1), [2, 2]),
        "unchanged": (originals, [-2, -2]),
        "partly": (torch.stack([swapped_end, swapped_both])[None], [-0.8 - 0.8, 0.6 + 0.6]),  # ranks: 1 - 6 Σd²/60
    }
    for heatmaps, expected in cases.values():
        losses = Active().test_loss(heatmaps, originals)
        assert losses[0].tolist() == pytest.approx(expected)
        assert Active().success(losses)[0].tolist() == [value >= 0.5 for value in expected]


def test_what_has_no_centre_or_no_order_is_undefined_and_not_fooled():
    blank, pair = torch.zeros(1, 7, 7), torch.stack([point(0, 0)[0], point(3, 3)[0]])[None]
    for fooling, heatmaps, originals in [
        (CenterMass(), blank, point(0, 0)),
        (CenterMass(), point(0, 0), blank),
        (Active(), torch.zeros_like(pair), pair),
        (Active(), pair, torch.ones_like(pair)),
        (Location(), torch.full_like(blank, torch.nan), blank),
        (TopK(), torch.full_like(blank, torch.nan), point(0, 0)),
    ]:
        losses = fooling.test_loss(heatmaps, originals)
        assert losses.isnan().all()
        assert not fooling.success(losses).any()


def test_a_blank_map_shows_nothing_at_the_originals_top_pixels():
    assert TopK().test_loss(torch.ones(1, 7, 7), point(2, 2)).tolist() == [0]


def test_blank_maps_in_a_batch_neither_move_nor_break_center_mass():
    heatmaps = torch.cat([point(3, 0), torch.zeros(1, 7, 7)]).requires_grad_()
    loss = CenterMass().loss(heatmaps, point(0, 0).expand(2, 7, 7))
    loss.backward()
    assert loss.item() == pytest.approx(-3 / 2)
    assert heatmaps.grad.isfinite().all()
    assert heatmaps.grad[1].abs().sum() == 0
    only_blank = torch.zeros(2, 7, 7, requires_grad=True)
    assert CenterMass().loss(only_blank, heatmaps).requires_grad

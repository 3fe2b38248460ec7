"""Promotion and suppression of cells on networks whose answer is known, and against a loop over images and cells."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pointbiserialr, rankdata, spearmanr
from torch import Tensor, nn

from attacks.errors import UserError
from benchmark.dissection import promotion
from benchmark.dissection.promotion import (
    BALANCED,
    INACTIVE,
    LEFT_OUT,
    PROMOTION,
    PSR,
    SUPPRESSION,
    TYPES,
    cell_means,
    cells,
    evidence,
    evidence_correlation,
    interpretability_score,
    norm_share,
    promotion_suppression,
    random_baseline,
    reaches,
    refine,
    shares,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


class Means(nn.Module):
    """Class c is the mean of channel c over the image, times 32: each pixel adds to it by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return 32 * x.relu().mean((2, 3))


class Net(nn.Module):
    """Two convolutions, ReLU, BatchNorm and three classes, in float64 and training mode; counts what it is given."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
            self.head = nn.Linear(6, 3)
        self.double().train()
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return self.head(self.norm(self.conv(x).relu()).square().mean((2, 3)))


class Negative(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return -self.model(x)


def setting(n: int = 3, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """A network, images of 5 × 7 (cells of 2: three by four), δ with a blank cell, and both labels."""
    delta = 0.4 * (random(n, 3, 5, 7, seed=seed + 1) - 0.5)
    delta[:, :, 2:4, 2:4] = 0
    labels = torch.arange(n) % 3
    return Net(), random(n, 3, 5, 7, seed=seed), delta, labels, (labels + 1) % 3


def test_cells_are_numbered_row_by_row_and_the_last_are_smaller():
    assert cells(5, 4, 2).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2 + [[4, 4, 5, 5]]
    assert cells(3, 4, 3).tolist() == [[0, 0, 0, 1]] * 3
    assert cells(2, 3, 3).unique().tolist() == [0]
    for wrong in (0, 4):
        with pytest.raises(UserError, match=rf"cell must be 1 to 3 pixels, the image's longer side \(got {wrong}\)"):
            cells(2, 3, wrong)


def test_each_type_by_hand():
    """Cells of 2 × 2 of 4 × 8 pixels; channels 0 and 1 are those of t0 and t. A cell changed by a adds 4 a."""
    changes = [
        (-0.25, 0.0625),
        (-0.125, 0.5),
        (-0.25, 0.25),
        (0.25, -0.25),
        (0, 0),
        (-0.25, 0),
        (0, 0.25),
        (-0.125, 0.25),
    ]
    delta, numbers = torch.zeros(1, 3, 4, 8), cells(4, 8, 2)
    for k, change in enumerate(changes):
        for channel, value in enumerate(change):
            delta[0, channel, numbers == k] = value
    delta[0, 2, numbers == 3] = 0.5  # a third class gains
    images, (zero, one) = torch.full((1, 3, 4, 8), 0.5), torch.arange(2).split(1)
    psr = promotion_suppression(Means(), images, delta, zero, one, 2, batch_size=4)
    names = ["suppression", "promotion", "balanced", "inactive", "left out", "suppression", "promotion", "balanced"]
    assert [TYPES[t] for t in psr.type[0]] == names
    expected = [-2, 2, 0, math.nan, math.nan, -10, 10, 1]  # at 1 it is still balanced
    np.testing.assert_array_equal(psr.value[0], expected)
    np.testing.assert_array_equal(psr.suppression[0], [1, 0.5, 1, 0, math.nan, 1, 0, 0.5])
    np.testing.assert_array_equal(psr.promotion[0], [0.25, 2, 1, 0, math.nan, 0, 1, 1])
    assert shares(psr.type).tolist() == [[2 / 7, 2 / 7, 2 / 7, 1 / 7]]
    # ReLU cuts what goes below zero: channel 0 falls by 0.125, not by 0.5, and PSR is log₂(0.25 / 0.125) = 1
    dark, change = torch.full((1, 3, 4, 8), 0.125), torch.zeros(1, 3, 4, 8)
    change[0, :2, :2, :2] = torch.tensor([-0.5, 0.25])[:, None, None]
    assert promotion_suppression(Means(), dark, change, zero, one, 2, batch_size=4).value[0, 0] == 1


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_it_is_the_loop_over_images_and_cells(batch_size: int):
    model, images, delta, true, target = setting()
    got = promotion_suppression(model, images, delta, true, target, 2, batch_size=batch_size)
    assert max(model.batches) <= batch_size
    assert sum(model.batches) == 3 + 3 * 11, "x', and every cell but the blank one"
    model.eval()
    numbers = cells(5, 7, 2)
    with torch.no_grad():
        for n in range(3):
            whole = model(images[n : n + 1] + delta[n : n + 1])[0]
            for k in range(12):
                less = delta[n : n + 1].clone()
                less[:, :, numbers == k] = 0
                if k == 5:
                    assert got.type[n, k] == LEFT_OUT
                    assert got.value[n, k].isnan()
                    continue
                z = model(images[n : n + 1] + less)[0]
                s, p = max(0.0, float(z[true[n]] - whole[true[n]])), max(0.0, float(whole[target[n]] - z[target[n]]))
                assert float(got.suppression[n, k]) == pytest.approx(s, abs=1e-12)
                assert float(got.promotion[n, k]) == pytest.approx(p, abs=1e-12)
                rise = float((z - z.mean())[true[n]] - (whole - whole.mean())[true[n]])
                fall = float((whole - whole.mean())[target[n]] - (z - z.mean())[target[n]])
                assert float(got.contrast.suppression[n, k]) == pytest.approx(max(0.0, rise), abs=1e-12)
                assert float(got.contrast.promotion[n, k]) == pytest.approx(max(0.0, fall), abs=1e-12)
                if s == p == 0:
                    assert got.type[n, k] == INACTIVE
                    continue
                psr = -10 if p == 0 else 10 if s == 0 else min(10, max(-10, math.log2(p / s)))
                assert float(got.value[n, k]) == pytest.approx(psr, abs=1e-6)
                assert got.type[n, k] == (SUPPRESSION if psr < -1 else PROMOTION if psr > 1 else BALANCED)
    assert len(got.type.unique()) >= 4


def test_a_shift_of_the_head_moves_the_logits_psr_and_not_the_contrasts():
    """W + 1vᵀ: no probability changes."""
    model, images, *rest = setting()
    twin = Net()
    with torch.no_grad():
        twin.head.weight += 2 * random(6, seed=8) - 1
    torch.testing.assert_close(twin.eval()(images).softmax(1), model.eval()(images).softmax(1))
    plain, shifted = (promotion_suppression(each, images, *rest, 2, batch_size=16) for each in (model, twin))
    for name in ("value", "promotion", "suppression", "type"):
        of = (getattr(plain.contrast, name), getattr(shifted.contrast, name))
        torch.testing.assert_close(*of, atol=1e-8, rtol=0, equal_nan=True)
    assert (plain.value - shifted.value).nan_to_num().abs().max() > 5
    assert not torch.equal(plain.type, shifted.type)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_negated_logits_and_exchanged_classes_negate_it(seed: int):
    model, images, delta, true, target = setting(seed=seed)
    there = promotion_suppression(model, images, delta, true, target, 2, batch_size=16)
    back = promotion_suppression(Negative(model), images, delta, target, true, 2, batch_size=16)
    torch.testing.assert_close(back.value, -there.value, equal_nan=True)
    torch.testing.assert_close(back.promotion, there.suppression, equal_nan=True)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_where_cells_add_up_the_way_back_is_the_opposite(seed: int):
    """From x' by −δ to x, from t to t0."""
    _, images, delta, true, target = setting(seed=seed)
    there = promotion_suppression(Means(), images + 1, delta, true, target, 2, batch_size=16)
    back = promotion_suppression(Means(), images + 1 + delta, -delta, target, true, 2, batch_size=16)
    torch.testing.assert_close(back.value, -there.value, equal_nan=True)
    assert there.value.isfinite().any()


@given(order=st.permutations(range(4)), batch_size=st.integers(1, 60))
@settings(max_examples=10, deadline=None)
def test_images_stand_for_themselves_in_any_order_and_batch(order: list[int], batch_size: int):
    model, *tensors = setting(4)
    whole = promotion_suppression(model, *tensors, 2, batch_size=60)
    got = promotion_suppression(model, *(t[order] for t in tensors), 2, batch_size=batch_size)
    assert torch.equal(got.type, whole.type[order])
    torch.testing.assert_close(got.value, whole.value[order], equal_nan=True)


def test_cells_of_less_than_a_hundredth_of_the_largest_are_left_out():
    delta = torch.zeros(2, 3, 2, 6)
    delta[0, 1, 0] = torch.tensor([1.0, 0, 0.0099, 0, 0.0101, 0])
    delta[1, 1, 0, 0] = 1e-6  # relative to its own image
    labels = torch.zeros(2, dtype=torch.long)
    psr = promotion_suppression(Means(), torch.zeros(2, 3, 2, 6), delta, labels, labels + 1, 2, batch_size=8)
    assert (psr.type != LEFT_OUT).tolist() == [[True, False, True], [True, False, False]]
    blank = promotion_suppression(Means(), delta, 0 * delta, labels, labels + 1, 2, batch_size=8)
    assert (blank.type == LEFT_OUT).all()
    assert shares(blank.type).isnan().all()


class Steps(nn.Module):
    """Logits near 100 in single precision: `size` times the mean, rounded."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return (100 + self.size * x.float().mean((2, 3))).float()


def test_what_rounding_could_make_is_no_effect():
    labels = torch.zeros(1, dtype=torch.long)
    images, delta = torch.zeros(1, 2, 2, 4), torch.full((1, 2, 2, 4), 0.5)
    for size, kind in ((1e-3, INACTIVE), (1.0, PROMOTION)):
        psr = promotion_suppression(Steps(size), images, delta, labels, labels + 1, 2, batch_size=8)
        assert (psr.type == kind).all()
    exact = promotion_suppression(Means(), images.double(), delta.double(), labels, labels + 1, 2, batch_size=8)
    assert (exact.type == PROMOTION).all()


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_given_back_as_it_came(fails: bool):
    model, images, delta, true, target = setting()
    model.conv.eval()
    modes, state = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    flags, rng = [p.requires_grad for p in model.parameters()], torch.get_rng_state()
    before = images.clone(), delta.clone()
    if fails:
        with pytest.raises(UserError, match=r"labels must lie in 0..2 \(got 0..7\)"):
            promotion_suppression(model, images, delta, true, target + 5, 2, batch_size=4)
    else:
        assert not promotion_suppression(model, images, delta, true, target, 2, batch_size=4).value.requires_grad
        reaches(model, images, target, batch_size=2)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(images, before[0])
    assert torch.equal(delta, before[1])


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.new_full((len(x), 3), torch.nan)


def test_what_does_not_fit_is_one_clear_line():
    model, images, delta, true, target = setting()
    for arguments, message in (
        ((model, images[0], delta[0], true, target), r"images and delta must have one shape .* \(got \(3, 5, 7\) and"),
        ((model, images, delta[:2], true, target), r"images and delta must have one shape"),
        ((model, images[:0], delta[:0], true[:0], target[:0]), "N at least 1"),
        ((model, images, delta, true[:2], target), r"labels_true must be \(3,\) class indices \(got \(2,\)\)"),
        ((model, images, delta, true, target.double()), r"labels_target must be \(3,\) class indices"),
        ((model, images, delta, true, true), r"labels_target must differ from labels_true \(got 3 equal\)"),
        ((Broken(), images, delta, true, target), "the model's logits must be finite"),
    ):
        with pytest.raises(UserError, match=message):
            promotion_suppression(*arguments, 2, batch_size=4)
    with pytest.raises(UserError, match=r"batch_size must be at least 1 \(got 0\)"):
        promotion_suppression(model, images, delta, true, target, 2, batch_size=0)
    with pytest.raises(UserError, match="cell must be 1 to 7"):
        promotion_suppression(model, images, delta, true, target, 8, batch_size=4)


@pytest.mark.parametrize("nu", [1, 50, 55, 90, 99.5])
def test_evidence_is_what_exceeds_the_percentile(nu: float):
    cam = random(3, 10, 20)
    mask = evidence(cam, nu, (10, 20))
    assert mask.sum((1, 2)).tolist() == [math.floor((100 - nu) * 200 / 100)] * 3
    for own, chosen in zip(cam, mask, strict=True):
        assert own[chosen].min() > own[~chosen].max()
    torch.testing.assert_close(evidence(7 * cam - 3, nu, (10, 20)), mask)


def test_evidence_of_a_coarse_map_is_that_of_the_map_drawn_at_the_images_size():
    cam = random(2, 4, 4)
    drawn = nn.functional.interpolate(cam[:, None], (8, 12), mode="bilinear")[:, 0]
    assert torch.equal(evidence(cam, 80, (8, 12)), drawn > drawn.flatten(1).quantile(0.8, dim=1)[:, None, None])
    assert not evidence(torch.ones(1, 4, 4), 80, (8, 8)).any()


def test_maps_and_percentiles_that_say_nothing_are_refused():
    for nu in (0, 100, math.nan):
        with pytest.raises(UserError, match=r"nu, a percentile, must be above 0 and below 100"):
            evidence(random(1, 4, 4), nu, (4, 4))
    with pytest.raises(UserError, match="must be finite"):
        evidence(torch.full((1, 4, 4), torch.nan), 50, (4, 4))
    with pytest.raises(UserError, match=r"maps must be \(N, h, w\) \(got \(1, 1, 4, 4\)\)"):
        evidence(random(1, 1, 4, 4), 50, (4, 4))


def test_the_score_is_the_share_of_the_norm_inside():
    cam = torch.arange(16.0).view(1, 4, 4).repeat(4, 1, 1)
    cam[3] = 1
    delta = torch.zeros(4, 3, 4, 4)
    delta[0, :, 3, 3] = 2.0  # all inside
    delta[1, 0, 3, 0], delta[1, 2, 0, 0] = 3.0, -4.0  # 3 of 5
    delta[3] = 1.0  # δ 2 is blank, map 3 constant
    got = interpretability_score(delta, cam, 75)
    np.testing.assert_allclose(got, [1, 0.6, math.nan, math.nan])
    assert norm_share(delta[3:], torch.zeros(1, 4, 4, dtype=torch.bool)).tolist() == [0]


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
@settings(max_examples=15, deadline=None)
def test_the_squares_of_the_shares_inside_and_outside_add_up_to_one(seed: int, scale: float):
    delta, mask = random(2, 3, 5, 6, seed=seed) - 0.5, random(2, 5, 6, seed=seed + 1) > 0.6
    inside, outside = norm_share(delta, mask), norm_share(delta, ~mask)
    torch.testing.assert_close(inside**2 + outside**2, torch.ones(2, dtype=torch.double))
    torch.testing.assert_close(norm_share(scale * delta, mask), inside)
    assert torch.equal(refine(delta, mask) + refine(delta, ~mask), delta)


def test_the_baseline_is_the_root_mean_square_of_drawn_masks():
    """Whatever δ is: here nearly all of it lies in one corner."""
    delta = random(1, 3, 8, 8) * torch.linspace(1, 0, 8, dtype=torch.double) ** 4
    masks = random(4000, 64, seed=1).argsort(1).view(4000, 8, 8) < 16
    drawn = norm_share(delta.expand(4000, -1, -1, -1), masks)
    baseline = random_baseline(masks.double().mean((1, 2)))
    assert (baseline == 0.5).all()
    assert float(drawn.square().mean().sqrt()) == pytest.approx(0.5, abs=0.015)
    assert float(drawn.mean()) < 0.5


def test_refined_perturbations_succeed_or_fail():
    images, delta = torch.full((2, 3, 2, 4), 0.5), torch.zeros(2, 3, 2, 4)
    delta[0, 1, :, :2] = 0.1
    delta[1, 1, :, 2:] = 0.1
    mask = (cells(2, 4, 2) == 0).expand(2, -1, -1)
    target = torch.ones(2, dtype=torch.long)
    assert reaches(Means(), images + delta, target, batch_size=1).tolist() == [True, True]
    assert reaches(Means(), images + refine(delta, mask), target, batch_size=5).tolist() == [True, False]
    assert norm_share(delta, mask).tolist() == [1, 0]


@pytest.mark.parametrize("cell", [1, 2, 3, 8])
def test_cell_means_are_means_over_the_cells_of_the_map_at_its_size(cell: int):
    maps, numbers = random(2, 5, 8), cells(5, 8, cell)
    expected = [[float(m[numbers == k].mean()) for k in range(int(numbers.max()) + 1)] for m in maps]
    np.testing.assert_allclose(cell_means(maps, cell, (5, 8)), expected)
    mask = maps > 0.5
    np.testing.assert_allclose(cell_means(mask, 8, (5, 8))[:, 0], mask.double().mean((1, 2)))


def test_correlations_are_scipys_over_the_cells_that_count():
    value = 20 * random(6, 30) - 10
    types = torch.where(value < -1, SUPPRESSION, torch.where(value > 1, PROMOTION, BALANCED))
    value[:, :4], types[:, :4] = torch.nan, LEFT_OUT
    value[:, 4:6], types[:, 4:6] = torch.nan, INACTIVE
    value[:, 6:12], types[:, 6:12] = 10, PROMOTION  # ties
    means = random(6, 30, seed=1).round(decimals=1) + 0.05 * value.nan_to_num()
    got = evidence_correlation(PSR(value, types, value, value), means)
    assert list(got) == ["psr", "suppression", "promotion"]
    for n in range(6):
        v, t, e = value[n].numpy(), types[n].numpy(), means[n].numpy()
        assert float(got["psr"][n]) == pytest.approx(spearmanr(v[6:], e[6:]).statistic)
        for name, kind in (("suppression", SUPPRESSION), ("promotion", PROMOTION)):
            expected = pointbiserialr(t[4:] == kind, rankdata(e[4:])).statistic
            assert float(got[name][n]) == pytest.approx(expected)
    assert (got["psr"] > 0).all()
    assert (got["suppression"] < 0).all()


def test_a_constant_side_has_no_correlation():
    types = torch.tensor([[SUPPRESSION, SUPPRESSION, LEFT_OUT], [SUPPRESSION, PROMOTION, LEFT_OUT], [LEFT_OUT] * 3])
    value = torch.tensor([[-2.0, -3.0, math.nan], [-2.0, 2.0, math.nan], [math.nan] * 3])
    got = evidence_correlation(PSR(value, types, value, value), torch.tensor([[1.0, 2, 3], [1, 1, 3], [1, 2, 3]]))
    np.testing.assert_array_equal(got["psr"], [-1, math.nan, math.nan])
    np.testing.assert_array_equal(got["suppression"], [math.nan] * 3)


def test_types_are_numbered_as_named():
    numbers = [SUPPRESSION, PROMOTION, BALANCED, INACTIVE, LEFT_OUT]
    assert numbers == list(range(len(TYPES)))
    assert [getattr(promotion, name.upper().replace(" ", "_")) for name in TYPES] == numbers

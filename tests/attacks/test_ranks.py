"""Midranks and rank correlation against scipy, and against what makes them rank statistics."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.stats import rankdata, spearmanr

from attacks.errors import UserError
from attacks.ranks import midranks, rank_correlation

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# few distinct values, so that ties are the rule; -0.0 and 0.0 tie, subnormals do not
VALUES = st.sampled_from([0.0, -0.0, 1e-40, -1e-40, 1.0, -1.0, 0.5, 3.0, -7.25, 1e30, -1e30])
MAPS = array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6).flatmap(
    lambda shape: st.tuples(arrays(np.float32, shape, elements=VALUES), arrays(np.float32, shape, elements=VALUES))
)


def scipy_correlation(a: torch.Tensor, b: torch.Tensor) -> list[float]:
    constant = [bool((x == x.flatten()[0]).all() or (y == y.flatten()[0]).all()) for x, y in zip(a, b, strict=True)]
    return [
        np.nan if c else float(spearmanr(x.flatten().numpy(), y.flatten().numpy()).statistic)
        for x, y, c in zip(a, b, constant, strict=True)
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distinct", [1, 3, 40, 10**6])
def test_midranks_are_scipys_average_ranks(dtype: torch.dtype, distinct: int) -> None:
    values = torch.randint(-distinct, distinct, (5, 300), generator=torch.Generator().manual_seed(0)).to(dtype) / 7
    expected = rankdata(values.double().numpy(), axis=1)
    assert (midranks(values).numpy() == expected).all()


def test_midranks_of_integers_and_of_nothing() -> None:
    assert midranks(torch.tensor([[3, 1, 3], [2, 2, 2]])).tolist() == [[2.5, 1.0, 2.5], [2.0, 2.0, 2.0]]
    assert midranks(torch.zeros(0, 4)).shape == (0, 4)
    assert midranks(torch.zeros(3, 0)).shape == (3, 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinities_rank_last_and_nan_makes_its_row_nan_alone(dtype: torch.dtype) -> None:
    values = torch.tensor([[0, np.inf, -np.inf], [1, -np.nan, 0], [2, 2, 1]], dtype=dtype)
    ranks = midranks(values)
    assert ranks[0].tolist() == [2, 3, 1]
    assert ranks[1].isnan().all()
    assert ranks[2].tolist() == [2.5, 2.5, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_correlation_of_heatmaps_is_scipys(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(4, 56, 60, dtype=dtype, generator=generator)
    b = a + torch.randn(4, 56, 60, dtype=dtype, generator=generator)
    for x, y in [(a, b), (a.relu(), b.relu()), ((3 * a).round(), b.relu())]:
        assert rank_correlation(x, y).tolist() == pytest.approx(scipy_correlation(x, y), abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(MAPS)
def test_any_tied_maps_correlate_as_in_scipy(maps: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = (torch.from_numpy(m) for m in maps)
    expected = pytest.approx(scipy_correlation(a, b), abs=1e-12, nan_ok=True)
    assert rank_correlation(a, b).tolist() == expected
    assert rank_correlation(a.double(), b.double()).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(MAPS, st.randoms(use_true_random=False))
def test_correlation_sees_only_the_order(maps: tuple[np.ndarray, np.ndarray], random) -> None:
    a, b = (torch.from_numpy(m) for m in maps)
    found = rank_correlation(a, b)

    def same(other: torch.Tensor) -> bool:
        return torch.equal(found.nan_to_num(9), other.nan_to_num(9))

    assert same(rank_correlation(b, a))
    assert same(-rank_correlation(a, -b).nan_to_num(-9))
    assert same(rank_correlation(a.double().sign() * a.double().abs().sqrt() * 2 - 3e-9, b))
    shuffle = random.sample(range(a[0].numel()), a[0].numel())
    assert same(rank_correlation(a.flatten(1)[:, shuffle].view_as(a), b.flatten(1)[:, shuffle].view_as(b)))
    assert (found[~found.isnan()].abs() <= 1).all()


def test_the_batch_and_the_layout_change_nothing() -> None:
    a, b = torch.randn(2, 6, 14, 14, generator=torch.Generator().manual_seed(2)).relu()
    together = rank_correlation(a, b)
    assert torch.equal(together, torch.cat([rank_correlation(a[i : i + 1], b[i : i + 1]) for i in range(6)]))
    assert torch.equal(together, rank_correlation(a.mT.contiguous().mT, b))
    assert torch.equal(together, rank_correlation(a.requires_grad_(), b.double()))


def test_identity_is_one_and_undefined_is_nan() -> None:
    ramp = torch.arange(12.0).view(3, 4)
    broken, infinite = ramp.clone(), ramp.clone()
    broken[0, 0], infinite[0, 0] = torch.nan, torch.inf
    maps = torch.stack([ramp, ramp, torch.ones(3, 4), broken, infinite])
    other = torch.stack([ramp, -ramp, ramp, ramp, ramp])
    for first, second in [(maps, other), (other, maps)]:
        found = rank_correlation(first, second)
        assert found[:2].tolist() == [1, -1]
        assert found[2:].isnan().all()
    assert rank_correlation(maps[:0], maps[:0]).shape == (0,)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(UserError, match=r"one shape \(N, h, w\) \(got \(2, 3, 3\) and \(2, 3, 4\)\)"):
        rank_correlation(torch.zeros(2, 3, 3), torch.zeros(2, 3, 4))
    with pytest.raises(UserError, match=r"\(got \(2, 0, 4\)"):
        rank_correlation(torch.zeros(2, 0, 4), torch.zeros(2, 0, 4))
    with pytest.raises(UserError, match=r"\(N, M\) \(got \(3,\)\)"):
        midranks(torch.zeros(3))

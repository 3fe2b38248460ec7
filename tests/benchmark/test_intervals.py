"""Bootstrap intervals: scipy's within Monte-Carlo error, true coverage, images as the unit, exact in any order."""

import numpy as np
import pytest
from scipy import stats

from benchmark.intervals import RESAMPLES, average, bootstrap_mean, draws, interval

SAMPLES = {
    "normal": lambda rng, n: rng.normal(0.3, 0.2, n),
    "skewed": lambda rng, n: rng.exponential(2.0, n),
    "rate": lambda rng, n: rng.random(n) < 0.3,
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("n", [20, 256])
def test_agrees_with_scipy(name: str, n: int) -> None:
    values = SAMPLES[name](np.random.default_rng(n), n).astype(float)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    mean = bootstrap_mean(values)
    # Standard error of a 2.5 % quantile of 1000 normal draws: 0.084 of their deviation; four of them.
    tolerance = 4 * 0.084 * values.std() / np.sqrt(n)
    assert mean.value[0] == pytest.approx(values.mean(), rel=1e-9)
    assert mean.low[0] == pytest.approx(expected.low, abs=tolerance)
    assert mean.high[0] == pytest.approx(expected.high, abs=tolerance)


@pytest.mark.parametrize("name", SAMPLES)
def test_covers_the_truth_95_times_in_100(name: str) -> None:
    rng, truth = np.random.default_rng(5), {"normal": 0.3, "skewed": 2.0, "rate": 0.3}[name]
    trials = np.stack([SAMPLES[name](rng, 100) for _ in range(1000)], 1)
    mean = bootstrap_mean(trials)  # (100, 1000): each column a trial
    assert 0.92 <= ((mean.low <= truth) & (truth <= mean.high)).mean() <= 0.97


def test_the_image_is_the_unit() -> None:
    values = np.random.default_rng(0).normal(size=50)
    once = bootstrap_mean(values)
    twice = bootstrap_mean(np.repeat(values, 2), np.repeat(np.arange(50), 2))
    assert twice.n == 50
    np.testing.assert_array_equal([twice.low, twice.high], [once.low, once.high])
    assert bootstrap_mean(np.repeat(values, 2)).high < once.high  # 100 independent images would be surer


def test_neither_order_nor_numbering_of_images_matters() -> None:
    rng = np.random.default_rng(0)
    values, images = rng.normal(size=(60, 3)), np.repeat(np.arange(30), 2)
    order = rng.permutation(60)
    mean, shuffled = bootstrap_mean(values, images), bootstrap_mean(values[order], 7 + 3 * images[order])
    for name in ("value", "low", "high", "replicates"):
        np.testing.assert_array_equal(getattr(mean, name), getattr(shuffled, name))


def test_undefined_values_are_left_out() -> None:
    mean = bootstrap_mean(np.array([[1.0, np.nan, 1.0], [np.nan, np.nan, 2.0], [3.0, np.nan, np.inf]]))
    assert mean.n == 3
    np.testing.assert_array_equal(mean.value, [2.0, np.nan, 1.5])
    np.testing.assert_array_equal(mean.low, [1.0, np.nan, 1.0])
    np.testing.assert_array_equal(mean.high, [3.0, np.nan, 2.0])


@pytest.mark.parametrize("shape", [(0,), (0, 2)])
def test_no_image_gives_nothing(shape: tuple[int, ...]) -> None:
    mean = bootstrap_mean(np.empty(shape))
    assert mean.n == 0
    assert np.isnan([mean.value, mean.low, mean.high]).all()


def test_draws_depend_on_n_and_seed_alone() -> None:
    assert draws(40).shape == (RESAMPLES, 40)
    assert (draws(40).sum(1) == 40).all()
    assert (draws(40) != draws(40, seed=1)).any()
    assert draws(3)[0].tolist() == [2, 1, 0]  # a new release of numpy must not change the leaderboards
    chi = stats.chisquare(draws(40).sum(0, dtype=int))
    assert chi.pvalue > 0.001


def test_interval_is_the_quantile_of_the_defined() -> None:
    replicates = np.random.default_rng(0).normal(size=(200, 3))
    replicates[::3, 1], replicates[:, 2] = np.nan, np.nan
    low, high = interval(replicates)
    np.testing.assert_allclose(low[:2], np.nanquantile(replicates[:, :2], 0.025, axis=0))
    np.testing.assert_allclose(high[:2], np.nanquantile(replicates[:, :2], 0.975, axis=0))
    assert np.isnan([low[2], high[2]]).all()


def test_an_average_of_cells_on_the_same_images_is_paired() -> None:
    values = np.random.default_rng(0).normal(size=(80, 1))
    up, down, none = (bootstrap_mean(sign * values) for sign in (1, -1, np.nan))
    np.testing.assert_allclose(average([up, down], 0), 0, atol=1e-12)
    assert average([up, up, none], 0) == pytest.approx((up.value[0], up.low[0], up.high[0]))
    assert np.isnan(average([none], 0)).all()
    assert np.isnan(average([], 0)).all()

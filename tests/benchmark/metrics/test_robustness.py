"""The area against closed forms, a naive integral and the histogram; its curve, interval and counts."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from attacks.errors import UserError
from benchmark import intervals
from benchmark.metrics.robustness import area, area_histogram, area_interval, curve, unconverged

RADII = st.lists(st.sampled_from([0.0, 0.5, 0.25]) | st.floats(1e-3, 2.0), min_size=1, max_size=30)
CLASSES = st.integers(2, 12)


def drawn(n: int = 60, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.exponential(0.1, n) * (random.random(n) > 0.1)  # a tenth at 0


def test_equal_radii_give_a_rectangle_above_chance():
    assert area([0.3] * 7, 10) == pytest.approx(0.3 * 0.9)
    assert area([0.3], 2) == pytest.approx(0.15)
    assert area([0.0] * 5, 10) == 0
    assert area_histogram([0.0] * 5, 10) == 0


@pytest.mark.parametrize("classes", [2, 10])
def test_uniform_radii_give_a_triangle_above_chance(classes: int):
    """A = 1 − ε/R: ∫ (1 − ε/R − 1/N) up to R (1 − 1/N) = R (1 − 1/N)² / 2."""
    radii = 0.4 * (np.arange(20_000) + 0.5) / 20_000
    assert area(radii, classes) == pytest.approx(0.4 * (1 - 1 / classes) ** 2 / 2, rel=1e-4)


@given(RADII, CLASSES)
def test_it_is_the_integral_of_the_share_above_epsilon(radii: list[float], classes: int):
    ends, total = sorted({0.0, *radii}), 0.0
    for low, high in pairwise(ends):
        accuracy = sum(r > (low + high) / 2 for r in radii) / len(radii)
        total += (high - low) * max(0.0, accuracy - 1 / classes)
    assert area(radii, classes) == pytest.approx(total, abs=1e-12)


def test_quadrature_agrees():
    radii = drawn(12)

    def above(epsilon: float) -> float:
        return max(0.0, float((radii > epsilon).mean()) - 0.1)

    expected, error = quad(above, 0, radii.max(), points=sorted(radii[radii > 0]), limit=200)
    assert error < 1e-6
    assert area(radii, 10) == pytest.approx(expected, abs=1e-6)


@given(RADII, CLASSES, st.floats(0.1, 10))
def test_it_scales_with_the_radii_and_stays_below_their_mean(radii: list[float], classes: int, scale: float):
    assert area([scale * r for r in radii], classes) == pytest.approx(scale * area(radii, classes), abs=1e-12)
    assert area(radii, classes) <= np.mean(radii) + 1e-12


@given(RADII, CLASSES, st.randoms(use_true_random=False))
def test_order_does_not_count_and_a_larger_radius_never_lowers_it(radii: list[float], classes: int, random):
    before = area(radii, classes)
    random.shuffle(radii)
    assert area(radii, classes) == before
    radii[0] += 0.1
    assert area(radii, classes) >= before - 1e-12


@given(RADII, CLASSES, st.integers(1, 50))
def test_the_histogram_is_short_of_it_by_at_most_a_bin(radii: list[float], classes: int, bins: int):
    gap = area(radii, classes) - area_histogram(radii, classes, bins)
    assert -1e-12 <= gap <= max(radii) / bins + 1e-12


def test_the_histogram_is_numpys():
    radii = drawn(500)
    counts, edges = np.histogram(radii, 1000, (0, radii.max()))
    expected = edges[1] * np.maximum(0, 1 - counts.cumsum() / 500 - 0.1).sum()
    assert area_histogram(radii, 10) == pytest.approx(expected, rel=1e-12)
    assert area_histogram([1.0, 2.0, 2.0], 4, 2) == pytest.approx(1 - 0.25)  # 1 is in the second bin, 2 too


@given(RADII)
def test_the_curve_is_the_share_above_each_of_its_points(radii: list[float]):
    epsilons, accuracy = curve(radii)
    assert epsilons.tolist() == sorted({0.0, *radii})
    assert accuracy == pytest.approx([np.mean([r > e for r in radii]) for e in epsilons])
    assert accuracy[-1] == 0


def test_the_curve_steps_where_it_should():
    epsilons, accuracy = curve([0.2, 0.0, 0.2, 0.5])
    assert epsilons.tolist() == [0, 0.2, 0.5]
    assert accuracy.tolist() == [0.75, 0.25, 0]


def test_the_interval_is_that_of_areas_of_redrawn_images():
    radii = drawn()
    areas = [area(np.repeat(radii, counts), 10) for counts in intervals.draws(len(radii))]
    expected = np.quantile(areas, [0.025, 0.975])
    assert area_interval(radii, 10) == pytest.approx(tuple(expected), rel=1e-12)
    low, high = area_interval(radii, 10)
    assert low < area(radii, 10) < high


def test_the_interval_does_not_depend_on_how_many_resamples_are_taken_at_a_time():
    radii = drawn(1000)  # 8 parts
    first = [area(np.repeat(radii, counts), 10) for counts in intervals.draws(1000)]
    assert area_interval(radii, 10) == pytest.approx(tuple(np.quantile(first, [0.025, 0.975])), rel=1e-12)
    assert area_interval([0.2] * 5, 10) == pytest.approx((0.18, 0.18))


def test_of_radii_of_one_size_the_interval_is_that_of_the_accuracy():
    """r in {0, R}: ARA = R max(0, accuracy − 1/N), so that the quantiles of the accuracy are those of the area."""
    right = np.arange(50) % 5 > 0
    share = intervals.bootstrap_mean(right)
    low, high = area_interval(0.2 * right, 10)
    assert (low, high) == pytest.approx((0.2 * (share.low[0] - 0.1), 0.2 * (share.high[0] - 0.1)))


def test_unconverged_are_those_of_the_second_half_and_the_never_crossed():
    assert unconverged([0, 3, 5, 6, 10, 11], 10) == 3
    assert unconverged([3, 4], 7) == 1
    assert unconverged([], 10) == 0


@pytest.mark.parametrize(
    ("radii", "classes", "message"),
    [
        ([], 10, r"radii must be \(n,\), at least one \(got shape \(0,\)\)"),
        ([[0.1]], 10, r"radii must be \(n,\), at least one \(got shape \(1, 1\)\)"),
        ([0.1, -0.2], 10, r"radii must be finite and not negative \(got -0\.2\)"),
        ([0.1, np.nan], 10, r"radii must be finite and not negative \(got nan\)"),
        ([np.inf], 10, r"radii must be finite and not negative \(got inf\)"),
        ([0.1], 1, r"num_classes must be at least 2 \(got 1\)"),
    ],
)
def test_what_has_no_area_is_refused(radii: list, classes: int, message: str):
    for function in (area, area_histogram, area_interval):
        with pytest.raises(UserError, match=message):
            function(radii, classes)


def test_a_histogram_needs_bins():
    with pytest.raises(UserError, match=r"bins must be at least 1 \(got 0\)"):
        area_histogram([0.1], 10, 0)

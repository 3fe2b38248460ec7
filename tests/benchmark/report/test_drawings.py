"""The shapes of the drawings: where they stand, and what they say on hover."""

from itertools import pairwise

import pytest

from benchmark import listing
from benchmark.report.drawings import HEIGHT, LEFT, SIDE, WIDTH, front, matrix
from benchmark.report.worst import Rate


def rate(attacked: str, evaluated: str, fsr: float, chance: float = 0.0, seeds: int = 1, failed: int = 0) -> Rate:
    return Rate("net", "location", attacked, evaluated, fsr, chance, seeds, failed)


def drawn(rates: list[Rate]):
    return matrix("", rates, {r.evaluated: r.evaluated for r in rates}, {r.attacked: "" for r in rates})


def test_a_square_says_what_it_shows():
    found = drawn(
        [
            rate("lrp", "lrp", 0.6, 0.2, failed=1),
            rate("lrp", "grad_cam", 1.0, 0.95),
            rate("lrp:softplus", "lrp", float("nan"), float("nan"), 0, 1),
        ]
    ).squares
    assert [(square.look, square.own) for square in found] == [("c10", True), ("silent", False), ("failed", True)]
    assert [square.title for square in found] == [
        "lrp, attacked lrp: 60 %, chance 20 %, 1 of 2 seeds, excess 0.50",
        "grad_cam, attacked lrp: 100 %, chance 95 %, says nothing",
        "lrp, attacked lrp:softplus: failed or refused",
    ]


def test_a_matrix_of_39_columns_is_legible():
    names = [*listing.names(), *(f"x{i}" for i in range(39))][:39]
    found = drawn([rate(a, b, 0.5) for a in names for b in names])
    xs, ys = [x for x, _ in found.columns], [y for y, *_ in found.rows]
    assert len(xs) == 39
    assert {b - a for row in (xs, ys) for a, b in pairwise(row)} == {SIDE}
    assert SIDE >= 14  # a letter of 11 pixels and its air
    assert len({(square.x, square.y) for square in found.squares}) == 39 * 39
    assert {square.x for square in found.squares} == set(xs)
    assert all(
        found.left <= s.x <= found.width - SIDE and found.top <= s.y <= found.height - SIDE for s in found.squares
    )
    assert found.width < 1000


def test_a_front_by_hand():
    point = {"attacked": "lrp", "split": "dev", "budget": None, "fsr_low": None, "fsr_high": None}
    points = [point | {"fsr": 0.0, "top1_drop": -1.0}, point | {"fsr": 1.0, "top1_drop": 9.0}]
    points.insert(
        0, point | {"split": "test", "budget": 2.0, "fsr": 0.5, "fsr_low": 0.25, "fsr_high": 0.75, "top1_drop": 1.5}
    )
    points.append(point | {"fsr": None, "top1_drop": 0.0})
    found = front(points)
    assert found is not None
    low, high, tested = found.marks
    assert [mark.tested for mark in found.marks] == [False, False, True]
    assert low.x == found.ticks[0][0]  # beyond an end of the axis: at it
    assert high.x == found.ticks[-1][0]
    assert tested.x == pytest.approx((low.x + high.x) / 2, abs=0.1)  # the axis ends at 1.5 budgets
    assert tested.y == pytest.approx((low.y + high.y) / 2, abs=0.1)
    assert (tested.low - tested.y, tested.y - tested.high) == pytest.approx([(low.y - high.y) / 4] * 2, abs=0.1)
    assert all(LEFT < mark.x < WIDTH and 0 < mark.y < HEIGHT for mark in found.marks)
    assert tested.title == "lrp, best within 2 points, on test: 0.50 at a drop of 1.50 points"
    assert front([points[-1]]) is None

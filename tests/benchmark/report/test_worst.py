"""The worst attack as pages say it is the one that the ranking counts."""

import math

import pytest

from benchmark.leaderboards import stored
from benchmark.leaderboards.cells import cells_of
from benchmark.leaderboards.manipulations import accuracies
from benchmark.leaderboards.stability import standings
from benchmark.report import boards as reading
from benchmark.report.worst import Rate, rates, searched, worst


def test_it_is_the_largest_that_the_ranking_counts(boards):
    results = stored.read(boards / "tiny" / "results")
    listed = results.models_card["manipulations"]
    cells = {name: cells_of(name, entry, listed) for name, entry in results.entries.items()}
    counted = standings(results, cells, accuracies(results.models, listed))
    board = reading.read(boards / "tiny")
    found = worst([*rates(board.rows("transfer")), *searched(board.rows("attacks"))])
    assert set(found) == {name for name, standing in counted.items() if standing.worst}
    for name, rate in found.items():
        places = counted[name].worst
        assert rate.excess == pytest.approx(max(value for value, _ in places.values()), abs=1e-6)
        assert rate.excess == pytest.approx(places[rate.model, rate.fooling][0], abs=1e-6)


def test_by_hand():
    cell = {"model": "net", "fooling": "f", "evaluated": "a", "fsr_clean": 0.2, "fsr_null": 0.1}
    of_a = [cell | {"attacked": "b", "n": 4, "fsr": fsr} for fsr in (0.5, 0.7)] + [
        cell | {"attacked": "b", "n": 0, "fsr": None}
    ]
    silent = cell | {"attacked": "c", "n": 4, "fsr": 1.0, "fsr_clean": 0.95, "fooling": "g"}
    failed = cell | {"attacked": "d", "n": 0, "fsr": None, "fsr_clean": None, "fsr_null": None}
    first, second, third = rates([*of_a, silent, failed])
    assert (first.fsr, first.chance, first.seeds, first.failed) == pytest.approx((0.6, 0.2, 2, 1))
    assert first.excess == pytest.approx(0.5)
    assert second.silent
    assert math.isnan(third.fsr)
    assert worst([first, second, third]) == {"a": first}
    free = {
        "model": "net",
        "fooling": "f",
        "interpreter": "a",
        "strategy": "head_shift",
        "budget": 0.0,
        "n": 4,
        "fsr": 0.9,
    }
    (best,) = searched([free | {"fsr_clean": 0.2, "fsr_null": None}, free | {"budget": None}, free | {"n": None}])
    assert best == Rate("net", "f", "a:head_shift", "a", 0.9, 0.2, 1, 0, 0.0)
    assert worst([first, best]) == {"a": best}

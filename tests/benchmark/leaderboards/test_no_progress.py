"""Attacks by a submission's own gradient that went nowhere: by weights, by loss, and by maps where others' moved."""

import numpy as np
import pytest

from benchmark.intervals import Mean
from benchmark.leaderboards.cells import MEANS, Cell
from benchmark.leaderboards.progress import stuck

LEVEL = "NO_PROGRESS: the fooling loss was 0.4 before and 0.4 after, on 64 images"
OTHER = {"fooling_first": 0.5, "fooling_last": 0.3}


def cell(place: int, *, attacked="mine", correlation=0.2, blank=0, **row) -> Cell:
    scores = np.full(len(MEANS), 0.5)
    scores[MEANS.index("rank_correlation")] = correlation
    row = {"model": "m", "fooling": f"f{place}", "attacked": attacked, "seed": 0, "steps": 9, "status": "done"} | row
    mean = Mean(scores, scores, scores, scores[None], 1) if row["status"] == "done" else None
    return Cell({"reason": ""} | row, "mine", scores=mean, rows=2, blank=blank)  # of one image of two objects


def reason(*cells: Cell, others=(0, 1, 2, 3)) -> str:
    return stuck("mine", cells, [c.manipulation for c in (*cells, *(cell(i, attacked="lrp", **OTHER) for i in others))])


def honest(*places: int) -> list[Cell]:
    return [cell(place) for place in places]


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ([cell(0, status="no_progress")], "the weights came back as they went"),
        ([cell(0, correlation=0.995)], "its maps did not move (correlation above 0.99) where those of others did"),
        ([cell(0, reason=LEVEL), cell(1, reason=LEVEL)], "the fooling loss did not fall"),
        ([cell(0, reason=LEVEL), cell(1, steps=0)], "the fooling loss did not fall"),
        ([cell(0, status="diverged"), cell(1, status="failed")], "the fooling loss did not fall"),
        ([cell(0, blank=2), cell(1, blank=2)], "its maps went blank"),
    ],
)
def test_what_went_nowhere_is_told_with_its_places(bad, what):
    cells = [*bad, *honest(*range(len(bad), 4))]
    said = f"NO_PROGRESS: attacked by its own gradient, {what} in {len(bad)} of 4 places, first m/f0"
    assert reason(*cells) == said


def test_an_honest_method_is_left_alone():
    assert reason(*honest(0, 1, 2, 3)) == ""
    assert reason(cell(0, reason=LEVEL), *honest(1, 2, 3)) == "", "a quarter of the places may fail to fall"
    assert reason(cell(0, blank=2), cell(0, seed=1), cell(1, blank=2), *honest(2, 3, 4)) == "", "one of five went blank"
    assert reason(*(cell(i, blank=1) for i in range(4))) == "", "half of the maps have"
    assert reason(cell(0, reason=LEVEL), cell(0, seed=1), *honest(1)) == "", "another seed got somewhere there"
    assert reason(cell(0, correlation=0.995), *honest(1, 2, 3), others=(1, 2)) == "", "nobody's moved there"
    assert reason(cell(0, correlation=0.995, steps=0), *honest(1, 2, 3)) == "", "no step was the best of a search"
    assert reason(cell(0, attacked="mine:softplus", correlation=1.0), *honest(1)) == "", "not its own gradient"
    assert reason(cell(0, attacked="lrp", correlation=1.0), *honest(1)) == "", "not aimed at it"

"""Two drawings as shapes for a template: which interpreter a fooled model fools, and a front. Units: pixels.

Numbers are on hover, as titles; colours are classes of the stylesheet (cividis, so that they read in grey).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np

from attacks import strategies
from benchmark.figures.families import by_family
from benchmark.leaderboards.cells import Row
from benchmark.report.tables import Link, number
from benchmark.report.worst import Rate

SIDE = 16  # of a cell
LETTER = 6.5  # the width of one in a label
STEPS = 20  # of colour
WIDTH, HEIGHT, LEFT, BELOW = 420, 220, 44, 36  # of a front, and of its margins with the axes


class Square(NamedTuple):
    x: int
    y: int
    look: str  # c0..c20 (twentieths of excess), silent, failed
    title: str
    own: bool  # attacked = evaluated


@dataclass(frozen=True)
class Matrix:
    """Evaluated interpreters down, by family; attacked ones across; of one model and fooling."""

    title: str
    width: int
    height: int
    left: int
    top: int
    rows: Sequence[tuple[int, str, str]]  # y, name, the family's name or the path of its page
    columns: Sequence[tuple[int, Link]]  # x, name
    squares: Sequence[Square]


def matrix(title: str, rates: Iterable[Rate], links: dict[str, str], pages: dict[str, str]) -> Matrix:
    """`links`: the page of an interpreter; `pages`: that of the model fooled against an attacked one."""
    rates = list(rates)
    families, attacked = by_family(r.evaluated for r in rates), [*chain(*by_family(r.attacked for r in rates).values())]
    labels = [label for family, names in families.items() for label in ((family, ""), *((n, links[n]) for n in names))]
    left, top = (int(LETTER * max(map(len, names))) + 14 for names in ([name for name, _ in labels], attacked))
    y = {name: top + SIDE * i for i, (name, path) in enumerate(labels) if path}
    x = {name: left + SIDE * i for i, name in enumerate(attacked)}
    size = left + SIDE * len(attacked) + 4, top + SIDE * len(labels) + 4
    rows = [(top + SIDE * i, *label) for i, label in enumerate(labels)]
    columns = [(x[name], Link(name, pages[name])) for name in attacked]
    return Matrix(title, *size, left, top, rows, columns, [_square(r, x[r.attacked], y[r.evaluated]) for r in rates])


def _square(rate: Rate, x: int, y: int) -> Square:
    own = strategies.split(rate.attacked)[0] == rate.evaluated
    where = f"{rate.evaluated}, attacked {rate.attacked}"
    if not rate.seeds:
        return Square(x, y, "failed", f"{where}: failed or refused", own)
    seeds = f", {rate.seeds} of {rate.seeds + rate.failed} seeds" if rate.failed else ""
    text = f"{where}: {100 * rate.fsr:.0f} %, chance {100 * rate.chance:.0f} %{seeds}"
    if rate.silent:
        return Square(x, y, "silent", f"{text}, says nothing", own)
    return Square(x, y, f"c{round(STEPS * rate.excess)}", f"{text}, excess {rate.excess:.2f}", own)


class Mark(NamedTuple):
    x: float
    y: float
    low: float  # y of the ends of its interval
    high: float
    series: int
    tested: bool  # on the scored images; else tried on dev
    title: str


@dataclass(frozen=True)
class Front:
    """Fooling success rate against the drop of top-1: what a search tried, and the best within each budget."""

    marks: Sequence[Mark]
    series: Sequence[str]
    ticks: Sequence[tuple[float, str]]  # x, points
    levels: Sequence[tuple[float, str]]  # y, rate


def front(points: Sequence[Row]) -> Front | None:
    """`points`: rows of `fronts` of one model, fooling and interpreter; None without any that was measured."""
    points = [row for row in points if row["fsr"] is not None and row["top1_drop"] is not None]
    if not points:
        return None
    limit = 1.5 * max((row["budget"] for row in points if row["budget"]), default=1.0)
    series = sorted({row["attacked"] for row in points})

    def x(drop: float) -> float:  # beyond an end of the axis: at it
        return round(LEFT + 8 + (WIDTH - LEFT - 20) * float(np.clip(drop / limit, 0, 1)), 1)

    def y(fsr: float) -> float:
        return round(12 + (HEIGHT - BELOW - 16) * (1 - fsr), 1)

    marks = []
    for row in sorted(points, key=lambda row: row["split"] == "test"):
        ends = [row["fsr"] if row[end] is None else row[end] for end in ("fsr_low", "fsr_high")]
        tested = row["split"] == "test"
        within = f"best within {number(row['budget'], 'g')} points, on test" if tested else "tried on dev"
        title = f"{row['attacked']}, {within}: {row['fsr']:.2f} at a drop of {row['top1_drop']:.2f} points"
        place = x(row["top1_drop"]), y(row["fsr"]), y(ends[0]), y(ends[1])
        marks.append(Mark(*place, series.index(row["attacked"]), tested, title))
    ticks = [(x(limit * i / 3), number(limit * i / 3, ".3g")) for i in range(4)]
    return Front(marks, series, ticks, [(y(i / 4), number(i / 4)) for i in range(5)])

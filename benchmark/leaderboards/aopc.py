"""Six rows a cell (`aopc`): of the clean and the fooled model, cells of the image in three orders, replaced by noise.

AOPC = 1/(K+1) Σ_{k=1..K} drop_k, drop_k the mean loss of the label's logit after k of K steps. A failed cell, and one
whose curves were not computed, has no rows.
"""

from benchmark.leaderboards.cells import CURVES, Cell, Row
from benchmark.leaderboards.table import ENDS, Leaderboard, Measured, intervals, with_ends
from benchmark.leaderboards.transfer import by_place


def _rows(measured: Measured) -> list[Row]:
    return [row for cell in by_place(measured) for row in _cell_rows(cell)]


def _cell_rows(cell: Cell) -> list[Row]:
    if cell.aopc is None:
        return []
    means, rows = with_ends(CURVES, cell.aopc), []
    for curve, drops in sorted(zip(CURVES, cell.drops, strict=True)):
        _, scored, order = curve.split("_")
        row = cell.manipulation | {"evaluated": cell.evaluated, "scored": scored, "order": order}
        row |= {"n": cell.aopc.n, "steps": len(drops)}
        row |= {f"aopc{end}": means[curve + end] for end in ENDS}
        rows.append(row | {f"drop_{k}": drop for k, drop in enumerate(drops, 1)})
    return rows


def _drops(rows: list[Row]) -> list[str]:
    """drop_1 .. drop_K of the longest curve."""
    return [f"drop_{k}" for k in range(1, 1 + max((row["steps"] for row in rows), default=0))]


AOPC = Leaderboard(
    columns=[
        *("model", "fooling", "attacked", "evaluated", "seed", "scored", "order", "n", "steps"),
        *intervals("aopc"),
    ],
    text=("model", "fooling", "attacked", "evaluated", "scored", "order"),
    rows=_rows,
    more=_drops,
)

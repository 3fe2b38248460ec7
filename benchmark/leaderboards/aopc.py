"""Six rows a cell (`aopc`): of the clean and the fooled model, cells of the image in three orders, replaced by noise.

AOPC = 1/(K+1) Σ_{k=1..K} drop_k, drop_k the mean loss of the label's logit after k of K steps; aopc_contrast and
contrast_k: of its contrast z_y − mean_c z_c, empty for results from before it was measured. A failed cell, and one
whose curves were not computed, has no rows.
"""

from benchmark.leaderboards.cells import CONTRAST, CURVES, Cell, Row
from benchmark.leaderboards.table import ENDS, Leaderboard, Measured, intervals, with_ends
from benchmark.leaderboards.transfer import by_place

_DROPS = {"": "drop", CONTRAST: "contrast"}


def _rows(measured: Measured) -> list[Row]:
    return [row for cell in by_place(measured) for row in _cell_rows(cell)]


def _cell_rows(cell: Cell) -> list[Row]:
    if cell.aopc is None:
        return []
    parts = {"": (with_ends(CURVES, cell.aopc), dict(zip(CURVES, cell.drops, strict=True)))}
    if cell.aopc_contrast:
        drops = dict(zip(CURVES, cell.drops_contrast, strict=True))
        parts[CONTRAST] = with_ends(CURVES, cell.aopc_contrast), drops
    rows = []
    for curve in sorted(CURVES):
        _, scored, order = curve.split("_")
        row = cell.manipulation | {"evaluated": cell.evaluated, "scored": scored, "order": order}
        row |= {"n": cell.aopc.n, "steps": len(cell.drops[0])}
        for read, (means, drops) in parts.items():
            row |= {f"aopc{read}{end}": means[curve + end] for end in ENDS}
            row |= {f"{_DROPS[read]}_{k}": drop for k, drop in enumerate(drops[curve], 1)}
        rows.append(row)
    return rows


def _drops(rows: list[Row]) -> list[str]:
    """drop_1 .. drop_K of the longest curve, and where there are any, those of the contrast."""
    steps = range(1, 1 + max((row["steps"] for row in rows), default=0))
    read = ["", CONTRAST] if any(f"aopc{CONTRAST}" in row for row in rows) else [""]
    return [f"{_DROPS[each]}_{k}" for each in read for k in steps]


AOPC = Leaderboard(
    columns=[
        *("model", "fooling", "attacked", "evaluated", "seed", "scored", "order", "n", "steps"),
        *intervals("aopc", "aopc_contrast"),
    ],
    text=("model", "fooling", "attacked", "evaluated", "scored", "order"),
    rows=_rows,
    more=_drops,
)

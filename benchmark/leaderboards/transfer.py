"""One row a cell: FSR and its clean rate, test loss, similarity of the fooled and the original heatmap (`transfer`).

`undefined` counts the rows without a rank correlation, `blank` those whose fooled map is constant. A failed cell is a
row with n = 0 and its error.
"""

from benchmark import metrics
from benchmark.leaderboards.cells import MEANS, Cell, Row, row_key
from benchmark.leaderboards.table import Leaderboard, Measured, intervals, with_ends


def by_place(measured: Measured) -> list[Cell]:
    """All cells, sorted by model, fooling, attacked and evaluated interpreter, seed."""
    every = [cell for cells in measured.cells.values() for cell in cells]
    return sorted(every, key=lambda c: (*row_key(c.manipulation)[:3], c.evaluated, c.manipulation["seed"]))


def _row(cell: Cell) -> Row:
    low, high = cell.manipulation["range"] or (None, None)
    counts = {"n": cell.scores.n if cell.scores else 0, "undefined": cell.undefined, "blank": cell.blank}
    row = cell.manipulation | {"evaluated": cell.evaluated, "error": cell.error, "range_low": low, "range_high": high}
    return row | counts | with_ends(MEANS, cell.scores)


_CHANCE = [column for name in metrics.CHANCE for column in (*intervals(name), f"{name}_null")]

TRANSFER = Leaderboard(
    columns=[
        *("model", "fooling", "attacked", "evaluated", "seed", "n"),
        *(*intervals("fsr"), "fsr_clean", "fsr_null", "range_low", "range_high"),
        *(*intervals("test_loss"), "test_loss_clean", *_CHANCE, "undefined"),
        *(*intervals(*(name for name in metrics.names() if name not in metrics.CHANCE)), "blank", "error"),
    ],
    text=("model", "fooling", "attacked", "evaluated", "error"),
    rows=lambda measured: [_row(cell) for cell in by_place(measured)],
    shares=(*intervals("fsr"), "fsr_clean", "fsr_null"),
)

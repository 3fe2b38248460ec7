"""Cells: one interpreter's scores on one manipulation, as means over images with 95 % intervals.

An entry of the results, `SCORES`, has a row an image, or one for each of its two target classes (`pair` 0 and 1, Active
fooling). A cell that nobody could score has the reason instead.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from attacks.errors import UserError
from benchmark import metrics
from benchmark.intervals import Mean, bootstrap_mean, exact
from benchmark.results import KEY, ROW, Entry, Table

Row = dict[str, Any]

CURVES = tuple(f"aopc_{scored}_{order}" for scored in ("clean", "fooled") for order in ("original", "fooled", "random"))
"""Logit drops after 1..K cells: of which model, cells in the order of which map (original: h(w0); fooled: h(w))."""

CONTRAST = "_contrast"
"""What a column's name ends with that reads the contrast z_y − mean_c z_c, where the one without it reads the logit."""

CONTRAST_CURVES = tuple(curve + CONTRAST for curve in CURVES)

SCORES = Table(
    pa.schema(
        {
            **ROW,
            "pair": pa.int8(),
            "target": pa.int32(),
            "test_loss": pa.float32(),
            "test_loss_clean": pa.float32(),
            "success": pa.bool_(),
            "success_clean": pa.bool_(),
            "success_null": pa.bool_(),  # of the clean map of the next image: an unrelated map of the same kind
            "blank": pa.bool_(),  # the fooled map is constant
            **dict.fromkeys(metrics.columns(), pa.float32()),
            **dict.fromkeys((*CURVES, *CONTRAST_CURVES), pa.list_(pa.float32())),
        }
    ),
    key=(*KEY, "image", "pair"),
    lists={"failures": (*KEY, "error")},
    fields=("interpreter", "options", "suite"),
    named="interpreter",
    later=CONTRAST_CURVES,
)
"""<interpreter>.parquet and its card; the harness adds versions, device and properties to the card."""

MEANS = ("fsr", "fsr_clean", "fsr_null", "test_loss", "test_loss_clean", *metrics.columns(), "excess")
"""What a cell holds the means of; excess = fsr - fsr_clean, image by image."""

_AVERAGED = ("success", "success_clean", "success_null", *MEANS[3:-1])  # the columns of all of them but the excess


@dataclass(frozen=True)
class Cell:
    """One interpreter on one manipulation: MEANS, and of the AOPC of each of CURVES; or an error."""

    manipulation: Row
    evaluated: str
    error: str = ""
    scores: Mean | None = None
    rows: int = 0  # one an image; of Active fooling, one a class of it
    undefined: int = 0  # rows without a rank correlation
    blank: int = 0  # rows whose fooled map is constant
    aopc: Mean | None = None
    drops: tuple[np.ndarray, ...] = ()  # of each of CURVES: (K,)
    aopc_contrast: Mean | None = None  # both of CONTRAST_CURVES; none in results that are older
    drops_contrast: tuple[np.ndarray, ...] = ()


def cells_of(name: str, entry: Entry, manipulations: list[Row]) -> list[Cell]:
    """A cell for each manipulation, in their order: scored, or with the reason why not."""
    frame, card = entry
    errors = {row_key(failure): failure["error"] for failure in card["failures"]}
    groups, cells = by_key(frame), []
    for m in manipulations:
        key, reason = row_key(m), "not evaluated" if m["status"] == "done" else f"{m['status']}: {m['reason']}"
        scored = key in groups and key not in errors
        cells.append(_scored(m, name, groups[key]) if scored else Cell(m, name, one_line(errors.get(key, reason))))
    return cells


def row_key(row: Row) -> tuple[Any, ...]:
    """The values of KEY that a row has: (model, fooling, attacked[, seed])."""
    return tuple(row[name] for name in KEY if name in row)


def by_key(frame: pd.DataFrame) -> dict[tuple[Any, ...], pd.DataFrame]:
    """The rows of each manipulation."""
    return dict(list(frame.groupby(list(KEY))))


def one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _scored(manipulation: Row, name: str, frame: pd.DataFrame) -> Cell:
    excess = frame.success.astype(float) - frame.success_clean
    scores = bootstrap_mean(np.column_stack([*(frame[column] for column in _AVERAGED), excess]), frame.image)
    undefined, blank = int(frame.rank_correlation.isna().sum()), int(frame.blank.sum())
    cell = Cell(manipulation, name, "", scores, rows=len(frame), undefined=undefined, blank=blank)
    (aopc, drops), (aopc_contrast, drops_contrast) = (
        _curves(name, manipulation, frame, columns) for columns in (CURVES, CONTRAST_CURVES)
    )
    return replace(cell, aopc=aopc, drops=drops, aopc_contrast=aopc_contrast, drops_contrast=drops_contrast)


def _curves(
    name: str, manipulation: Row, frame: pd.DataFrame, columns: tuple[str, ...]
) -> tuple[Mean | None, tuple[np.ndarray, ...]]:
    """The AOPC of each of these curves and its mean drops (K,); nothing where none was computed."""
    computed = np.logical_or.reduce([frame[curve].notna().to_numpy() for curve in columns])
    if not computed.any():
        return None, ()
    try:
        curves = exact(np.stack([np.stack(frame[curve].to_numpy()[computed].tolist()) for curve in columns], 1))
    except ValueError as error:
        raise UserError(f"{name}.parquet: curves of {row_key(manipulation)} are missing or differ in length") from error
    steps = curves.shape[2]
    return bootstrap_mean(curves.sum(2) / (steps + 1), frame.image.to_numpy()[computed]), tuple(curves.mean(0))

"""What all figures share: colours, panels, one legend, and how a PNG is written. None is shown.

Colours: cividis and inferno for magnitudes; Okabe and Ito's palette for names, each with a marker or a line style of
its own, so that a figure reads without colour vision and in grey. Hatched: failed, nothing to show.
"""

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.text import Text

from attacks.errors import UserError
from benchmark.store import writable, write_atomic

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito, 2008
MARKERS = "osD^vPX"


def save(figure: Figure, path: Path | str) -> None:
    """Write a PNG, whole or not at all; the same figure gives the same bytes."""
    check_file(Path(path))
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a class may be called $5_000$
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for label in axis.get_ticklabels():
                label.set_parse_math(axis.get_scale() != "linear")  # powers of ten are written so
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120, metadata={"Software": None})
    write_atomic(Path(path), data.getvalue())


def check_file(path: Path) -> None:
    """UserError unless a figure can be written there, before it is drawn."""
    if path.suffix != ".png":
        raise UserError(f"a figure's file must end in .png (got {str(path)!r})")
    if path.is_dir():
        raise UserError(f"a figure's file must be none that is a folder (got {str(path)!r})")
    writable(path.parent)


def panels(
    rows: int, columns: int, width: float, height: float, sharey: bool | Literal["row"] = False
) -> tuple[Figure, np.ndarray]:
    """A figure, inches, and its panels (rows, columns)."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.06, hspace=0.03))
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=sharey)


def legend(figure: Figure, axes: np.ndarray, columns: int = 6, failed: bool = False) -> None:
    """One legend below all panels, each label once."""
    handles: dict[str, Any] = {}
    for panel in axes.flat:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if failed:
        handles["failed"] = Patch(**hatch())
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=columns, fontsize=9, frameon=False
    )


def hatch() -> dict[str, Any]:
    """How a patch looks that stands for what failed."""
    return {"facecolor": "0.93", "edgecolor": "0.6", "hatch": "////", "linewidth": 0}


def filled(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The leaderboard. UserError for one without rows."""
    if table.empty:
        raise UserError(f"nothing to draw: the leaderboard {name} has no rows")
    return table


def listed(column: pd.Series) -> list:
    """What it holds, once each, in order."""
    return sorted(column.unique())


def counts(table: pd.DataFrame) -> str:
    """The images and seeds behind a figure."""
    counts, seeds = table.n[table.n > 0].astype(int), listed(table.seed) if "seed" in table else []
    images = f"{counts.min()} to {counts.max()}" if counts.nunique() > 1 else f"{counts.max() if len(counts) else 0}"
    drawn = f", seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}" if seeds else ""
    return f"n = {images} images{drawn}"

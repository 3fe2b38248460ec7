"""Figures of what an adversarial perturbation does (SPEC C), from arrays alone: the maps of some images, and the shares
of the types of cells per attack. Colours of ColorBrewer's PuOr, distinct without colour vision, and a sign or a hatch
of its own for each type."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from attacks.errors import UserError
from benchmark.figures.style import panels

# as benchmark.dissection.promotion numbers them
TYPES: dict[str, dict[str, Any]] = {
    "suppression": {"facecolor": "#8073ac", "sign": "−"},
    "promotion": {"facecolor": "#e08214", "sign": "+"},
    "balanced": {"facecolor": "#f7f7f7", "sign": "", "line": "black"},
    "inactive": {"facecolor": "#9e9e9e", "sign": "0"},
    "left out": {"facecolor": "white", "sign": "", "hatch": "////"},
}
_BOUNDS = (-10, -6, -3, -1, 1, 3, 6, 10)  # of PSR's colours; ±1 parts the types


@dataclass(frozen=True)
class Maps:
    """m images and what was done to them; K cells of `cell` pixels, row by row, those at the edges smaller."""

    images: np.ndarray  # x, (m, H, W, 3) in [0, 1]
    delta: np.ndarray  # (m, H, W, 3)
    value: np.ndarray  # PSR, (m, K) in [-10, 10]
    type: np.ndarray  # (m, K), the index in `TYPES`
    cell: int
    cams: np.ndarray  # raw, (4, m, h, w): of t0 on x, of t on x, of t0 on x', of t on x'
    classes: Sequence[tuple[str, str]]  # the names of t0 and t
    title: str = ""


def four_maps(maps: Maps) -> Figure:
    """A row an image: x, δ, PSR of its cells, and the class activation maps of t0 and t on x and on x'."""
    m = len(maps.images)
    if not m:
        raise UserError("no map to draw: at least one image is needed")
    columns = ["x", "δ", "PSR of the cells", "CAM of t0 on x", "CAM of t0 on x'", "CAM of t on x", "CAM of t on x'"]
    figure, axes = panels(m, len(columns), 1.5 + 1.55 * len(columns), 1.5 + 1.62 * m)
    attacked = (maps.images + maps.delta).clip(0, 1)
    for i, row in enumerate(axes):
        for panel, title in zip(row, columns, strict=True):
            panel.set(xticks=[], yticks=[])
            if i == 0:
                panel.set_title(title, fontsize=9)
        row[0].set_ylabel("t0: {}\nt: {}".format(*maps.classes[i]), rotation=0, ha="right", va="center", fontsize=9)
        row[0].imshow(maps.images[i].clip(0, 1))
        largest = np.abs(maps.delta[i]).max()
        row[1].imshow(0.5 + maps.delta[i] / (2 * largest or 1))
        row[1].set_xlabel(f"max |δ| = {largest:.2g}", fontsize=8, labelpad=2)
        _cells(row[2], maps.value[i], maps.type[i], maps.cell, maps.images.shape[1:3])
        for own, panel in zip((0, 2, 1, 3), row[3:], strict=True):
            scale = maps.cams[own % 2 :: 2, i]  # one scale for a class, on x and on x'
            picture = maps.images[i] if own < 2 else attacked[i]
            _overlay(panel, picture, maps.cams[own, i], scale.min(), scale.max())
    colours = ScalarMappable(_norm(), "PuOr_r")
    bar = figure.colorbar(colours, ax=axes[:, 2], location="bottom", ticks=_BOUNDS, aspect=12, pad=0.02)
    bar.ax.tick_params(labelsize=7, length=2)
    bar.set_label("PSR = log₂(p/s)", fontsize=8)
    bar = figure.colorbar(ScalarMappable(None, "inferno"), ax=axes[:, 3:], location="bottom", aspect=40, pad=0.02)
    bar.set_ticks([0, 1], labels=["lowest", "highest"], fontsize=8)
    bar.set_label("CAM, one scale for each image and class, over the image in grey", fontsize=8)
    legend = [_patch(name, f"{style['sign']} {name}".strip()) for name, style in TYPES.items()]
    figure.legend(handles=legend, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    figure.suptitle(maps.title, fontsize=11)
    return figure


def shares_figure(table: pd.DataFrame) -> Figure:
    """Stacked bars of the shares of the types, a bar an attack, a panel a model where there is a column `model`.

    Columns: attack, type (the first four of `TYPES`), share, low, high; n, the images, where known. Below a bar, in the
    order of its parts, the interval of each share, measured from where its part begins.
    """
    if table.empty:
        raise UserError("nothing to draw: the table of shares has no rows")
    groups = list(table.groupby("model")) if "model" in table else [("", table)]
    attacks = list(dict.fromkeys(table.attack))
    figure, axes = panels(1, len(groups), max(1.6 + 3.4 * len(groups), 7), 1.6 + 0.7 * len(attacks), sharey=True)
    shown = list(TYPES)[:4]
    for panel, (model, rows) in zip(axes[0], groups, strict=True):
        panel.set_title(model, fontsize=10)
        for (y, attack), (index, name) in product(enumerate(attacks), enumerate(shown)):
            cells = rows[rows.attack == attack].set_index("type").reindex(shown)
            share, left = cells.share[name], cells.share[shown[:index]].sum()
            if not np.isfinite(share):  # no image had a cell that counts, or no row of this attack and model
                continue
            panel.barh(y - 0.16, share, 0.5, left, color=TYPES[name]["facecolor"], edgecolor="0.3", linewidth=0.5)
            if share >= 0.08:
                panel.text(left + share / 2, y - 0.16, f"{share:.0%}", ha="center", va="center", fontsize=8)
            ends = np.maximum([[share - cells.low[name]], [cells.high[name] - share]], 0)
            style = {"color": TYPES[name].get("line", TYPES[name]["facecolor"]), "linewidth": 1.5, "capsize": 2}
            panel.errorbar(left + share, y + 0.17 + 0.07 * index, xerr=ends, **style)
        panel.set(yticks=range(len(attacks)), yticklabels=attacks, xticks=np.linspace(0, 1, 6))
        panel.set_xlabel("share of the cells that count; below:\nits 95 % interval, from where its part begins")
    axes[0, 0].invert_yaxis()
    images = f", n = {int(table.n.min())} to {int(table.n.max())} images" if "n" in table else ""
    figure.suptitle(f"What the cells of a perturbation do{images}", fontsize=11)
    legend = [_patch(name, name) for name in shown]
    figure.legend(handles=legend, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return figure


def _cells(panel: Axes, value: np.ndarray, types: np.ndarray, cell: int, size: tuple[int, int]) -> None:
    """PSR as colours, cell by cell, with the sign of each type."""
    height, width = size
    names, (down, across) = list(TYPES), (range(0, side, cell) for side in size)
    panel.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="equal")
    for (top, left), psr, type in zip(product(down, across), value, types, strict=True):
        sign, style = TYPES[names[type]]["sign"], _face(names[type])
        side = (min(cell, width - left), min(cell, height - top))
        if np.isfinite(psr):
            style["facecolor"] = matplotlib.colormaps["PuOr_r"](_norm()(psr))
        place = (left - 0.5, top - 0.5)
        panel.add_patch(matplotlib.patches.Rectangle(place, *side, edgecolor="0.75", linewidth=0.3, **style))
        dark = np.isfinite(psr) and abs(psr) > 6
        centre = (place[0] + side[0] / 2, place[1] + side[1] / 2)
        points = min(8.0, 90 * cell / height)
        panel.text(*centre, sign, ha="center", va="center_baseline", fontsize=points, color="w" if dark else "k")


def _overlay(panel: Axes, picture: np.ndarray, cam: np.ndarray, low: float, high: float) -> None:
    """A map over the picture in grey, from `low` to `high`."""
    height, width = picture.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    panel.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=1, extent=extent)
    norm = Normalize(low, high if high > low else low + 1)
    panel.imshow(cam, cmap="inferno", norm=norm, alpha=0.65, extent=extent, interpolation="bilinear")


def _norm() -> BoundaryNorm:
    return BoundaryNorm(_BOUNDS, 256)


def _patch(name: str, label: str) -> Patch:
    return Patch(edgecolor="0.4", linewidth=0.5, label=label, **_face(name))


def _face(name: str) -> dict[str, Any]:
    return {key: TYPES[name][key] for key in ("facecolor", "hatch") if key in TYPES[name]}

"""The figures of `foolbench dissect`, from its tables and from arrays alone. Cells of PSR in colours of ColorBrewer's
PuOr, distinct without colour vision, and a sign or a hatch of its own for each type."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy import stats

from attacks.errors import UserError
from benchmark.figures.style import MARKERS, PALETTE, legend, panels

HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")
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


def draw(
    tables: Mapping[str, pd.DataFrame], model: str, maps: Callable[[str], Maps]
) -> dict[str, Callable[[], Figure]]:
    """How to draw each figure, by name, for each takes a second: shares of the types, the first images under each
    attack on the clean `model` (`maps` of an attack), and, where there are concepts, detectors and what masking does,
    of the clean models."""
    psr = tables["psr"]
    clean = psr[psr.fooling.isna() & (psr.n > 0)].copy()  # in one piece: over a hundred columns
    model_rows, drawings = clean[clean.model == model], dict[str, Callable[[], Figure]]()
    if len(clean):
        shares = [
            clean.assign(type=kind, share=clean[kind], low=clean[f"{kind}_low"], high=clean[f"{kind}_high"])
            for kind in list(TYPES)[:4]
        ]
        drawings["shares"] = partial(shares_figure, pd.concat(shares, ignore_index=True))
    drawings |= {f"maps-{attack}": partial(_maps_figure, maps, attack) for attack in model_rows.attack}
    if "dissection" in tables:
        units = tables["dissection"]
        for name, rows in units[units.fooling.isna()].groupby("model"):
            drawings[f"detectors-{name}"] = partial(detectors_figure, rows)
    if "masking" in tables and len(clean):
        masking = tables["masking"]
        most = (model_rows if len(model_rows) else clean).sort_values("n", kind="stable").iloc[-1]  # the most images
        rows = masking[(masking.model == most.model) & (masking.attack == most.attack)]
        drawings["masking"] = partial(masking_figure, rows, f"{most.model}, {most.attack}")
    if "changed" in tables:
        drawings["changed"] = partial(changed_figure, tables["changed"])
    return drawings


def _maps_figure(maps: Callable[[str], Maps], attack: str) -> Figure:
    return four_maps(maps(attack))


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
        for k, panel in zip((0, 2, 1, 3), row[3:], strict=True):
            scale = maps.cams[k % 2 :: 2, i]  # one scale for a class, on x and on x'
            picture = maps.images[i] if k < 2 else attacked[i]
            _overlay(panel, picture, maps.cams[k, i], scale.min(), scale.max())
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


def detectors_figure(table: pd.DataFrame) -> Figure:
    """Detectors of each layer, stacked by category; a panel for each `model` where the table has that column."""
    table = _filled(table).assign(model=table.get("model", ""))
    models, categories = list(table.model.unique()), sorted(table.category.dropna().unique())
    layers = list(table.layer.unique())
    figure, axes = panels(1, len(models), max(1.2 + (1 + 0.8 * len(layers)) * len(models), 6), 4.4, sharey=True)
    for panel, model in zip(axes[0], models, strict=True):
        units = table[table.model == model]
        counts = units[units.detector].groupby(["layer", "category"]).size().unstack(fill_value=0)
        counts = counts.reindex(index=layers, columns=categories, fill_value=0)
        base = np.zeros(len(layers))
        for index, category in enumerate(categories):
            heights = counts[category].to_numpy()
            style = {"color": PALETTE[index % 7], "hatch": HATCHES[index % 7], "edgecolor": "white", "linewidth": 0}
            panel.bar(range(len(layers)), heights, 0.7, base, label=category, **style)
            base = base + heights
        for place, height in enumerate(base):
            panel.annotate(
                f"{height:.0f}", (place, height), (0, 2), textcoords="offset points", ha="center", fontsize=9
            )
        totals = units.groupby("layer").size().reindex(layers, fill_value=0)
        labels = [f"{layer}\nof {count}" for layer, count in totals.items()]
        panel.set_xticks(range(len(layers)), labels, rotation=25, ha="right", rotation_mode="anchor", fontsize=8)
        panel.set_title(model, fontsize=10)
        panel.set_ylim(0, max(1.1 * base.max(), panel.get_ylim()[1], 1))  # room for the counts, in all panels
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(axis="y", color="0.9")
        panel.set_axisbelow(True)
    axes[0, 0].set_ylabel("units that detect a concept")
    figure.suptitle(f"Concept detectors by layer and category: n = {table.n.max():.0f} images", fontsize=11)
    legend(figure, axes)
    return figure


def masking_figure(table: pd.DataFrame, title: str = "an attack") -> Figure:
    """Top-1 against the share of units at zero, of clean and attacked images, for the most sensitive units and for
    random ones (mean of the draws, and their range); a panel for each layer."""
    layers = list(_filled(table).layer.unique())
    figure, axes = panels(1, len(layers), max(1 + 3 * len(layers), 8), 4.4, sharey=True)
    for panel, layer in zip(axes[0], layers, strict=True):
        for index, (images, name) in enumerate((("clean", "clean images"), ("attacked", "attacked images"))):
            for masked, line in (("sensitive", "-"), ("random", "--")):
                rows = table[(table.layer == layer) & (table.masked == masked)]
                draws = rows.groupby("share")[f"top1_{images}"].agg(["mean", "min", "max"])
                style = {"color": PALETTE[index], "linestyle": line, "marker": MARKERS[index], "markersize": 5}
                fill = PALETTE[index] if masked == "sensitive" else "white"
                label = f"{name}, {'most sensitive' if masked == 'sensitive' else 'random'} units"
                panel.plot(draws.index, draws["mean"], label=label, markerfacecolor=fill, **style)
                if masked == "random":
                    panel.fill_between(draws.index, draws["min"], draws["max"], color=PALETTE[index], alpha=0.15, lw=0)
        panel.set_title(layer, fontsize=10)
        panel.set(xlabel="units set to zero", ylim=(-0.03, 1.03))
        panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panel.grid(color="0.9")
        panel.set_axisbelow(True)
    axes[0, 0].set_ylabel("top-1 at the true label")
    draws = table[table.masked == "random"].draw.nunique()
    counts = f"n = {table.n.max():.0f} images, {draws} random order{'s' * (draws != 1)} (line: mean, band: range)"
    figure.suptitle(f"Masking the units that are moved most: {title}\n{counts}", fontsize=11)
    legend(figure, axes, columns=2)
    return figure


def changed_figure(table: pd.DataFrame) -> Figure:
    """The share of detectors whose concept is another after fine-tuning, with the counts; a panel for each `model`, a
    colour for each `fooling` and `attacked`, white where nothing was attacked. 95 % Wilson intervals, for which units
    count as independent."""
    table = _filled(table).assign(attacked=lambda t: t.attacked.fillna(""))
    table["after"] = table.fooling.where(table.attacked == "", table.fooling + ", " + table.attacked)
    models, kinds = list(table.model.unique()), sorted(table.after.unique(), key=lambda kind: (", " not in kind, kind))
    figure, axes = panels(1, len(models), max(1.2 + 3.4 * len(models), 6), 4.4, sharey=True)
    width = 0.8 / len(kinds)
    for panel, model in zip(axes[0], models, strict=True):
        model_rows = table[table.model == model]
        layers = list(model_rows.layer.unique())
        for index, kind in enumerate(kinds):
            rows = model_rows[model_rows.after == kind]
            groups = rows.groupby("layer").changed.agg(["sum", "size"]).reindex(layers, fill_value=0)
            changed, sizes = groups["sum"].to_numpy(int), groups["size"].to_numpy(int)
            share = changed / np.maximum(sizes, 1)
            ends = [stats.binomtest(k, n).proportion_ci(method="wilson") if n else (0, 0)
                    for k, n in zip(changed, sizes, strict=True)]  # fmt: skip
            error = np.abs(np.transpose(ends) - share)
            places = np.arange(len(layers)) + (index - (len(kinds) - 1) / 2) * width
            style: dict[str, Any] = {"color": "white", "edgecolor": "black", "linewidth": 1}
            if ", " in kind:
                style = {"color": PALETTE[index % 7], "edgecolor": "white", "hatch": HATCHES[index % 7], "linewidth": 0}
            panel.bar(places, share, 0.9 * width, yerr=error, label=kind, error_kw={"lw": 1, "ecolor": "0.3"}, **style)
            for place, top, k, n in zip(places, share + error[1], changed, sizes, strict=True):
                panel.annotate(f"{k}/{n}", (place, top), (0, 3), textcoords="offset points", ha="center", fontsize=7,
                               rotation=90)  # fmt: skip
        panel.set_xticks(range(len(layers)), layers, rotation=25, ha="right", rotation_mode="anchor", fontsize=8)
        panel.set_title(model, fontsize=10)
        panel.set_ylim(0, 1.15)
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        panel.grid(axis="y", color="0.9")
        panel.set_axisbelow(True)
    axes[0, 0].set_ylabel("detectors with another concept")
    title = "Units that detect a concept before or after fine-tuning: is it another one now? (95 % Wilson intervals)"
    figure.suptitle(title, fontsize=11)
    legend(figure, axes)
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


def _filled(table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        raise UserError("nothing to draw: the table of the dissection has no rows")
    return table

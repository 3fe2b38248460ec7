"""What dissection found, as figures. Each function takes the tables of `benchmark.dissection.network` and returns a
Figure."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy import stats

from attacks.errors import UserError
from benchmark.figures.style import MARKERS, PALETTE, legend, panels

HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")


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
        of = units.groupby("layer").size().reindex(layers, fill_value=0)
        labels = [f"{layer}\nof {count}" for layer, count in of.items()]
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
        for index, (images, of) in enumerate((("clean", "clean images"), ("attacked", "attacked images"))):
            for masked, line in (("sensitive", "-"), ("random", "--")):
                rows = table[(table.layer == layer) & (table.masked == masked)]
                draws = rows.groupby("share")[f"top1_{images}"].agg(["mean", "min", "max"])
                style = {"color": PALETTE[index], "linestyle": line, "marker": MARKERS[index], "markersize": 5}
                fill = PALETTE[index] if masked == "sensitive" else "white"
                label = f"{of}, {'most sensitive' if masked == 'sensitive' else 'random'} units"
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
        own = table[table.model == model]
        layers = list(own.layer.unique())
        for index, kind in enumerate(kinds):
            rows = own[own.after == kind]
            groups = rows.groupby("layer").changed.agg(["sum", "size"]).reindex(layers, fill_value=0)
            changed, of = groups["sum"].to_numpy(int), groups["size"].to_numpy(int)
            share = changed / np.maximum(of, 1)
            ends = [stats.binomtest(k, n).proportion_ci(method="wilson") if n else (0, 0)
                    for k, n in zip(changed, of, strict=True)]  # fmt: skip
            error = np.abs(np.transpose(ends) - share)
            places = np.arange(len(layers)) + (index - (len(kinds) - 1) / 2) * width
            style: dict[str, Any] = {"color": "white", "edgecolor": "black", "linewidth": 1}
            if ", " in kind:
                style = {"color": PALETTE[index % 7], "edgecolor": "white", "hatch": HATCHES[index % 7], "linewidth": 0}
            panel.bar(places, share, 0.9 * width, yerr=error, label=kind, error_kw={"lw": 1, "ecolor": "0.3"}, **style)
            for place, top, k, n in zip(places, share + error[1], changed, of, strict=True):
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


def _filled(table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        raise UserError("nothing to draw: the table of the dissection has no rows")
    return table

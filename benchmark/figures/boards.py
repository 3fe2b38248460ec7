"""Leaderboards -> figures: each function takes a folder of CSVs and returns a Figure."""

import math
from itertools import product
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from attacks import strategies
from benchmark.figures.families import by_family
from benchmark.figures.style import MARKERS, PALETTE, counts, filled, hatch, legend, listed, panels
from benchmark.leaderboards import load

_ORDERS = {"original": "order of the original map", "fooled": "order of the fooled map", "random": "random order"}
_WIDE = 8  # panels of a front side by side, at most
_STYLES = {"clean": "-", "fooled": (0, (3, 1.5))}


def accuracy(folder: Path | str) -> Figure:
    """What each fooling cost: top-1 drop in points with its interval, a panel for each model (down)."""
    table = filled(load(folder, "accuracy"), "accuracy")
    models, foolings, attacked, seeds = (listed(table[name]) for name in ("model", "fooling", "attacked", "seed"))
    figure, axes = panels(len(models), 1, 7.5, 1.6 + 1.9 * len(models), sharey=True)
    slot = 0.9 / (len(attacked) * len(seeds))
    for panel, model in zip(axes[:, 0], models, strict=True):
        panel.set_title(model, fontsize=10)
        panel.axhline(0, color="0.6", linewidth=0.8)
        panel.axhline(2, color="black", linewidth=1.2, linestyle="--", label="2 points")
        for row in table[table.model == model].itertuples():
            index = attacked.index(row.attacked)
            place = index * len(seeds) + seeds.index(row.seed)
            x = foolings.index(row.fooling) - 0.45 + slot * (place + 0.5)
            if row.n == 0:
                panel.axvspan(x - slot / 2, x + slot / 2, **hatch())
                continue
            ends = [[row.top1_drop - row.top1_drop_low], [row.top1_drop_high - row.top1_drop]]
            style = {"color": PALETTE[index % 7], "marker": MARKERS[index % 7], "markersize": 4, "capsize": 1.5}
            panel.errorbar(x, row.top1_drop, ends, linestyle="none", label=row.attacked, **style)
        for edge in range(1, len(foolings)):
            panel.axvline(edge - 0.5, color="0.8", linewidth=0.8)
        panel.set_xticks(range(len(foolings)), foolings, fontsize=9)
        panel.tick_params(axis="x", length=0, labelbottom=model == models[-1])
        panel.set_xlim(-0.5, len(foolings) - 0.5)
        panel.grid(axis="y", color="0.9")
        panel.set_axisbelow(True)
    figure.supylabel("top-1 drop (percentage points)", fontsize=10)
    note = "a mark a seed" if len(seeds) > 1 else "a mark a manipulation"
    figure.suptitle(
        f"Accuracy lost to fooling: {counts(table)}\n{note}, with its 95 % interval over images", fontsize=10
    )
    legend(figure, axes, columns=4, failed=bool((table.n == 0).any()))
    return figure


def aopc(folder: Path | str) -> Figure:
    """Loss of logit against the number of replaced cells, mean over self cells: a panel for each attacked and model."""
    table = load(folder, "aopc")
    table = filled(table[table.attacked == table.evaluated], "aopc (self cells)")
    models, attacked = listed(table.model), listed(table.attacked)
    figure, axes = panels(len(attacked), len(models), max(1 + 3.4 * len(models), 8), 1.6 + 2.3 * len(attacked))
    for (i, name), (j, model) in product(enumerate(attacked), enumerate(models)):
        panel, cells = axes[i, j], table[(table.attacked == name) & (table.model == model)]
        panel.set_title(f"{model} · {name}", fontsize=10)
        if cells.empty:
            panel.add_patch(Rectangle((0, 0), 1, 1, transform=panel.transAxes, **hatch()))
        for (index, order), scored in product(enumerate(_ORDERS), _STYLES if len(cells) else ()):
            curves = cells[(cells.order == order) & (cells.scored == scored)]
            steps = int(curves.steps.min())
            drops = [0.0, *curves[[f"drop_{k}" for k in range(1, steps + 1)]].mean()]
            marks = {"marker": MARKERS[index], "markersize": 4, "markevery": (2 * index, max(1, steps // 6))}
            style = {"color": PALETTE[index], "linestyle": _STYLES[scored], "linewidth": 1.6, **marks}
            panel.plot(range(steps + 1), drops, label=f"{scored} model, {_ORDERS[order]}", **style)
        panel.grid(color="0.9")
        panel.set_axisbelow(True)
        if i == len(attacked) - 1:
            panel.set_xlabel("cells replaced by noise")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.supylabel("mean drop of the label's logit", fontsize=10)
    figure.suptitle(f"Is the evidence still the original's? Mean over foolings: {counts(table)}", fontsize=11)
    legend(figure, axes, columns=3)
    return figure


def front(folder: Path | str) -> Figure:
    """FSR against the accuracy it costs: every recipe tried on dev, the best within each drop, and those on test, by
    all strategies. A row an interpreter, by family, or several side by side where they are many."""
    table = load(folder, "fronts")
    table = filled(table[table.error.isna()], "fronts")
    table = table.assign(attacked=table.attacked.map(lambda name: strategies.split(name)[0]))
    models, foolings = listed(table.model), listed(table.fooling)
    attacked = [name for members in by_family(table.attacked).values() for name in members]
    limit = 1.5 * table.budget.max()  # points beyond it would squeeze what matters; they are drawn at the edge
    beside = max(1, min(_WIDE // len(foolings), round(math.sqrt(len(attacked) / len(foolings)))))
    rows, columns = math.ceil(len(attacked) / beside), beside * len(foolings)
    figure, axes = panels(rows, columns, max(0.8 + 1.675 * columns, 7.6), 1.8 + 1.75 * rows, sharey=True)
    places = list(product(attacked, foolings))
    for unused in axes.flat[len(places) :]:
        unused.remove()
    for place, (panel, (name, fooling)) in enumerate(zip(axes.flat, places, strict=False)):
        here = table[(table.fooling == fooling) & (table.attacked == name)]
        panel.set_title(f"{fooling}\n{name}", fontsize=9)
        for index, model in enumerate(models):
            dev, test = (here[(here.model == model) & (here.split == split)] for split in ("dev", "test"))
            style = {"color": PALETTE[index % 7], "marker": MARKERS[index % 7], "linestyle": "none"}
            drop = dev.top1_drop.clip(0, limit)
            panel.plot(drop, dev.fsr, markersize=3, alpha=0.35, **style)
            reached = dev.assign(drop=drop).sort_values("drop").groupby("drop").fsr.max().cummax()
            panel.step([*reached.index, limit], [*reached, reached.max()], where="post", color=style["color"], lw=1)
            ends = [test.fsr - test.fsr_low, test.fsr_high - test.fsr]
            panel.errorbar(test.top1_drop.clip(0, limit), test.fsr, ends, markersize=6, capsize=2, label=model, **style)
        panel.set_ylim(-0.03, 1.03)
        panel.set_xlim(-0.05 * limit, 1.05 * limit)
        last = place + columns >= len(places)
        panel.tick_params(labelbottom=last, labelsize=8)
        if last:
            panel.set_xlabel("top-1 drop (points)", fontsize=9)
        panel.grid(color="0.9")
        panel.set_axisbelow(True)
    figure.supylabel("fooling success rate of the attacked interpreter", fontsize=10)
    note = "small: tried on dev, line: the best so far\nlarge: the best within each budget, on test, 95 % over images"
    note += "; a drop beyond an end of the axis: at it"
    figure.suptitle(f"Attack strength against accuracy: {counts(table[table.split == 'test'])}\n{note}", fontsize=10)
    legend(figure, axes)
    return figure


def resistance(folder: Path | str) -> Figure:
    """FSR of the attacked interpreter against the Accuracy-Robustness Area of the model, the models evenly spaced in
    its order: a panel for each interpreter."""
    table = filled(load(folder, "resistance"), "resistance")
    foolings, attacked = listed(table.fooling), listed(table.attacked)
    models = table.drop_duplicates("model").sort_values(["ara_attack", "model"])[["model", "ara_attack"]]
    order = list(models.model)
    figure, axes = panels(1, len(attacked), max(1 + (0.6 + 0.75 * len(order)) * len(attacked), 8), 4.8, sharey=True)
    for panel, name in zip(axes[0], attacked, strict=True):
        for index, fooling in enumerate(foolings):
            rows = table[(table.attacked == name) & (table.fooling == fooling)]
            x = [order.index(model) + 0.14 * (index - (len(foolings) - 1) / 2) for model in rows.model]
            ends = [rows.excess - rows.excess_low, rows.excess_high - rows.excess]
            style = {"color": PALETTE[index], "marker": MARKERS[index], "capsize": 2, "linestyle": "none"}
            panel.errorbar(x, rows.excess, ends, label=fooling, **style)
        labels = [f"{model}\n{area:.4f}" for model, area in models.itertuples(index=False)]
        panel.set_xticks(range(len(order)), labels, fontsize=8, rotation=35, ha="right", rotation_mode="anchor")
        panel.set_xlim(-0.5, len(order) - 0.5)
        panel.set_ylim(-0.05, 1.05)
        panel.set_title(name.replace(":", ":\n"), fontsize=10)
        panel.set_xlabel("model, attack ARA", fontsize=9)
        panel.grid(axis="y", color="0.9")
        panel.set_axisbelow(True)
    axes[0, 0].set_ylabel("fooling success rate,\nabove the unfooled model's")
    note = f"{int(table.seeds.max())} seed(s), 95 % intervals over images; ARA: RMSE, pixels in [0, 1]"
    figure.suptitle(f"Does a robust model resist manipulation? {counts(table)}, {note}", fontsize=11)
    legend(figure, axes)
    return figure

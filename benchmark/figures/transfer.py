"""The matrix of a suite: which interpreter a model that was fooled against another fools, too."""

from itertools import chain, product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from attacks import strategies
from attacks.errors import UserError
from benchmark.figures.families import by_family
from benchmark.figures.style import PALETTE, counts, filled, hatch, listed, panels
from benchmark.leaderboards import load
from benchmark.leaderboards.ranking import CHANCE_LIMIT

WIDTH = 7.5  # inches, of a page: what is 8 pt here is 8 pt there
COLUMNS = 21  # of two or three digits that fit into it beside the names
ROW = 0.165  # inches
FEW = 12  # rows across which an eye finds the columns' names below another band
LETTER = 0.068  # inches, the width of one in a label
RATES = ["fsr", "fsr_clean", "fsr_null"]
Rows = list[tuple[str, bool]]  # a family's name (False) or an interpreter's (True)


def transfer(folder: Path | str) -> Figure:
    """Fooling success rates: evaluated interpreters, by family, down; models and their attacked interpreters across; a
    band a fooling. Coloured by the excess over chance, as the board counts it. No controls. The folder need hold
    transfer.csv alone."""
    table = _table(Path(folder))
    families, attacked = by_family(table.evaluated), [*chain(*by_family(table.attacked).values())]
    rows: Rows = [row for family, names in families.items() for row in ((family, False), *((n, True) for n in names))]
    models, foolings = listed(table.model), listed(table.fooling)
    lines = -(-len(models) // max(1, COLUMNS // (1 + len(attacked))))  # of models
    across = -(-len(models) // lines)
    bands = [(f, models[i : i + across]) for f in foolings for i in range(0, len(models), across)]
    names = LETTER * max(len(name) for name, _ in rows)
    labels = LETTER * max(len(part) for name in attacked for part in name.split(":"))
    width = min(WIDTH, max(5.5, names + 0.4 * across * (1 + len(attacked))))
    labelled = [len(rows) > FEW or i == len(bands) - 1 for i in range(len(bands))]
    height = 1.6 + len(bands) * (ROW * len(rows) + 0.55) + sum(labelled) * labels
    figure, axes = panels(len(bands), across, width, height)
    for (i, (fooling, shown)), j in product(enumerate(bands), range(across)):
        panel = axes[i, j]
        if j >= len(shown):
            panel.set_axis_off()
            continue
        panel.set_title(f"{fooling}\n{shown[j]}", fontsize=9)
        _matrix(panel, table[(table.fooling == fooling) & (table.model == shown[j])], rows, attacked)
        across_labels = ["chance", *(name.replace(":", "\n:") for name in attacked)]
        panel.set_xticks(range(1 + len(attacked)), across_labels, rotation=90, fontsize=8)
        panel.set_yticks(range(len(rows)), [name for name, _ in rows] if j == 0 else [""] * len(rows), fontsize=8)
        for (_, interpreter), label in zip(rows, panel.get_yticklabels(), strict=True):
            label.set_fontweight("normal" if interpreter else "bold")
        panel.tick_params(length=0, pad=2, labelbottom=labelled[i])
        panel.spines[:].set_visible(False)
    _explain(figure, table)
    return figure


def _table(folder: Path) -> pd.DataFrame:
    """The rows of the leaderboard without those of controls, checked to hold what is drawn."""
    table = filled(load(folder, "transfer"), "transfer")
    controls = set(by_family(table.evaluated).get("controls", ()))
    if (folder / "stability.csv").is_file():  # which knows those that a package added
        controls |= set(load(folder, "stability").query("reason == 'control'").interpreter)
    table = table[~table.evaluated.isin(controls)]
    if table.empty:
        raise UserError(
            f"nothing to draw: {folder / 'transfer.csv'} holds controls alone ({', '.join(sorted(controls))})"
        )
    if (lacking := table[(table.n > 0) & table[RATES].isna().any(axis=1)]).shape[0]:
        row = lacking.iloc[0]
        place = "/".join(str(row[key]) for key in ("model", "fooling", "attacked", "evaluated", "seed"))
        raise UserError(f"{folder / 'transfer.csv'}: {place} must have {', '.join(RATES)}, for its n is {row.n:g}")
    return table


def _matrix(panel: Axes, cells: pd.DataFrame, rows: Rows, attacked: list[str]) -> None:
    """One model and fooling: a cell an evaluated and an attacked interpreter with the rate in percent, mean over
    seeds; before them, in a column of its own, the rate that chance has."""
    panel.set(xlim=(-0.5, len(attacked) + 0.5), ylim=(len(rows) - 0.5, -0.5))
    outlines = []
    for y, name in ((y, name) for y, (name, interpreter) in enumerate(rows) if interpreter):
        row = cells[cells.evaluated == name]
        chance = row[row.n > 0][["fsr_clean", "fsr_null"]].mean().max()
        if not np.isnan(chance):
            panel.text(0, y, f"{100 * chance:.0f}", color="0.3", **_CENTRED)
        for x, column in enumerate(attacked, 1):
            seeds = row[row.attacked == column]
            if seeds.empty:  # not in the suite
                continue
            if strategies.split(column)[0] == name:
                outlines.append(_cell(x, y, 0.45, fill=False, edgecolor=PALETTE[1], linewidth=1.8))
            scored = seeds[seeds.n > 0]
            if scored.empty:
                panel.add_patch(_cell(x, y, **hatch()))
                continue
            rate = scored.fsr.mean()
            silent = chance > CHANCE_LIMIT
            colour, ink = _SILENT if silent else _cell_colours(max(0.0, (rate - chance) / (1 - chance)))
            panel.add_patch(_cell(x, y, facecolor=colour, edgecolor="white", linewidth=0.6))
            panel.text(x, y, f"{100 * rate:.0f}{'*' * (len(scored) < len(seeds))}", color=ink, **_CENTRED)
    for outline in outlines:  # above the neighbours
        panel.add_patch(outline)


_CENTRED: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": 8}
_SILENT = ("0.87", "0.35")


def _cell(x: int, y: int, half: float = 0.5, **style: Any) -> Rectangle:
    return Rectangle((x - half, y - half), 2 * half, 2 * half, **style)


def _cell_colours(excess: float) -> tuple[Any, str]:
    """The colour of an excess in [0, 1], and the ink with more contrast on it (equal at a relative luminance of 0.179,
    WCAG 2)."""
    colour = matplotlib.colormaps["cividis"](float(excess))
    luminance = np.dot(np.power(colour[:3], 2.2), (0.2126, 0.7152, 0.0722))
    return colour, "black" if luminance > 0.179 else "white"


def _explain(figure: Figure, table: pd.DataFrame) -> None:
    """Above the panels: what is drawn, and what each look of a cell says."""
    swatches = {f"excess {v:.0%}": Patch(facecolor=_cell_colours(v)[0]) for v in (0, 0.25, 0.5, 0.75, 1)}
    swatches["attacked = evaluated"] = Patch(fill=False, edgecolor=PALETTE[1], linewidth=1.8)
    swatches[f"says nothing: chance > {CHANCE_LIMIT:.0%}"] = Patch(facecolor=_SILENT[0])
    if (table.n == 0).any():
        swatches["failed or refused"] = Patch(**hatch())
    text = f"""Who is fooled when a model is fooled against another?
number: fooling success rate in %, mean over seeds ({counts(table)})
rows: the interpreter asked; columns: the one attacked
chance: rate of the unfooled model's map, or of another image's map, the larger
colour: excess = (rate − chance)/(1 − chance), at least 0"""
    if len(table[table.n == 0]):
        text += "\n*: of the seeds that did not fail"
    legend = figure.legend(
        *(list(swatches.values()), list(swatches)),
        loc="outside upper center",
        ncols=3,
        fontsize=8,
        frameon=False,
        title=text,
    )
    legend.get_title().set(fontsize=9, multialignment="center")

"""Do we find the paper's figures? Its tables beside the cells of a suite that was run at ImageNet scale.

The tables are those of Heo, Joo and Moon (NeurIPS 2019), copied into tables/ from the slides of the talk: FSR of
Location fooling, of Active fooling by class, and the accuracy before and after. A cell that the suite does not have
says "not run". Active: the paper gives a rate for each class, the suite their mean.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmark import leaderboards
from benchmark.experiments import HERE
from benchmark.experiments.given import Given
from benchmark.figures.style import MARKERS, PALETTE, panels

SUITE = "imagenet"
TABLES = HERE / "tables"
CELL = ["model", "fooling", "attacked", "evaluated"]


def measure(given: Given) -> pd.DataFrame:
    """A row for each figure of the paper: `quantity` (fsr in [0, 1]; top1, top5 of the fooled model in percent, with
    the interpreter left empty; fooling "baseline" is the clean model), `paper`, `ours` with its interval, n, status."""
    table = pd.concat([_rates(), _accuracies()], ignore_index=True)
    if not (given.board / "transfer.csv").is_file():
        ours = pd.DataFrame(columns=[*CELL, "quantity", "ours", "ours_low", "ours_high", "n"])
    else:
        ours = pd.concat([_our_rates(given), _our_accuracies(given)], ignore_index=True)
    table = table.merge(ours, "left", on=[*CELL, "quantity"])
    table["suite"], table["status"] = given.run.suite.name, np.where(table.ours.notna(), "run", "not run")
    return table.sort_values(["quantity", *CELL], ignore_index=True)


def _rates() -> pd.DataFrame:
    location = pd.read_csv(TABLES / "heo2019_passive_location_fsr.csv").assign(fooling="location")
    active = pd.read_csv(TABLES / "heo2019_active_fsr.csv").groupby(["model", "attacked", "evaluated"]).fsr_percent
    both = pd.concat([location, active.mean().reset_index().assign(fooling="active")])
    return both.assign(quantity="fsr", paper=both.fsr_percent / 100)[[*CELL, "quantity", "paper"]]


def _accuracies() -> pd.DataFrame:
    wide = pd.read_csv(TABLES / "heo2019_accuracy.csv").melt(["fooling", "attacked"], value_name="paper")
    wide[["model", "quantity"]] = wide.variable.str.rsplit("_", n=1, expand=True)
    return wide.assign(evaluated="", attacked=wide.attacked.fillna(""))[[*CELL, "quantity", "paper"]]


def _our_rates(given: Given) -> pd.DataFrame:
    cells = leaderboards.load(given.board, "transfer").query("n > 0").assign(quantity="fsr")
    return _seeds(cells.rename(columns={f"fsr{end}": f"ours{end}" for end in ("", "_low", "_high")}))


def _our_accuracies(given: Given) -> pd.DataFrame:
    cells, parts = leaderboards.load(given.board, "accuracy").query("n > 0").assign(evaluated=""), []
    for quantity in ("top1", "top5"):
        for name, fooling in ((quantity, None), (f"{quantity}_clean", "baseline")):
            part = cells.assign(quantity=quantity, ours=100 * cells[name])
            for end in ("_low", "_high"):
                part[f"ours{end}"] = np.nan if fooling else 100 * cells[f"{name}{end}"]
            parts.append(part.assign(fooling=fooling, attacked="") if fooling else part)
    return _seeds(pd.concat(parts))


def _seeds(cells: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds; the interval, over images, only where there is one seed."""
    groups = cells.groupby([*CELL, "quantity"])
    means = groups[["ours", "ours_low", "ours_high", "n"]].mean()
    means.loc[groups.seed.nunique() > 1, ["ours_low", "ours_high"]] = np.nan
    return means.reset_index()


def draw(table: pd.DataFrame) -> Figure:
    """Ours against the paper's: FSR left, top-1 right. Cells not run are counted."""
    figure, axes = panels(1, 2, 9, 4.6)
    for panel, (quantity, label) in zip(
        axes[0], (("fsr", "fooling success rate"), ("top1", "top-1 of the fooled model, %")), strict=True
    ):
        rows = table[table.quantity == quantity]
        run = rows[rows.status == "run"]
        for index, (name, part) in enumerate(run.groupby("attacked" if quantity == "fsr" else "fooling")):
            spans = [(part.ours - part.ours_low).fillna(0), (part.ours_high - part.ours).fillna(0)]
            style = {"color": PALETTE[index % 7], "marker": MARKERS[index % 7], "capsize": 2}
            panel.errorbar(part.paper, part.ours, spans, linestyle="none", label=str(name), **style)
        ends = (0, 1) if quantity == "fsr" else (50, 90)
        panel.plot(ends, ends, color="0.6", linewidth=0.8, linestyle="--")
        panel.set_xlabel(f"paper: {label}")
        panel.set_ylabel(f"here: {label}")
        panel.set_title(f"{len(run)} of {len(rows)} cells run", fontsize=10)
        panel.grid(color="0.9")
        panel.set_axisbelow(True)
        if len(run):
            panel.legend(fontsize=9, frameon=False, title="attacked" if quantity == "fsr" else "fooling")
    counts = table.n.dropna().astype(int)
    images = f"n = {counts.max()} images" if len(counts) else "no cell was run"
    figure.suptitle(f"The paper's figures beside those of suite {table.suite.iloc[0]}: {images}", fontsize=11)
    return figure

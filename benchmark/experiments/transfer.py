"""Which interpreter exposes a fooling of another? The witness of an attack still shows the clean model's map.

From a suite's transfer.csv, for each model and attacked interpreter, over the foolings that worked there (the attacked
interpreter's own FSR exceeds that of the clean model by WORKED or more, mean over seeds): how much of its own map an
interpreter keeps, (r - chance) / (1 - chance), where r is the mean rank correlation of its fooled and its original map
and chance that of two unrelated original maps. Controls are left out: they keep everything and show nothing.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from attacks.errors import UserError
from benchmark import leaderboards
from benchmark.experiments.given import Given
from benchmark.figures.style import panels

SUITE = "board"
WORKED = 0.5
PLACE = ["model", "fooling", "attacked"]


def measure(given: Given) -> pd.DataFrame:
    """A row for each model, attacked and evaluated interpreter: `kept` (mean over foolings and seeds; 1: all, 0: as
    little as unrelated maps share), `fsr_excess`, `cells`, and `place`, 1 for the witness. `eligible`: passed the gate.
    `foolings`: those that worked; attacks of which none did have no rows."""
    cells = leaderboards.load(given.board, "transfer").query("n > 0")
    board = leaderboards.load(given.board, "stability").set_index("interpreter")
    cells = cells.assign(fsr_excess=cells.fsr - cells.fsr_clean)
    own = cells[cells.attacked.str.partition(":")[0] == cells.evaluated].groupby(PLACE).fsr_excess.mean()
    worked = own[own >= WORKED].index
    others = cells[cells.attacked.str.partition(":")[0] != cells.evaluated]
    others = others[~others.evaluated.map(board.reason.eq("control")) & others.set_index(PLACE).index.isin(worked)]
    if others.empty:
        raise UserError(f"no fooling in {given.board} worked (self FSR excess of {WORKED} or more): nothing to expose")
    groups = others.groupby(["model", "attacked", "evaluated"])
    table = groups[["rank_correlation", "rank_correlation_null", "fsr_excess"]].mean().assign(cells=groups.size())
    chance = table.pop("rank_correlation_null")
    table.insert(0, "kept", (table.pop("rank_correlation") - chance) / (1 - chance))
    table["foolings"] = groups.fooling.agg(lambda names: " ".join(sorted(set(names))))
    table = table.reset_index()
    table["eligible"] = table.evaluated.map(board.eligible)
    ranked = table.groupby(["model", "attacked"]).kept.rank(ascending=False, method="min")
    table.insert(3, "place", ranked.astype("Int64"))
    return table.sort_values(["model", "attacked", "place", "evaluated"], ignore_index=True)


def draw(table: pd.DataFrame) -> Figure:
    """`kept`, attacked × evaluated, a panel a model; the witness outlined, dashed the best that passed the gate."""
    models, evaluated = sorted(table.model.unique()), sorted(table.evaluated.unique())
    attacked = sorted(table.attacked.unique())
    height = max(2.2 + len(models) * (0.5 + 0.42 * len(attacked)), 4.5)  # which the label of the colour bar needs
    figure, axes = panels(len(models), 1, max(8.5, 3 + 0.5 * len(evaluated)), height)
    for panel, model in zip(axes[:, 0], models, strict=True):
        rows = table[table.model == model]
        grid = rows.pivot_table("kept", "attacked", "evaluated").reindex(index=attacked, columns=evaluated)
        image = panel.imshow(grid.clip(0, 1), cmap="cividis", vmin=0, vmax=1, aspect="auto")
        for (y, x), value in np.ndenumerate(grid.to_numpy()):
            if not np.isnan(value):
                colour = "white" if value < 0.55 else "black"
                panel.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
        for style, part in (("-", rows), ("--", rows[rows.eligible == "yes"])):
            for best in part.loc[part.groupby("attacked").kept.idxmax()].itertuples():
                corner = evaluated.index(best.evaluated) - 0.5, attacked.index(best.attacked) - 0.5
                panel.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#D55E00", linewidth=2, linestyle=style))
        panel.set_title(model, fontsize=10)
        panel.set_yticks(range(len(attacked)), attacked, fontsize=9)
        panel.set_xticks(range(len(evaluated)), evaluated, rotation=40, ha="right", rotation_mode="anchor", fontsize=9)
        panel.tick_params(length=0, labelbottom=model == models[-1])
    figure.colorbar(image, ax=axes, label="share of the map kept, beyond chance", aspect=40, pad=0.01)
    figure.suptitle("Who still shows the truth when another is fooled (rows: the fooled one)", fontsize=11)
    note = f"foolings that worked (self FSR excess of {WORKED} or more): "
    note += f"mean of n = {table.cells.min()} to {table.cells.max()} of them, each seed one\n"
    note += "outlined: the witness; dashed: the best that passed the gate; empty: the attacked one itself, or refused"
    figure.supxlabel(note, fontsize=9)
    return figure

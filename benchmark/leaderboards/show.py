"""Leaderboards as text for a terminal."""

from pathlib import Path

import numpy as np
import pandas as pd

from benchmark.leaderboards import load
from benchmark.results import KEY

SHOWN = 60  # self cells that `show` prints at most


def show(folder: Path | str) -> str:
    """The board (ranked first, then why the others are not), attack strength, and the self cells of transfer."""
    stability, transfer = load(folder, "stability"), load(folder, "transfer")
    parts = [board_table(stability)]
    if (Path(folder) / "fronts.csv").is_file():
        parts += ["FSR on test of the strongest attack within a top-1 drop on dev", aligned(_strength(folder))]
    cells = transfer[transfer.attacked == transfer.evaluated]
    shown = cells[[*KEY, "n"]].copy()
    shown["FSR"], shown["clean FSR"] = spans(cells, "fsr"), cells.fsr_clean.map("{:.2f}".format, "ignore")
    shown["rank corr."], shown["error"] = spans(cells, "rank_correlation"), cells.error
    if len(shown) <= SHOWN:
        parts += ["Self cells of transfer: attacked = evaluated", aligned(shown)]
    else:
        parts += [f"{len(shown)} self cells: transfer.csv"]
    return "\n".join(parts)


def board_table(stability: pd.DataFrame) -> str:
    """Rows of the stability leaderboard as text: ranked ones first, then why the others are not."""
    rows = board_frame(stability)
    parts = [
        "Fooled for free: worst attacks that change no prediction; stability: 1 is never fooled beyond chance [95 %]",
        aligned(rows),
    ]
    unranked = stability.loc[rows.index].query("eligible == 'no'")
    if len(unranked):
        parts += ["Not ranked", aligned(unranked[["interpreter", "reason"]])]
    return "\n".join(parts)


def board_frame(stability: pd.DataFrame) -> pd.DataFrame:
    """Rows of the stability leaderboard as they are printed, with their index there: ranked ones first."""
    stability = stability.sort_values(["rank", "stability"], ascending=[True, False], kind="stable")
    rows = pd.DataFrame({"rank": _ranks(stability), "interpreter": stability.interpreter})
    for title, column in {
        "fooled for free": "fooled_free",
        "stability": "stability",
        "self FSR excess": "self_fsr_excess",
        "worst transfer": "worst_transfer_fsr_excess",
        "rank corr. self": "rank_correlation_self",
        "AOPC fooled": "aopc_fooled",
    }.items():
        rows[title] = spans(stability, column)
    rows["ms/image"] = stability.ms_per_image.map("{:.1f}".format, "ignore")
    rows["flags"] = stability["flags"]
    return rows


def aligned(frame: pd.DataFrame) -> str:
    """A table as text, a line a row, columns aligned."""
    rows = [list(frame.columns), *([str(v) for v in row] for row in frame.astype(object).fillna("").to_numpy())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _ranks(stability: pd.DataFrame) -> list[str]:
    rows = stability[["rank", "rank_low", "rank_high"]].itertuples(index=False)
    return ["-" if np.isnan(r) else f"{r:.0f} [{low:.0f}, {high:.0f}]" for r, low, high in rows]


def _strength(folder: Path | str) -> pd.DataFrame:
    """Mean FSR over models: a row for each fooling and attacked interpreter, a column for each budget."""
    test = load(folder, "fronts").query("split == 'test'")
    means = test.pivot_table("fsr", ["fooling", "attacked"], "budget").reset_index()
    for budget in means.columns[2:]:
        means[budget] = means[budget].map("{:.2f}".format)
    return means.rename(columns=lambda c: c if isinstance(c, str) else f"<= {c:g} points")


def spans(frame: pd.DataFrame, column: str) -> list[str]:
    """A score with its interval, where it has one."""
    rows = frame[[column, f"{column}_low", f"{column}_high"]].astype(float).itertuples(index=False)
    ends = ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]" for _, low, high in rows)
    return ["" if np.isnan(v) else f"{v:.2f}{end}" for v, end in zip(frame[column], ends, strict=True)]

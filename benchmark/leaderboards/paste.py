"""Boards as text to paste elsewhere: CSV, Markdown, LaTeX, HTML."""

import re
from collections.abc import Callable

import pandas as pd

from benchmark.leaderboards.show import aligned, board_frame
from benchmark.leaderboards.table import csv_text


def board(stability: pd.DataFrame, form: str) -> str:
    """What `show` prints of a board, and why rows are not ranked."""
    rows = board_frame(stability)
    order = {index: reason for index, reason in stability.reason.items()}
    return FORMATS[form](rows.assign(**{"why it is not ranked": rows.index.map(order)}))


def _markdown(table: pd.DataFrame) -> str:
    cells = [[*table.columns], ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "".join(f"| {' | '.join(_plain(cell).replace('|', chr(92) + '|') for cell in row)} |\n" for row in cells)


def _plain(cell: object) -> str:
    """In one line, and without what a Markdown page would take for a tag."""
    text = re.sub(r"\s+", " ", str(cell))
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _formatted(write: Callable[[pd.DataFrame], str]) -> Callable[[pd.DataFrame], str]:
    return lambda table: write(table.astype(object).where(table.notna(), ""))


FORMATS: dict[str, Callable[[pd.DataFrame], str]] = {
    "text": aligned,
    "csv": csv_text,
    "markdown": _formatted(_markdown),
    "latex": _formatted(lambda table: table.to_latex(index=False, escape=True)),
    "html": _formatted(lambda table: f"{table.to_html(index=False, border=0, justify='left')}\n"),
}
"""A data frame as text; each ends its last line."""

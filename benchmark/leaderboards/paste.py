"""Boards as text to paste elsewhere: CSV, Markdown, LaTeX, HTML."""

from collections.abc import Callable

import pandas as pd

from benchmark.leaderboards.show import aligned, board_frame
from benchmark.leaderboards.table import csv_text


def board(stability: pd.DataFrame, form: str) -> str:
    """What `show` prints of a board, and why rows are not ranked."""
    return FORMATS[form](board_frame(stability).assign(**{"why it is not ranked": stability.reason}))


def _markdown(table: pd.DataFrame) -> str:
    cells = [[*table.columns], ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "".join(f"| {' | '.join(_plain(cell).replace('|', chr(92) + '|') for cell in row)} |\n" for row in cells)


def _plain(cell: object) -> str:
    """Without what a Markdown page would take for a tag."""
    return str(cell).replace("&", "&amp;").replace("<", "&lt;")


def _html(table: pd.DataFrame) -> str:
    with pd.option_context("display.max_colwidth", None):  # else it cuts long reasons short
        return f"{table.to_html(index=False, border=0, justify='left')}\n"


def _filled(write: Callable[[pd.DataFrame], str]) -> Callable[[pd.DataFrame], str]:
    return lambda table: write(table.astype(object).where(table.notna(), ""))


FORMATS: dict[str, Callable[[pd.DataFrame], str]] = {
    "text": aligned,
    "csv": csv_text,
    "markdown": _filled(_markdown),
    "latex": _filled(lambda table: table.to_latex(index=False, escape=True)),
    "html": _filled(_html),
}
"""A data frame as text; each ends its last line."""

"""A board as it lies in its folder: the rows of its tables, and the cards of its results.

Tables are read as they are, and so that an older board, which lacks columns, is one whose columns are empty.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from attacks.errors import UserError
from benchmark.leaderboards import TABLES
from benchmark.leaderboards.cells import Row
from benchmark.results import read_card

BY_MODEL = ("gate", "cost")
PARTS = (*BY_MODEL, "options", "versions")  # of a card, what pages look into
UNREAD = ("aopc",)  # curves, cell by cell: most of a board's bytes, and on no page


@dataclass(frozen=True)
class Board:
    """Tables by name, each a list of rows (column -> value, None where it is empty); cards by the results' name."""

    name: str
    folder: Path
    tables: dict[str, list[Row]]
    cards: dict[str, dict[str, Any]]

    def rows(self, table: str) -> list[Row]:
        """None for a table that this board does not have."""
        return self.tables.get(table, [])

    def listed(self, column: str) -> list[Any]:
        """What a column of the cells holds (`transfer`), once each, in order."""
        return sorted({row[column] for row in self.rows("transfer")})

    @property
    def controls(self) -> set[str]:
        return {row["interpreter"] for row in self.rows("stability") if row["reason"] == "control"}


def find(folder: Path) -> list[Board]:
    """The boards below `folder`: its folders with a stability.csv. Raises `UserError` where there is none."""
    found = sorted(path.parent for path in folder.glob("*/stability.csv"))
    if not found:
        what = "holds no board (a folder with stability.csv)" if folder.is_dir() else "is no folder"
        raise UserError(f"nothing to report: {folder} {what}; name the folder of leaderboards with --boards")
    with tqdm(found, "boards", unit="board", delay=1, leave=False) as bar:  # gone before an error is printed
        return [read(path) for path in bar]


def read(folder: Path) -> Board:
    there = {name: folder / f"{name}.csv" for name in TABLES if name not in UNREAD}
    tables = {name: _rows(name, path) for name, path in there.items() if path.is_file()}
    cards = {path.stem: _card(path) for path in sorted((folder / "results").glob("*.json"))}
    return Board(folder.name, folder, tables, cards)


def _rows(name: str, path: Path) -> list[Row]:
    frame = TABLES[name].read(path, older=True)
    for column in TABLES[name].columns:
        if column not in frame:
            frame[column] = None
    objects = frame.astype(object)
    return objects.where(frame.notna(), None).to_dict("records")  # type: ignore[return-value]


def _card(path: Path) -> dict[str, Any]:
    card = read_card(path)
    if not isinstance(card, dict):
        raise UserError(f"{path} must hold a card (got {type(card).__name__})")
    for part in PARTS:
        value = card.get(part, {})
        if not isinstance(value, dict) or (part in BY_MODEL and not all(isinstance(v, dict) for v in value.values())):
            raise UserError(f"{path}: {part} must hold names and values")
    return card

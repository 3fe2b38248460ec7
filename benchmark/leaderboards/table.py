"""What every leaderboard shares: its columns and rows stand together in one `Leaderboard`, written as one CSV.

`_low` and `_high` bound the 95 % bootstrap interval over images, n counts images. An empty field is a missing value.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attacks.errors import UserError
from benchmark.intervals import Mean
from benchmark.leaderboards.cells import Cell, Row, one_line
from benchmark.leaderboards.ranking import Standing
from benchmark.results import Entry

ENDS = ("", "_low", "_high")
PLACES = ["model", "fooling", "attacked", "evaluated", "interpreter"]
WHOLE = ("seed", "n")


@dataclass(frozen=True, eq=False)  # each is itself alone
class Results:
    """All results of one suite: (frame, card) of each evaluated interpreter, and the tables that are none's, by name
    (`benchmark.leaderboards.stored.STORED`), of which `models` is always there."""

    entries: dict[str, Entry]
    others: dict[str, Entry]

    @property
    def models(self) -> pd.DataFrame:
        return self.others["models"][0]

    @property
    def models_card(self) -> dict[str, Any]:
        return self.others["models"][1]


@dataclass(frozen=True)
class Measured:
    """What the tables are made of: the results, and what several tables take from them."""

    results: Results
    manipulations: list[Row]  # sorted by their key
    accuracy: list[Mean | None]  # of each manipulation, ACCURACY of `manipulations`; None: it failed
    cells: dict[str, list[Cell]]  # of each interpreter, sorted by name: one a manipulation
    standings: dict[str, Standing]  # of each interpreter


def always(_: Results) -> bool:
    return True


def none(_: list[Row]) -> list[str]:
    return []


@dataclass(frozen=True)
class Leaderboard:
    """One CSV: its header, which columns hold text, its rows (in order, what else they hold is left out), where there
    is such a table at all, columns at the end that depend on the rows, and which columns are shares, in 0..1."""

    columns: Sequence[str]
    text: Sequence[str]
    rows: Callable[[Measured], list[Row]]
    exists: Callable[[Results], bool] = always
    more: Callable[[list[Row]], list[str]] = none
    shares: Sequence[str] = ()
    where: str = ""

    def frame(self, measured: Measured) -> pd.DataFrame:
        rows = self.rows(measured)
        return pd.DataFrame(rows, columns=[*self.columns, *self.more(rows)])

    def read(self, path: Path, older: bool = False) -> pd.DataFrame:
        """The CSV as it lies there; only empty fields are missing values. UserError: no such file, another table, a
        line that is cut short or there twice, text where a number is due, a share outside 0..1, a place without a
        name, a part of an image or a seed. `older`: it may lack all columns but
        the first and those of places, as an earlier version's does."""
        try:
            _check_lines(path)
            frame = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(self.text, "str"))
        except FileNotFoundError as error:
            raise UserError(f"no leaderboard {path}: foolbench leaderboard writes it from the results") from error
        except (ValueError, OSError, csv.Error) as error:
            raise UserError(f"{path} is not a readable CSV: {one_line(str(error))}") from error
        _check_columns(path, frame, self.columns[:1] if older else self.columns)
        for column in frame.columns.difference([*self.text], sort=False):
            numbers = pd.to_numeric(frame[column], errors="coerce")
            _check(path, frame[column], numbers.isna() & frame[column].notna(), "a number")
            _check(path, frame[column], ~numbers.fillna(0).between(0, 1) & (column in self.shares), "a share in 0..1")
            _check(path, frame[column], np.isinf(numbers), "a finite number")
            _check(path, frame[column], (numbers.fillna(0) % 1 != 0) & (column in WHOLE), "a whole number")
        places = [column for column in self.columns if column in PLACES]
        _check_columns(path, frame, places)
        for column in places:
            _check(path, frame[column].fillna("nothing"), frame[column].isna(), "a name")
        if not older and (twice := frame.duplicated()).any():  # which may not tell them apart
            raise UserError(f"{path}, line {int(twice.to_numpy().argmax()) + 2}: the same line is there twice")
        return frame


def _check_columns(path: Path, frame: pd.DataFrame, needed: Sequence[str]) -> None:
    if missing := [column for column in needed if column not in frame.columns]:
        raise UserError(f"{path} is not a {path.stem} leaderboard: it lacks {', '.join(missing)}")


def _check(path: Path, values: pd.Series, wrong: pd.Series, what: str) -> None:
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise UserError(f"{path}, line {row + 2}: {values.name} must be {what} (got {values.iloc[row]!s})")


def _check_lines(path: Path) -> None:
    """ValueError unless every line is whole and has as many fields as the first."""
    text = path.read_bytes().decode()
    rows = csv.reader(io.StringIO(text, newline=""))
    columns = len(next(rows, []))
    for row in rows:
        if row and len(row) != columns:
            raise ValueError(f"line {rows.line_num} has {len(row)} fields, the first one {columns}")
    if text and not text.endswith("\n"):
        raise ValueError(f"it ends in the middle of line {rows.line_num}")


def csv_text(table: pd.DataFrame) -> str:
    """The table as every CSV of the project is written: nine digits, no minus zero."""
    floats = table.select_dtypes("float").columns
    table = table.assign(**{name: table[name] + 0.0 for name in floats})  # no -0
    return table.to_csv(index=False, float_format="%.9g", lineterminator="\n")


def intervals(*names: str) -> list[str]:
    """The columns of each score: its mean and the ends of its interval."""
    return [name + end for name in names for end in ENDS]


def span(name: str, values: Sequence[Any]) -> Row:
    """The fields of one score: (mean, low, high)."""
    return dict(zip(intervals(name), values, strict=True))


def with_ends(names: Sequence[str], mean: Mean | None) -> Row:
    """The fields of each score: its mean and interval; none if there is no mean."""
    if mean is None:
        return {}
    ends = dict(zip(ENDS, (mean.value, mean.low, mean.high), strict=True))
    return {name + end: values[i] for i, name in enumerate(names) for end, values in ends.items()}

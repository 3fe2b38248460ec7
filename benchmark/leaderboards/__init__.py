"""Results -> leaderboards: CSV tables, a pure function of the results, byte for byte.

A table is one line of `TABLES`; its columns, its rows and where it exists stand together in its file, with what they
mean. No torch.
"""

from pathlib import Path

import pandas as pd

from attacks.errors import UserError
from benchmark.leaderboards import stored
from benchmark.leaderboards.aopc import AOPC
from benchmark.leaderboards.attacks import ATTACKS
from benchmark.leaderboards.backdoors import TRIGGERED
from benchmark.leaderboards.cells import cells_of, one_line, row_key
from benchmark.leaderboards.fronts import POINTS
from benchmark.leaderboards.lied import LIED
from benchmark.leaderboards.manipulations import ACCURACIES, MANIPULATIONS, accuracies
from benchmark.leaderboards.robustness import ARA, RESISTANCE
from benchmark.leaderboards.stability import DIFFERENCES, STABILITY, standings
from benchmark.leaderboards.table import Leaderboard, Measured, Results, csv_text
from benchmark.leaderboards.transfer import TRANSFER
from benchmark.store import write_atomic

TABLES: dict[str, Leaderboard] = {
    "manipulations": MANIPULATIONS,
    "transfer": TRANSFER,
    "accuracy": ACCURACIES,
    "aopc": AOPC,
    "fronts": POINTS,
    "attacks": ATTACKS,
    "backdoors": TRIGGERED,
    "lied": LIED,
    "ara": ARA,
    "resistance": RESISTANCE,
    "differences": DIFFERENCES,
    "stability": STABILITY,
}
"""NAME.csv of each."""


def build(results: Results) -> dict[str, pd.DataFrame]:
    """All leaderboards, by name; rows sorted by their key columns. None has a control that was asked at the gate alone,
    as beside a submission."""
    listed = results.models_card["manipulations"]
    manipulations = sorted(({**m, "reason": one_line(m["reason"])} for m in listed), key=row_key)
    accuracy = accuracies(results.models, manipulations)
    scored = {name: entry for name, entry in sorted(results.entries.items()) if not entry[1].get("gate_alone")}
    cells = {name: cells_of(name, entry, manipulations) for name, entry in scored.items()}
    measured = Measured(results, manipulations, accuracy, cells, standings(results, cells, accuracy))
    return {name: table.frame(measured) for name, table in TABLES.items() if table.exists(results)}


def write(folder: Path | str) -> None:
    """Regenerate every leaderboard of `folder` (leaderboards/<suite>) from its results/; one that they no longer
    give is removed."""
    rendered = _render(Path(folder))
    for name, text in rendered.items():
        write_atomic(Path(folder) / f"{name}.csv", text)
    for name in TABLES.keys() - rendered.keys():
        (Path(folder) / f"{name}.csv").unlink(missing_ok=True)


def are_current(folder: Path | str) -> bool:
    """Whether the CSVs of `folder` are there, and no result is younger, by the files' times: in seconds less than
    `check` takes. What is written last, and checked out last, is the stability."""
    board, results = Path(folder) / "stability.csv", Path(folder) / "results"
    if not board.is_file():
        return False
    written = board.stat().st_mtime_ns
    return all(path.stat().st_mtime_ns <= written for path in (results, *results.glob("*")) if path.exists())


def check(folder: Path | str) -> list[str]:
    """The CSV files of `folder` that are missing, or not what its results give, byte for byte but for line ends."""
    rendered = _render(Path(folder))
    there = {name: path for name in TABLES if (path := Path(folder) / f"{name}.csv").is_file()}
    given = {name: _unix(path.read_bytes()) for name, path in there.items()}
    return [f"{name}.csv" for name in TABLES if given.get(name) != rendered.get(name)]


def load(folder: Path | str, name: str) -> pd.DataFrame:
    """The leaderboard `name` as it lies in `folder`; only empty fields are missing values. Raises `UserError`, which
    says so where the suite has no such table."""
    table, path = TABLES[name], Path(folder) / f"{name}.csv"
    results = Path(folder) / "results"
    if table.where and not path.is_file() and results.is_dir() and not table.exists(stored.read(results)):
        raise UserError(f"{folder} has no {name}, which a suite has where {table.where}")
    return table.read(path)


def _render(folder: Path) -> dict[str, bytes]:
    tables = build(stored.read(folder / "results"))
    return {name: csv_text(table).encode() for name, table in tables.items()}


def _unix(text: bytes) -> bytes:
    """As it was committed: git may check a file out with CRLF line ends."""
    return text.replace(b"\r\n", b"\n")

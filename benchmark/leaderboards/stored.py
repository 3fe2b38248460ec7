"""The results of a suite: a folder of tables, from which every leaderboard is computed.

One Parquet table and one JSON card for each evaluated interpreter (`SCORES`), and those of STORED: `models` for the
manipulations themselves, `fronts` where recipes were searched, `robustness` where clean models were attacked,
`backdoors` where a fooling has a trigger, `controls` where models are fine-tuned without one.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from attacks.errors import UserError
from benchmark import results
from benchmark.committed import WHERE
from benchmark.leaderboards.backdoors import BACKDOORS
from benchmark.leaderboards.cells import SCORES
from benchmark.leaderboards.fronts import FRONTS
from benchmark.leaderboards.lied import CONTROLS
from benchmark.leaderboards.manipulations import MODELS
from benchmark.leaderboards.robustness import ROBUSTNESS
from benchmark.leaderboards.table import Results
from benchmark.results import KEY, Table

STORED = {"models": MODELS, "fronts": FRONTS, "robustness": ROBUSTNESS, "backdoors": BACKDOORS, "controls": CONTROLS}
"""Tables that are no interpreter's: no interpreter can have such a name."""


def table(name: str) -> Table:
    """What the results of that name hold: one of STORED, or the scores of an interpreter."""
    return STORED.get(name, SCORES)


def write(folder: Path | str, name: str, frame: pd.DataFrame, card: dict[str, Any]) -> None:
    """Write the results of an interpreter, or one of STORED; as `benchmark.results.write`."""
    results.write(folder, name, frame, card, table(name))


def none_but(folder: Path, names: Iterable[str]) -> None:
    """That `folder`, if it is there, holds results of these names alone: others, of another run, would be rows of the
    same board. UserError names them."""
    if others := sorted(_names(folder) - set(names)) if folder.is_dir() else []:
        raise UserError(
            f"{folder} holds results of another run ({', '.join(others)}), which would stand on this board: "
            "move them away, or choose another --out"
        )


def read(folder: Path | str) -> Results:
    """All results in `folder`, checked: UserError names the file that is missing, corrupt or foreign."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no results: {folder} is not a folder (foolbench run writes it); {WHERE}")
    names = sorted(_names(folder) | {"models"})
    entries = {name: results.read(folder, name, table(name)) for name in names}
    others = {name: entries.pop(name) for name in STORED if name in entries}
    listed = {tuple(manipulation[k] for k in KEY) for manipulation in others["models"][1]["manipulations"]}
    for name, (frame, _) in [*entries.items(), ("models", others["models"])]:
        if foreign := set(frame[list(KEY)].drop_duplicates().itertuples(index=False, name=None)) - listed:
            cell = "/".join(map(str, min(foreign)))
            raise UserError(f"{folder / name}.parquet scores {cell}, which models.json does not list")
    return Results(entries, others)


def _names(folder: Path) -> set[str]:
    return {path.stem for path in folder.iterdir() if path.suffix in (".parquet", ".json")}

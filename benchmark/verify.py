"""Recompute one committed cell from nothing, and compare it with the committed results, image by image."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attacks.errors import UserError, unknown
from benchmark import metrics
from benchmark.entries import harness
from benchmark.execution.compute import name_of
from benchmark.leaderboards import stored
from benchmark.results import KEY
from benchmark.run import Cell, Run, scores_spec, span
from benchmark.store import Store, key_of
from benchmark.suite import RecipeRule, split_attack

TRAINED = ("learning_rate", "steps", "batch_size")
COMPARED = ("test_loss", *metrics.names())


def parse(text: str, suite_cells: list[Cell], evaluated: list[str]) -> tuple[Cell, str]:
    """MODEL/FOOLING/ATTACKED/EVALUATED/SEED as a manipulation of the suite and an interpreter."""
    parts = text.split("/")
    if len(parts) != 5 or not parts[4].isdecimal():
        raise UserError(f"a cell must be MODEL/FOOLING/ATTACKED/EVALUATED/SEED (got {text!r})")
    cell = dict(zip(KEY, (*parts[:3], int(parts[4])), strict=True))
    if cell not in suite_cells:
        raise unknown("manipulation", name_of(cell), map(name_of, suite_cells))
    if parts[3] not in evaluated:
        raise unknown("evaluated interpreter", parts[3], evaluated)
    return cell, parts[3]


def verify(run: Run, cell: Cell, evaluated: str, folder: Path) -> dict[str, Any]:
    """Train, fool and score the cell again in a store of its own, with the committed recipe.

    Returns the number of rows, the FSR as committed and as found, the rows whose success differs, and the largest
    difference of each of COMPARED. Raises `UserError` where the cell is not among the results in `folder`.
    """
    committed = stored.read(folder / "results")
    recipes = [
        RecipeRule.model_construct(**{k: m[k] for k in (*KEY[:3], *TRAINED)}, weight=m["lambda"])  # steps may be 0
        for m in committed.models_card["manipulations"]
        if split_attack(m["attacked"])[1] != "subspace" and m["status"] == "done"
    ]
    frame, _ = committed.entries.get(evaluated, (pd.DataFrame(columns=[*KEY]), {}))
    before = frame[np.logical_and.reduce([frame[key] == cell[key] for key in KEY])].reset_index(drop=True)
    if before.empty:
        raise UserError(f"{folder} holds no scores of {name_of(cell)} by {evaluated}")
    changes = {"search": None, "recipes": recipes, "evaluated": []}
    with tempfile.TemporaryDirectory() as store:
        own = replace(run, store=store, suite=run.suite.model_copy(update=changes))
        if split_attack(cell["attacked"])[1] == "subspace":
            for other in span(own.suite, cell):
                harness.make_manipulation(own, other)
        own = replace(own, suite=own.suite.model_copy(update={"evaluated": [evaluated]}))
        harness.make_manipulation(own, cell)
        path = Store(store).path("scores", key_of(scores_spec(own, cell, evaluated)))
        after = pd.read_parquet(path / "scores.parquet")
    gaps = {name: float((before[name] - after[name].astype(np.float32)).abs().max()) for name in COMPARED}
    return {
        "rows": len(before),
        "fsr_committed": float(before.success.mean()),
        "fsr": float(after.success.mean()),
        "differing": int((before.success != after.success).sum()) if len(after) == len(before) else len(before),
        **gaps,
    }

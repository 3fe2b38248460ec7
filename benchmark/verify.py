"""Recompute one committed cell from nothing, and compare it with the committed results, image by image."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attacks import strategies
from attacks.errors import UserError, unknown
from benchmark import metrics
from benchmark.cells import Cell, Manipulation, plan
from benchmark.entries.kind import Entry
from benchmark.entries.scores import SCORES
from benchmark.execution import compute
from benchmark.leaderboards import stored
from benchmark.results import KEY
from benchmark.run import Run
from benchmark.sections import RecipeRule, Suite
from benchmark.store import intact

TRAINED = ("learning_rate", "steps", "batch_size", "divergence", "scope")  # the last two unknown to older results
COMPARED = ("test_loss", *metrics.names())


def parse(text: str, suite: Suite) -> Cell:
    """MODEL/FOOLING/ATTACKED/EVALUATED/SEED as a cell of the suite."""
    model, fooling, attacked, evaluated, seed = (text.split("/") + [""] * 5)[:5]
    if text.count("/") != 4 or not seed.isdecimal():
        raise UserError(f"a cell must be MODEL/FOOLING/ATTACKED/EVALUATED/SEED (got {text!r})")
    manipulation = Manipulation(model, fooling, attacked, int(seed))
    if manipulation not in (planned := plan(suite)):
        raise unknown("manipulation", str(manipulation), map(str, planned))
    if evaluated not in suite.evaluated:
        raise unknown("evaluated interpreter", evaluated, suite.evaluated)
    return Cell(manipulation, evaluated)


def verify(run: Run, cell: Cell, folder: Path) -> dict[str, Any]:
    """Train, fool and score the cell again in a store of its own, with the committed recipe.

    Returns the number of rows, the FSR as committed and as found, the rows whose success differs, and the largest
    difference of each of COMPARED. Raises `UserError` where the cell is not among the results in `folder`.
    """
    committed = stored.read(folder / "results")
    recipes = [
        RecipeRule.model_construct(**{k: m.get(k) for k in (*KEY[:3], *TRAINED)}, weight=m["lambda"])  # steps may be 0
        for m in committed.models_card["manipulations"]
        if strategies.STRATEGIES[strategies.split(m["attacked"])[1]].takes_recipe and m["status"] == "done"
    ]
    frame, _ = committed.entries.get(cell.evaluated, (pd.DataFrame(columns=[*KEY]), {}))
    place = cell.manipulation.columns()
    before = frame[np.logical_and.reduce([frame[key] == place[key] for key in KEY])].reset_index(drop=True)
    if before.empty:
        raise UserError(f"{folder} holds no scores of {cell.manipulation} by {cell.evaluated}")
    suite = run.suite.model_copy(update={"search": None, "recipes": recipes})
    with tempfile.TemporaryDirectory() as store:
        again, scored = replace(run, store=store, suite=suite), Entry(SCORES, cell)
        compute.make_all(again, [scored], jobs=1)  # on the suite's threads, as a run
        after = intact(scored.path(again) / "scores.parquet", pd.read_parquet)
    gaps = {name: float((before[name] - after[name].astype(np.float32)).abs().max()) for name in COMPARED}
    return {
        "rows": len(before),
        "fsr_committed": float(before.success.mean()),
        "fsr": float(after.success.mean()),
        "differing": int((before.success != after.success).sum()) if len(after) == len(before) else len(before),
        **gaps,
    }

"""What a fooled model and the clean one predict on the scored images, `predictions.parquet`; and the results that tell
of every manipulation, `models`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from attacks import foolings
from benchmark.cells import Manipulation, plan
from benchmark.entries import manipulations, recipes
from benchmark.entries.curves import scoring_spec
from benchmark.entries.images import scored_pixels
from benchmark.entries.kind import Entry, Errors, Inputs, Kind, Receipt, Result
from benchmark.entries.manipulations import LOSSES, MANIPULATIONS
from benchmark.entries.scoring import predictions
from benchmark.entries.trained import stored_model
from benchmark.run import Run, data_spec, pair_forms, provenance

CODE = (*manipulations.CODE, "benchmark.entries.predictions")


@torch.no_grad()
def _make(run: Run, manipulation: Manipulation, inputs: Inputs, folder: Path) -> None:
    fooled = stored_model(run, manipulation.model, inputs["manipulation"])
    predictions(run, manipulation.model, fooled).to_parquet(folder / "predictions.parquet")


def outcome(run: Run, manipulation: Manipulation, errors: Errors) -> Receipt:
    """A manipulation's row in the results: its place and recipe, how it went, and the error of one that failed."""
    made = Entry(MANIPULATIONS, manipulation)
    receipt = made.receipt(run) or {}
    unknown = {"steps_done": 0, **dict.fromkeys((*LOSSES, "converged"))}
    losses = {name: receipt.get(name, value) for name, value in unknown.items()}
    status, reason = receipt.get("status", "failed"), receipt.get("reason", "")
    predicted = Entry(PREDICTIONS, manipulation)
    if status == "failed" or (status == "done" and predicted.receipt(run) is None):
        status, reason = "failed", errors.get(made) or errors.get(predicted) or reason
    row = {**manipulation.columns(), **recipes.row(run, manipulation), **losses, "status": status, "reason": reason}
    return row | {"range": foolings.create(manipulation.fooling).range, "key": made.key(run)}


def origin(run: Run) -> dict[str, Any]:
    """Versions and device of the manipulations themselves, which may be older than this run, or of another device."""
    receipts = (Entry(MANIPULATIONS, manipulation).receipt(run) or {} for manipulation in plan(run.suite))
    seen = next((receipt for receipt in receipts if "versions" in receipt), None)
    return {name: seen[name] for name in ("versions", "device", "threads")} if seen else provenance(run)


def _collect(run: Run, errors: Errors) -> Iterator[Result]:
    outcomes = [outcome(run, manipulation, errors) for manipulation in plan(run.suite)]
    done = [m for m, row in zip(plan(run.suite), outcomes, strict=True) if row["status"] == "done"]
    rows = [(Entry(PREDICTIONS, m).path(run) / "predictions.parquet", m.columns()) for m in done]
    forms = {"pairs" if pairs else "images": pairs for pairs in pair_forms(run)}
    data = {name: data_spec(run, run.suite.scoring.split, pairs) for name, pairs in forms.items()}
    yield "models", rows, {"suite": run.suite.name, "dataset": data, "manipulations": outcomes}


PREDICTIONS = Kind(
    name="predictions",
    title="predictions of",
    make=_make,
    spec=lambda run, manipulation: scoring_spec(run, False),
    code=CODE,
    wanted=lambda run: plan(run.suite),
    needs=lambda run, manipulation: {"manipulation": Entry(MANIPULATIONS, manipulation)},
    after=lambda run, manipulation: scored_pixels(run),
    together=lambda manipulation: Entry(MANIPULATIONS, manipulation),
    collect=_collect,
)

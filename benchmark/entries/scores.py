"""One cell's scores, image by image, `scores.parquet`, and its first maps for the figure, `samples.npy`; and the
results of every evaluated interpreter."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from attacks import foolings
from attacks.backdoors import Backdoor
from benchmark.cells import Cell, Manipulation, View, plan
from benchmark.entries import predictions
from benchmark.entries.curves import Curves, reader, scoring_spec
from benchmark.entries.images import scored_pixels
from benchmark.entries.kind import Entry, Errors, Inputs, Kind, Receipt, Result
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.entries.originals import ORIGINALS
from benchmark.entries.predictions import outcome
from benchmark.entries.scoring import score
from benchmark.entries.trained import clean_model, stored_model
from benchmark.leaderboards.cells import CONTRAST
from benchmark.run import Run, Spec, create_interpreter, interpreter_spec, shared
from benchmark.store import intact, mapped

SAMPLES = 8  # fooled heatmaps kept of each cell, for the figure
CODE = (*predictions.CODE, "benchmark.entries.scores")


class Scored(NamedTuple):
    """What all cells of a fooled model share."""

    clean: nn.Module
    fooled: nn.Module
    on_clean: Curves
    on_fooled: Curves
    at_random: np.ndarray


@shared
def _scored(run: Run, manipulation: Manipulation, path: Path) -> Scored:
    clean, pairs = clean_model(run, manipulation.model), foolings.create(manipulation.fooling).pairs
    fooled = stored_model(run, manipulation.model, path)
    on_fooled = Curves(run, fooled, pairs)
    return Scored(clean, fooled, Curves(run, clean, pairs), on_fooled, on_fooled.drops(None))


@torch.no_grad()
def _make(run: Run, cell: Cell, inputs: Inputs, folder: Path) -> None:
    fooling, scoring = foolings.create(cell.manipulation.fooling), run.suite.scoring
    clean, fooled, on_clean, on_fooled, at_random = _scored(run, cell.manipulation, inputs["manipulation"])
    maps0 = intact(inputs["originals"] / "heatmaps.npy", mapped)
    clean_curves = intact(inputs["originals"] / "curves.npz", np.load)
    keep = max(SAMPLES, scoring.aopc_images)
    frame, maps = score(run, fooling, create_interpreter(run, cell.evaluated), fooled, maps0, keep, clean)
    after, before, by_before = reader(maps.cpu().numpy()), reader(maps0), on_fooled.drops(reader(maps0))
    same = torch.equal(maps.cpu(), before(0, keep))  # as a control's are: the curves are the same then
    curves = {
        "aopc_clean_original": clean_curves["original"],
        "aopc_clean_random": clean_curves["random"],
        "aopc_clean_fooled": clean_curves["original"] if same else on_clean.drops(after),
        "aopc_fooled_original": by_before,
        "aopc_fooled_fooled": by_before if same else on_fooled.drops(after),
        "aopc_fooled_random": at_random,
    }
    first = frame.index[frame["pair"] == 0]
    for name, values in curves.items():
        for column, drops in zip((name, name + CONTRAST), values.astype(np.float32).swapaxes(0, 1), strict=True):
            frame[column] = pd.Series(list(drops), index=first[: len(drops)], dtype=object)
    frame.to_parquet(folder / "scores.parquet")
    np.save(folder / "samples.npy", maps[:SAMPLES].cpu().numpy())


def _spec(run: Run, cell: Cell) -> Spec:
    pairs = foolings.create(cell.manipulation.fooling).pairs
    return {**scoring_spec(run, pairs), "interpreter": interpreter_spec(run, cell.evaluated)}


def _needs(run: Run, cell: Cell) -> dict[str, Entry]:
    view = View(cell.manipulation.model, cell.evaluated, foolings.create(cell.manipulation.fooling).pairs)
    return {"manipulation": Entry(MANIPULATIONS, cell.manipulation), "originals": Entry(ORIGINALS, view)}


def _collect(run: Run, errors: Errors) -> Iterator[Result]:
    """A result a name: its scores, and a card with what it is and its failed cells. `backdoors`: what the scores of
    these have beside, of all names."""
    outcomes = [(manipulation, outcome(run, manipulation, errors)) for manipulation in plan(run.suite)]
    triggered = []
    for evaluated in run.suite.evaluated:
        rows, failures = [], []
        for manipulation, row in outcomes:
            scored, place = Entry(SCORES, Cell(manipulation, evaluated)), manipulation.columns()
            if row["status"] != "done":
                failures.append({**place, "error": f"{row['status']}: {row['reason']}"})
            elif scored.receipt(run) is None:
                failures.append({**place, "error": scored.void(run) or errors.get(scored, "not evaluated")})
            else:
                rows.append((scored.path(run) / "scores.parquet", place))
                if isinstance(foolings.create(manipulation.fooling), Backdoor):
                    triggered.append((rows[-1][0], place | {"evaluated": evaluated}))
        yield evaluated, rows, _card(run, evaluated) | {"failures": failures}
    if any(isinstance(foolings.create(name), Backdoor) for name in run.suite.foolings):
        yield "backdoors", triggered, {"suite": run.suite.name}


def _card(run: Run, evaluated: str) -> Receipt:
    interpreter = create_interpreter(run, evaluated)
    card: dict[str, Any] = {
        "interpreter": evaluated,
        "options": {k: v for k, v in interpreter_spec(run, evaluated).items() if k != "name"},
        "differentiable": interpreter.differentiable,
        "stochastic": interpreter.stochastic,
        "control": interpreter.control,
        "attackable": evaluated in run.suite.attacked,
        "suite": run.suite.name,
    }
    if run.is_submitted(evaluated):
        card |= {"status": "submitted", "flags": run.submission.flags}
    return card


def _wanted(run: Run) -> Iterator[Cell]:
    return (Cell(manipulation, name) for manipulation in plan(run.suite) for name in run.suite.evaluated)


SCORES = Kind(
    name="scores",
    title="scores of",
    make=_make,
    spec=_spec,
    code=CODE,
    wanted=_wanted,
    needs=_needs,
    after=lambda run, cell: scored_pixels(run),
    together=lambda cell: Entry(MANIPULATIONS, cell.manipulation),
    collect=_collect,
)

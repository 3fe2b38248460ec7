"""The control of all fooled models: each model fine-tuned as long without a fooling loss, `weights.safetensors`; and
what it loses where the clean model's maps point, `curves.parquet`.

A fooled model loses its class where the old map points less than the clean one does, also because fine-tuning itself
moved it: `benchmark.leaderboards.lied` sets it beside this. Labels are kept, also where the fooling is distilled: with
the clean model's own predictions and no fooling there is nothing to learn.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from attacks import foolings
from attacks.control import fine_tuned
from attacks.course import Recipe, infinite
from benchmark.cells import View
from benchmark.entries import originals
from benchmark.entries.curves import Curves, reader, scoring_spec
from benchmark.entries.images import scored_pixels, shuffled
from benchmark.entries.kind import Entry, Errors, Inputs, Kind, Receipt, Result
from benchmark.entries.originals import ORIGINALS
from benchmark.entries.trained import TRAINED, clean_model, save_weights, stored_model
from benchmark.metrics.perturbation import SCORES
from benchmark.run import Run, Spec, data_spec, interpreter_spec, shared
from benchmark.store import intact, mapped

CODE = (*originals.CODE, "attacks.control", "benchmark.entries.controls")


@dataclass(frozen=True, order=True, slots=True)
class Tuned:
    """A model, fine-tuned with a seed."""

    model: str
    seed: int

    def __str__(self) -> str:
        return f"{self.model}/{self.seed}"


@dataclass(frozen=True, order=True, slots=True)
class Pointed:
    """A fine-tuned model where the maps of a clean one point."""

    tuned: Tuned
    view: View

    def __str__(self) -> str:
        return f"{self.view}/{self.tuned.seed}"


def _recipe(run: Run) -> Recipe:
    assert run.suite.control is not None
    control = run.suite.control
    return Recipe(control.learning_rate, 0.0, control.steps, control.batch_size)


def _tune(run: Run, place: Tuned, inputs: Inputs, folder: Path) -> Receipt:
    recipe = _recipe(run)
    batches = shuffled(run, recipe.batch_size, place.seed)
    tuned = fine_tuned(clean_model(run, place.model), batches, recipe, place.seed)
    if reason := infinite(tuned):
        return {"void": f"the control diverged: {reason}"}
    save_weights(tuned, folder)
    return {}


@shared
def _curves(run: Run, place: Tuned, path: Path, pairs: bool) -> tuple[Curves, np.ndarray]:
    """Of the control, and its drops in a random order."""
    curves = Curves(run, stored_model(run, place.model, path), pairs)
    return curves, curves.drops(None)


@torch.no_grad()
def _point(run: Run, place: Pointed, inputs: Inputs, folder: Path) -> None:
    curves, at_random = _curves(run, place.tuned, inputs["control"], place.view.pairs)
    there = curves.drops(reader(intact(inputs["originals"] / "heatmaps.npy", mapped)))
    read, frame = SCORES.index("contrast"), pd.DataFrame({"image": np.arange(len(there), dtype=np.int32)})
    for name, drops in (("original", there), ("random", at_random)):
        frame[name] = pd.Series(list(drops[:, read].astype(np.float32)), dtype=object)
    frame.to_parquet(folder / "curves.parquet")


def _tuned(run: Run) -> list[Tuned]:
    return [Tuned(*place) for place in product(run.suite.models, run.suite.seeds)] if run.suite.control else []


def _pointed(run: Run) -> Iterator[Pointed]:
    forms = sorted({foolings.create(name).pairs for name in run.suite.foolings})
    return (
        Pointed(tuned, View(tuned.model, name, pairs))
        for tuned in _tuned(run)
        for pairs, name in product(forms, run.suite.evaluated)
    )


def _point_spec(run: Run, place: Pointed) -> Spec:
    return {**scoring_spec(run, place.view.pairs), "interpreter": interpreter_spec(run, place.view.interpreter)}


def _collect(run: Run, errors: Errors) -> Iterator[Result]:
    if not run.suite.control:
        return
    rows, failures = [], []
    for place in _pointed(run):
        entry, view = Entry(POINTED, place), place.view
        columns = {"model": view.model, "seed": place.tuned.seed, "evaluated": view.interpreter, "pairs": view.pairs}
        if entry.receipt(run) is None:
            failures.append(columns | {"error": entry.void(run) or errors.get(entry, "not measured")})
        else:
            rows.append((entry.path(run) / "curves.parquet", columns))
    yield "controls", rows, {"suite": run.suite.name, "recipe": _recipe(run).row(), "failures": failures}


CONTROLS = Kind(
    name="controls",
    title="control",
    make=_tune,
    spec=lambda run, place: {"recipe": _recipe(run).row(), "seed": place.seed, "data": data_spec(run, "train")},
    code=CODE,
    wanted=_tuned,
    needs=lambda run, place: {"model": Entry(TRAINED, place.model)},
)
POINTED = Kind(
    name="pointed",
    title="control of",
    make=_point,
    spec=_point_spec,
    code=CODE,
    wanted=_pointed,
    needs=lambda run, place: {"control": Entry(CONTROLS, place.tuned), "originals": Entry(ORIGINALS, place.view)},
    after=lambda run, place: scored_pixels(run),
    together=lambda place: Entry(CONTROLS, place.tuned),
    collect=_collect,
)

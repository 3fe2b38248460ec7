"""What every scored model shows beside its head-permuted twin (`benchmark.entries.permuted`), the clean ones and the
fooled ones: the receipt alone holds it, and `benchmark.leaderboards.ranking` decides from it who is ranked.

Asked is about the images that were scored first (of two-object ones, about their first class), as they were scored: the
whole first batch where a stranger's method answers, lest the size of the batch tell the twins from the scoring; what it
says of the model is compared with what was scored, too. A few images do for an interpreter that runs here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attacks import foolings
from benchmark.cells import Cell, View, plan
from benchmark.entries import permuted, scores
from benchmark.entries.curves import scoring_spec
from benchmark.entries.images import first_images, scored_images, scored_pixels
from benchmark.entries.kind import Entry, Errors, Inputs, Kind, Receipt, Result
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.entries.originals import ORIGINALS
from benchmark.entries.scores import SAMPLES, SCORES
from benchmark.entries.trained import TRAINED, clean_model, stored_model
from benchmark.run import Run, Spec, create_interpreter, interpreter_spec
from benchmark.store import intact, key_of, mapped

CODE = (*scores.CODE, *permuted.CODE, "benchmark.entries.twins")
Scored = View | Cell  # a clean model, or a fooled one, under one interpreter


def _pairs(place: Scored) -> bool:
    return place.pairs if isinstance(place, View) else foolings.create(place.manipulation.fooling).pairs


def _name(place: Scored) -> str:
    return place.interpreter if isinstance(place, View) else place.evaluated


def _asked(run: Run, place: Scored) -> int:
    """How many images."""
    whole = run.is_submitted(_name(place))
    return run.suite.scoring.batch_size if whole else min(SAMPLES, run.suite.scoring.batch_size)


@torch.no_grad()
def _make(run: Run, place: Scored, inputs: Inputs, folder: Path) -> Receipt:
    if isinstance(place, View):
        model = clean_model(run, place.model)
        scored = intact(inputs["scored"] / "heatmaps.npy", mapped)
    else:
        model = stored_model(run, place.manipulation.model, inputs["manipulation"])
        scored = intact(inputs["scored"] / "samples.npy", np.load)
    _, images, targets = next(first_images(scored_images(run, _pairs(place)), _asked(run, place)))
    if _pairs(place):
        targets = targets[:, 0]
        scored = scored[:, 0] if scored.ndim == 4 else scored
    before = torch.from_numpy(np.array(scored[: len(images)]))
    interpreter = create_interpreter(run, _name(place))
    return {"twin": permuted.compare(interpreter, model, images, targets, _seed(place), before)}


def _seed(place: Scored) -> int:
    return int(key_of({"place": str(place)})[:8], 16)


def _spec(run: Run, place: Scored) -> Spec:
    spec = {**scoring_spec(run, _pairs(place)), "interpreter": interpreter_spec(run, _name(place))}
    return spec | {"asked": _asked(run, place), "seed": _seed(place)}


def _needs(run: Run, place: Scored) -> dict[str, Entry]:
    if isinstance(place, View):
        return {"model": Entry(TRAINED, place.model), "scored": Entry(ORIGINALS, place)}
    return {"manipulation": Entry(MANIPULATIONS, place.manipulation), "scored": Entry(SCORES, place)}


def _places(run: Run, name: str) -> Iterator[Scored]:
    """Of one interpreter. Pairs of clean models where a fooling asks about pairs, single images where one does."""
    forms = sorted({foolings.create(fooling).pairs for fooling in run.suite.foolings})
    yield from (View(model, name, pairs) for model in run.suite.models for pairs in forms)
    yield from (Cell(manipulation, name) for manipulation in plan(run.suite))


def _judged(run: Run) -> list[str]:
    """Who may be ranked: in a suite with a gate, all but the controls."""
    names = run.suite.evaluated if run.suite.gate else []
    return [name for name in names if not create_interpreter(run, name).control]


def _wanted(run: Run) -> Iterator[Scored]:
    return (place for name in _judged(run) for place in _places(run, name))


def _collect(run: Run, errors: Errors) -> Iterator[Result]:
    """For the card of every interpreter: the least alike of all its twins, and of all answers that it gave twice."""
    for name in _judged(run):
        entries = [Entry(TWINS, place) for place in _places(run, name)]
        shown = {str(e.place): receipt["twin"] for e in entries if (receipt := e.receipt(run)) is not None}
        card: dict[str, Any] = {"asked": len(shown)}
        for part in ("correlation", "again"):
            means = {place: float(np.mean(twin[part])) for place, twin in shown.items() if part in twin}
            if means:
                where = min(means, key=means.__getitem__)
                card[part] = {"least": means[where], "where": where}
        card["difference"] = max(
            (max(twin["difference"]) for twin in shown.values() if "difference" in twin), default=None
        )
        card["unchecked"] = sorted({twin["unchecked"] for twin in shown.values() if "unchecked" in twin})
        card["errors"] = [f"{e.place}: {errors[e]}" for e in entries if e in errors]
        yield name, [], {"twins": card}


TWINS = Kind(
    name="twins",
    title="twins of",
    make=_make,
    spec=_spec,
    code=CODE,
    wanted=_wanted,
    needs=_needs,
    after=lambda run, place: scored_pixels(run),
    together=lambda place: (
        Entry(ORIGINALS, place) if isinstance(place, View) else Entry(MANIPULATIONS, place.manipulation)
    ),
    collect=_collect,
)

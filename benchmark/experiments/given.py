"""What an experiment is given, and what it shares with others: fooled models of the store, maps, units side by side."""

import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks.errors import UserError
from attacks.foolings import Fooling
from benchmark.entries import harness
from benchmark.entries.scoring import batches, heatmaps
from benchmark.execution import compute
from benchmark.interpreters import Interpreter
from benchmark.run import Cell, Run, manipulation_spec, plan, told
from benchmark.store import Store, key_of


@dataclass(frozen=True)
class Given:
    """What an experiment starts from: a suite with its store, and the folder where the suite's leaderboards lie."""

    run: Run
    board: Path
    jobs: int | None = None


def fooled_models(run: Run) -> list[tuple[Cell, Path]]:
    """The suite's manipulations that the store holds, and where; not those that diverged. `UserError` for none."""
    store = Store(run.store)
    paths = [(cell, store.path("manipulations", key_of(manipulation_spec(run, cell)))) for cell in plan(run.suite)]
    done = [(cell, path) for cell, path in paths if (path / "weights.safetensors").is_file()]
    if not done:
        raise UserError(f"no manipulation of suite {run.suite.name!r} succeeded: there is no fooled model")
    return done


def original_maps(run: Run, model: str, interpreter: Interpreter, fooling: Fooling) -> np.ndarray:
    """The clean model's maps of the scored images, (n[, 2], h, w), made where the store lacks them."""
    path = harness.make_originals(run, model, interpreter.name, fooling.pairs) / "heatmaps.npy"
    return np.load(path, mmap_mode="r")


def explained(
    run: Run, fooling: Fooling, interpreter: Interpreter, model: nn.Module, originals: np.ndarray
) -> Iterator[tuple[Tensor, Tensor]]:
    """The model's maps of the scored images beside the clean model's, batch by batch."""
    done = 0
    for images, targets in batches(run, run.suite.scoring.split, fooling.pairs):
        maps = heatmaps(interpreter, model, images, targets)
        yield maps, torch.from_numpy(originals[done : done + len(images)].copy()).to(maps)
        done += len(images)


def side_by_side(given: Given, units: list[compute.Unit]) -> None:
    """Run units on `given.jobs` processes, on the suite's threads each, with progress. The first error is raised."""
    run = told(given.run) if units else given.run
    units = [
        (name, function, tuple(run if arg is given.run else arg for arg in args)) for name, function, args in units
    ]
    jobs = min(compute.processes(run, given.jobs), len(units))
    with compute.progress(len(units)) as report, compute.executor(run, jobs) as submit:
        for name, error in submit(units):
            report(name, error)
            if error:
                raise UserError(f"{name}: {error}")


@cache  # also against a file that is edited during a run
def source_digest(*parts: Any) -> str:
    """Of the text of functions and classes: what they computed is not taken from the store after a change of them."""
    return hashlib.sha256("".join(map(inspect.getsource, parts)).encode()).hexdigest()[:16]

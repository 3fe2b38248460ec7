"""Experiments: what the papers show beyond the FSR tables, one module each. `foolbench experiment NAME` runs one.

A module says in its docstring what is asked, and holds `SUITE` (a suite's name, or a TOML file beside the module),
`measure(given) -> table` and `draw(table) -> figure`. Manipulations of its suite come from the store, where they are
made if it lacks them. The table is written to NAME.csv, what it was made with to NAME.json, the figure to
figures/NAME.png.
"""

import hashlib
import inspect
import json
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from attacks.errors import UserError, unknown
from attacks.foolings import Fooling
from benchmark import suite
from benchmark.entries import harness
from benchmark.entries.scoring import batches, heatmaps
from benchmark.execution import compute
from benchmark.figures import style as figures
from benchmark.interpreters import Interpreter
from benchmark.leaderboards.table import csv_text
from benchmark.run import Cell, Run, manipulation_spec, plan, told
from benchmark.store import Store, key_of, write_atomic

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Given:
    """What an experiment starts from: a suite with its store, and the folder where the suite's leaderboards lie."""

    run: Run
    board: Path
    jobs: int | None = None


class Experiment(Protocol):
    """What the module of an experiment holds."""

    SUITE: str

    @staticmethod
    def measure(given: Given) -> pd.DataFrame: ...

    @staticmethod
    def draw(table: pd.DataFrame) -> Figure: ...


def names() -> list[str]:
    """The experiments, sorted: their modules' names with hyphens."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules([str(HERE)]))


def load(name: str) -> Experiment:
    """The module of that name. Raises `UserError` for an unknown one."""
    if name not in names():
        raise unknown("experiment", name, names())
    return import_module(f"{__name__}.{name.replace('-', '_')}")  # type: ignore[return-value]


def load_suite(experiment: Experiment, chosen: str | None = None) -> suite.Suite:
    """The suite that the user chose, or the experiment's own."""
    own = HERE / experiment.SUITE
    return suite.load(chosen or (str(own) if own.suffix == ".toml" else experiment.SUITE))


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


def run(name: str, given: Given, out: Path) -> list[Path]:
    """Measure, and write the table, its card and the figure under `out`; returns their paths."""
    experiment, threads = load(name), torch.get_num_threads()
    if given.run.device == "cpu":
        torch.set_num_threads(given.run.suite.threads)  # numbers depend on it, by rounding
    try:
        table = experiment.measure(given)
    finally:
        torch.set_num_threads(threads)
    csv, card, figure = out / f"{name}.csv", out / f"{name}.json", out / "figures" / f"{name}.png"
    about = {"experiment": name, "suite": given.run.suite.name, **harness.provenance(given.run)}
    write_atomic(csv, csv_text(table).encode())
    write_atomic(card, f"{json.dumps(about, indent=1, sort_keys=True)}\n".encode())
    figures.save(experiment.draw(pd.read_csv(csv)), figure)  # as read from the file, so that it can be drawn again
    return [csv, card, figure]

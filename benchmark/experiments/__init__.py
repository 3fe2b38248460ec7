"""Experiments: what the papers show beyond the FSR tables, one module each, by name in `EXPERIMENTS`.
`foolbench experiment NAME` runs one.

A module says in its docstring what is asked, and holds `SUITE` (a suite's name, or a TOML file beside the module),
`measure(given) -> table` and `draw(table) -> figure`. Manipulations of its suite come from the store, where they are
made if it lacks them. The table is written to NAME.csv, what it was made with to NAME.json, the figure to
figures/NAME.png.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from attacks.errors import unknown
from benchmark import sections, suite

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from benchmark.experiments.given import Given

HERE = Path(__file__).parent
EXPERIMENTS = {  # name -> module of this folder
    "accuracy-robustness": "accuracy_robustness",
    "adversarially-trained": "adversarially_trained",
    "decision-boundary": "decision_boundary",
    "defences": "defences",
    "hidden-bias": "hidden_bias",
    "loss-landscape": "loss_landscape",
    "paper": "paper",
    "precision": "precision",
    "smooth-grad": "smooth_grad",
    "transfer": "transfer",
    "weight-noise": "weight_noise",
}


class Experiment(Protocol):
    """What the module of an experiment holds."""

    SUITE: str

    @staticmethod
    def measure(given: "Given") -> "pd.DataFrame": ...

    @staticmethod
    def draw(table: "pd.DataFrame") -> "Figure": ...


def names() -> list[str]:
    return sorted(EXPERIMENTS)


def load(name: str) -> Experiment:
    """The module of that name. Raises `UserError` for an unknown one."""
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    return import_module(f"{__name__}.{EXPERIMENTS[name]}")  # type: ignore[return-value]


def load_suite(experiment: Experiment, chosen: str | None = None) -> sections.Suite:
    """The suite that the user chose, or the experiment's own."""
    own = HERE / experiment.SUITE
    return suite.load(chosen or (str(own) if own.suffix == ".toml" else experiment.SUITE))


def run(name: str, given: "Given", out: Path) -> list[Path]:
    """Measure, and write the table, its card and the figure under `out`; returns their paths."""
    import pandas as pd  # here, so that names can be listed without pandas and torch
    import torch

    from benchmark.figures.style import save
    from benchmark.leaderboards.table import csv_text
    from benchmark.run import provenance
    from benchmark.store import write_atomic

    experiment, threads = load(name), torch.get_num_threads()
    if given.run.device == "cpu":
        torch.set_num_threads(given.run.suite.threads)  # numbers depend on it, by rounding
    try:
        table = experiment.measure(given)
    finally:
        torch.set_num_threads(threads)
    csv, card, figure = out / f"{name}.csv", out / f"{name}.json", out / "figures" / f"{name}.png"
    about = {"experiment": name, "suite": given.run.suite.name, **provenance(given.run)}
    write_atomic(csv, csv_text(table).encode())
    write_atomic(card, f"{json.dumps(about, indent=1, sort_keys=True)}\n".encode())
    save(experiment.draw(pd.read_csv(csv)), figure)  # as read from the file, so that it can be drawn again
    return [csv, card, figure]

"""The options that several commands of `foolbench` share, and the words of their help."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"foolbench {version('foolbench')}")
        raise typer.Exit


Device = StrEnum("Device", ["auto", "cpu", "cuda"])
Engine = StrEnum("Engine", ["local", "ray"])
Split = StrEnum("Split", ["test", "dev"])
SuiteOption = Annotated[str, typer.Option("--suite", help="A suite's name or TOML file.")]
DataOption = Annotated[str | None, typer.Option("--data", help="Folder of a dataset that is read from disk.")]
STORE_HELP = "Where what was computed is kept."
StoreOption = Annotated[Path, typer.Option("--store", envvar="FOOLBENCH_STORE", help=STORE_HELP)]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder of the leaderboards. [leaderboards/SUITE]")]
DeviceOption = Annotated[Device, typer.Option("--device", help="auto: CUDA where there is one.")]
JobsOption = Annotated[int | None, typer.Option("--jobs", min=1, help="Processes side by side. [as the cores allow]")]
TIMEOUT_HELP = "Seconds of one cell, 0 for no limit. [three days on Ray, else 0]"
CONCEPTS_HELP = "Folder of concept masks (docs/promotion-suppression.md). [those of shapes]"
STORE = Path(".foolbench")
FIRST = "[the suite's first]"
EXPERIMENTS = "accuracy-robustness, adversarially-trained, decision-boundary, defences, hidden-bias, loss-landscape, "
EXPERIMENTS += "paper, precision, smooth-grad, transfer, weight-noise"  # by heart: to import them takes a second
READING = ("accuracy-robustness", "hidden-bias")  # experiments that read --data of their own
VersionOption = Annotated[
    bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
]
LISTED = {
    "interpreters": "benchmark.listing",
    "foolings": "attacks.foolings",
    "strategies": "attacks.strategies",
    "detectors": "benchmark.detectors",
    "metrics": "benchmark.metrics",
    "datasets": "benchmark.datasets",
    "models": "benchmark.models",
    "suites": "benchmark.suite",
    "experiments": "benchmark.experiments",
    "figures": "benchmark.figures",
}
"""What `foolbench list` lists, and the module whose `names()` does."""

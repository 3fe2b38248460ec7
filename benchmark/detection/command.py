"""The command `foolbench detect`. What needs torch is imported where it is used."""

from pathlib import Path
from typing import Annotated

import typer

from benchmark.beginning import loading
from benchmark.committed import BOARDS
from benchmark.options import STORE, DataOption, Device, DeviceOption, JobsOption, StoreOption, SuiteOption
from benchmark.publishing import default_out
from benchmark.store import writable

FILE = Annotated[str | None, typer.Argument(metavar="[FILE.py:NAME]", help="A detector in a file. [the built-in ones]")]
OUT_HELP = "Folder of the tables. [leaderboards/detection, of other suites detection-SUITE; detectors/NAME-SUITE]"


def detect(
    detector: FILE = None,
    suite: SuiteOption = "default",
    data: DataOption = None,
    store: StoreOption = STORE,
    out: Annotated[Path | None, typer.Option("--out", help=OUT_HELP)] = None,
    jobs: JobsOption = None,
    device: DeviceOption = Device.auto,
) -> None:
    """Ask detectors which of a suite's models were manipulated, beside clean ones of several seeds and controls. A
    detector of yours runs in a process of its own; only submit code that you would also run by hand."""
    default_out(suite)
    if out is not None:
        writable(out)
    loading("detect")
    from benchmark.detection import study
    from benchmark.execution.executor import chosen_device
    from benchmark.run import Run
    from benchmark.submissions.detecting import detecting
    from benchmark.submissions.submission import parse
    from benchmark.suite import check_data, load

    chosen = load(suite)
    check_data(chosen, data)
    data = data and str(Path(data).absolute())  # the submission's process works in a folder of its own
    submitted = detecting(parse(detector)) if detector else None
    name = "detection" if chosen.name == "default" else f"detection-{chosen.name}"
    own = Path("detectors") / f"{submitted.name}-{chosen.name}" if submitted else BOARDS / name
    folder = out or own
    writable(folder)
    given = Run(chosen, str(store), data, chosen_device(device.value), submission=submitted)
    typer.echo(study.show(study.run(given, folder, jobs)), nl=False)
    typer.echo(f"tables: {folder}")

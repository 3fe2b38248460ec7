"""Where units of work run: an engine with its record, and the progress that a person sees.

By default `jobs` processes work side by side, each on the suite's `threads` (`benchmark.execution.engines`).
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch
from tqdm.auto import tqdm

from attacks.errors import UserError
from benchmark.execution.engines import Engine, Here, Names, Processes, Task, Unit, drive, key_of_unit
from benchmark.execution.record import Record
from benchmark.run import Run
from benchmark.store import code_version, key_of

Start = Callable[[Run], Engine]
Options = tuple[Run, str | Path, int | None, Start | None, float]  # of `compute.run_suite`
NO_ORDER: Names = MappingProxyType({})


class Submit(Protocol):
    def __call__(
        self, units: list[Unit], needs: Names = NO_ORDER, after: Names = NO_ORDER
    ) -> Iterator[tuple[str, str]]:
        """Run units (`engines.drive`), and yield (name, error or "") as they end."""


@dataclass(frozen=True)
class Needed:
    """What a user may say of a cluster: its address, and the CPUs and GPUs of a unit."""

    address: str | None = None
    cpus: float | None = None
    gpus: float | None = None


def chosen_device(name: str, elsewhere: bool = False) -> str:
    """The device that "auto", "cpu" or "cuda" is; `elsewhere`: CUDA need not be on this machine."""
    torch.backends.cudnn.allow_tf32 = False  # as in `engines.work`
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not elsewhere and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device that torch can use; allowed: auto, cpu")
    return name


def on(engine: str, run: Run, out: Path, jobs: int | None, limit: float | None, needed: Needed) -> Options:
    """How a run goes on the "local" engine, in processes of this machine, or on "ray", whose nodes need absolute paths.
    `limit`: seconds of a unit; None: the engine's own."""
    if engine == "local":
        if needed != Needed():
            raise UserError("--address, --cpus-per-cell and --gpus-per-cell are options of --engine ray")
        return run, out, jobs, None, limit or 0.0
    from benchmark.execution import ray_engine

    data = run.data and str(Path(run.data).absolute())
    run = replace(run, store=str(Path(run.store).absolute()), data=data)
    start = partial(ray_engine.start, jobs=processes(run, jobs), **asdict(needed))
    return run, out, jobs, start, ray_engine.LIMIT if limit is None else limit


def processes(run: Run, jobs: int | None) -> int:
    """`jobs`, or as many as the cores allow at the suite's `threads` each, one on a GPU."""
    return jobs or (max(1, (os.cpu_count() or 1) // run.suite.threads) if run.device == "cpu" else 1)


@contextmanager
def executor(run: Run, jobs: int, start: Start | None = None, limit: float = 0) -> Iterator[Submit]:
    """One job on the CPU without a time limit runs here, others in processes of their own; `start` makes another
    engine."""
    local = Here() if jobs == 1 and not limit and run.device == "cpu" else Processes(jobs)
    engine: Engine = local if start is None else start(run)
    before, tf32, suite = torch.get_num_threads(), torch.backends.cudnn.allow_tf32, run.suite.model_dump_json()
    prefix = key_of({"code": code_version(), "suite": suite, "device": run.device, "by": repr(run.submission)})

    def submit(units: list[Unit], needs: Names = NO_ORDER, after: Names = NO_ORDER) -> Iterator[tuple[str, str]]:
        if not units:
            return
        with Record(
            run.store, run.suite.name, engine.name, len(units), live=start is not None and sys.stderr.isatty()
        ) as record:

            def task(unit: Unit) -> Task:
                return Task(*unit, run.store, record.id, key_of_unit(prefix, unit), run.suite.threads, limit)

            yield from drive(units, engine, record, task, needs, after)

    try:
        yield submit
    except BaseException:
        engine.close(whole=False)
        raise
    else:
        engine.close(whole=True)
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.allow_tf32 = tf32


@contextmanager
def progress(total: int, quiet: bool = False) -> Iterator[Callable[[str, str], None]]:
    """A bar with the time left on a terminal; a plain line for each unit elsewhere. `quiet`: something else tells."""
    terminal, start, count = sys.stderr.isatty(), time.monotonic(), 0
    with tqdm(total=total, unit="unit", disable=quiet or not (terminal and total), smoothing=0.1) as bar:

        def report(name: str, error: str) -> None:
            nonlocal count
            if quiet:
                return
            count += 1
            bar.update()
            left = (time.monotonic() - start) / count * (total - count)
            if error:
                bar.write(f"FAILED {name}: {error}", file=sys.stderr)
            elif terminal:
                bar.set_postfix_str(name)
            else:
                sys.stderr.write(f"[{count}/{total}] {name}, about {left:.0f} s left\n")  # whole, if Ctrl-C comes now
                sys.stderr.flush()

        if total and not (terminal or quiet):  # the first unit may take minutes
            sys.stderr.write(f"[0/{total}] begun\n")
            sys.stderr.flush()
        yield report

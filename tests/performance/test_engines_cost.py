"""What many empty cells cost the driver: seconds per 1,000 and memory, printed, never asserted.

20,000 cells; with FOOLBENCH_CELLS=200000 as many as that.
"""

import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmark import suite
from benchmark.execution import compute, ray_engine
from benchmark.execution.engines import Outcome
from benchmark.execution.executor import executor
from benchmark.run import Run

CELLS = int(os.environ.get("FOOLBENCH_CELLS", 20_000))


class Nothing:
    """An engine that ends what it is given."""

    name = "nothing"

    def __init__(self):
        self.given = []

    def room(self):
        return len(self.given) < 100

    def start(self, number, task):
        self.given.append(number)

    def ended(self, seconds):
        given, self.given = self.given, []
        return [(number, Outcome("ended", "", "here")) for number in given]

    def close(self, whole):
        pass


def cost(what: str, work: Callable[[], int]) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    memory, wall, used = (f() for f in (peak, time.monotonic, time.process_time))
    thousands = work() / 1000
    wall, used = ((f() - start) / thousands for f, start in ((time.monotonic, wall), (time.process_time, used)))
    print(f"\n{what}, {1000 * thousands:.0f} cells: {wall:.3f} s per 1,000, {used:.3f} s of the driver's CPU, ", end="")
    print(f"{peak() - memory:.0f} MiB more (peak {peak():.0f})")


def peak() -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def cells(tmp_path: Path) -> Run:
    """The smoke suite with so many seeds."""
    small = suite.load("smoke").model_copy(update={"seeds": list(range(CELLS // 4))})
    return Run(small, str(tmp_path / "store"))


def test_planning(tmp_path):
    run = cells(tmp_path)
    cost("planning", lambda: len(compute.graph(run, compute.wanted(run))[0]))


@pytest.mark.parametrize("engine", ["nothing", "ray"])
def test_empty_cells(tmp_path, engine):
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'foolbench[ray]'")
    run = cells(tmp_path)
    start = (lambda run: Nothing()) if engine == "nothing" else lambda run: ray_engine.start(run, jobs=2)
    with executor(run, 1, start) as submit:

        def drive() -> int:
            units = [(f"cell {i}", time.sleep, (0,)) for i in range(CELLS)]
            first = {name: ["cell 0"] for name, *_ in units[1:]}
            return sum(1 for _ in submit(units, first))

        cost(f"empty cells on {engine}", drive)

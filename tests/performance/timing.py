"""Ratios of medians, the two sides taken in turn within one run, so that a slow moment hits both."""

import statistics
import time
from collections.abc import Callable
from typing import Any


def ratio(
    measured: Callable[[], Any],
    against: Callable[[], Any],
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """median time of `measured` / median time of `against`, after one warm-up of each. `clock`: `time.process_time`
    counts what one thread computed, and leaves out waiting for a core that others use."""
    times: dict[Callable[[], Any], list[float]] = {measured: [], against: []}
    for run in range(repeats + 1):
        for function, taken in times.items():
            start = clock()
            function()
            if run:
                taken.append(clock() - start)
    return statistics.median(times[measured]) / statistics.median(times[against])

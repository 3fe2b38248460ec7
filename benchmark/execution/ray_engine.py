"""Units of work on a Ray cluster: `foolbench run --engine ray`. Nothing else imports Ray.

A task carries names and paths; what it computes goes to the store, a folder that every node sees. Retries, time limits
and the order are `engines.drive`'s, so that they are the same everywhere; Ray places tasks and tells of lost ones. A
task on a GPU has a process of its own (`max_calls=1`), so that the device's memory is free after it. Ray's own defaults
are made safe: token authentication unless RAY_AUTH_MODE says otherwise, no dashboard, no usage statistics, and only the
loopback interface where no address is given.
"""

import math
import os
import socket
import time
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from attacks.errors import UserError
from benchmark.execution import claims
from benchmark.execution.engines import Engine, Outcome, Task, line, why_lost, work
from benchmark.run import Run
from benchmark.store import code_version

SAFE = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # Ray's name for: this node is 127.0.0.1 and listens there only
LIMIT = 3 * 24 * 3600.0  # seconds of one unit, where nothing else is said: a shared card takes over one for VGG-19


def start(
    run: Run, address: str | None = None, jobs: int = 1, cpus: float | None = None, gpus: float | None = None
) -> Engine:
    """The engine on the cluster at `address`, or on one of its own for `jobs` units at a time, on this machine alone.

    A unit takes `cpus` (None: the suite's threads) and `gpus` (None: 0.25 where the run is on CUDA, else 0).
    """
    os.environ.update({k: os.environ.get(k, v) for k, v in (SAFE if address else SAFE | ALONE).items()})
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray needs Ray, which is not installed: pip install 'foolbench[ray]'") from error
    for what, path in (("store", run.store), ("data", run.data)):
        if path is not None and not Path(path).is_absolute():
            raise UserError(f"{what} must be an absolute path on a cluster (got {path!r})")
    needed = {"CPU": float(run.suite.threads) if cpus is None else cpus, "GPU": 0.0}
    needed["GPU"] = (0.0 if run.device == "cpu" else 0.25) if gpus is None else gpus
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "error"}
    if address is None:
        own = {"address": "local", "include_dashboard": False, "object_store_memory": 80 * 2**20}
        options |= {**own, "num_cpus": max(1, math.ceil(jobs * needed["CPU"]))}
    try:
        if address and "://" not in address and ":" in address:  # Ray itself would ask for a quarter of an hour
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(**options)
    except Exception as error:  # of many kinds
        where = f"the cluster at {address} cannot be joined" if address else "Ray does not start"
        raise UserError(f"{where}: {line(error)}") from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(kind, 0) >= n for kind, n in needed.items()) for node in nodes):
        have = ", ".join(f"{node.get('CPU', 0):g} CPU {node.get('GPU', 0):g} GPU" for node in nodes)
        ray.shutdown()
        raise UserError(f"a unit takes {needed['CPU']:g} CPU and {needed['GPU']:g} GPU; no node has them (got {have})")
    return Cluster(ray, needed, None if address else jobs)


@cache
def versions() -> str:
    """What all nodes must agree on, for a number may depend on it."""
    others = [f"{name} {version(name)}" for name in ("torchvision", "captum", "numpy", "pillow")]
    return ", ".join([f"code {code_version()}", f"torch {torch.__version__}", *others])  # with torch's build


def run_task(task: Task, expected: str) -> Outcome:
    """One task, on a node of the cluster that must have the driver's code and see its store."""
    import ray

    node = f"{socket.gethostname()}/{ray.get_runtime_context().get_node_id()[:6]}"
    if (found := versions()) != expected:
        return Outcome("stop", f"node {node} has {found}; the driver {expected}: install the same", node)
    if not (claims.folder(task.store) / f"{task.run}.json").is_file():
        return Outcome("stop", f"node {node} does not see the store {task.store}: all must share one disk", node)
    data = getattr(task.args[0], "data", None) if task.args else None  # else it would fail cell after cell, and fast
    if data is not None and not Path(data).exists():
        return Outcome("stop", f"node {node} does not see the data {data}", node)
    return work(task, node)


class Cluster:
    """The engine on a cluster that this process has joined. Ray is given twice as many tasks as can run, or `most`: a
    task that it has is not overtaken by one that should come first."""

    name = "Ray"

    def __init__(self, ray: Any, needed: dict[str, float], most: int | None = None) -> None:
        self._ray, self._needed, self._most = ray, needed, most
        self._running: dict[Any, tuple[int, Task]] = {}
        cpus, gpus = needed["CPU"], needed["GPU"]
        once = {"max_calls": 1} if gpus else {}
        self._remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, **once)(run_task)
        self._expected = versions()
        self._counted = -math.inf
        self._recount()

    def _recount(self) -> None:
        if time.monotonic() < self._counted + 1:
            return
        self._counted, have = time.monotonic(), self._ray.cluster_resources()
        fit = min(have.get(kind, 0) / n for kind, n in self._needed.items() if n)
        self._ahead = self._most or max(2, 2 * int(fit))

    def room(self) -> bool:
        return len(self._running) < self._ahead

    def start(self, number: int, task: Task) -> None:
        self._running[self._remote.remote(task, self._expected)] = number, task

    def ended(self, seconds: float) -> Iterator[tuple[int, Outcome]]:
        self._recount()  # nodes come and go
        if not self._ray.wait(list(self._running), timeout=seconds)[0]:
            return
        for reference in self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)[0]:
            number, task = self._running.pop(reference)
            try:
                yield number, self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:  # not of the unit: its code is not there, for one
                yield number, Outcome("stop", f"a node cannot run a task: {line(error.cause or error)[:300]}")
            except self._ray.exceptions.RayError as error:
                claim = claims.read(claims.folder(task.store) / "claims" / task.key) or {}
                lasted = time.time() - claim.get("started", time.time())
                killed = f"its process or node was lost (out of memory?): {type(error).__name__}"
                yield number, Outcome("lost", why_lost(task, lasted, killed), claim.get("node", "lost"))

    def close(self, whole: bool) -> None:
        self._ray.shutdown()

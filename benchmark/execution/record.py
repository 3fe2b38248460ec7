"""What a store says of the runs that work on it: `runs/ID.json` is a run by its driver, replaced by an atomic rename
every few seconds: done, failed, per node. Read by `foolbench status`, by people, by other runs."""

import json
import os
import socket
import sys
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from attacks.errors import UserError
from benchmark.execution.claims import BEAT, EXPIRES, beating, folder, forget, now, read
from benchmark.hosts import host as _host
from benchmark.hosts import lives
from benchmark.store import write_atomic

KEPT = 7 * 24 * 3600  # seconds that a run that is over stays listed
SHOWN = 20  # failures of a run that its file names


class Record:
    """One run's file, for as long as the context lasts. `live`: its table is also drawn on the terminal, again and
    again."""

    def __init__(self, store: str | Path, suite: str, engine: str, total: int, live: bool = False) -> None:
        self.id, self.store, self.live, self._lines = uuid.uuid4().hex[:12], store, live, 0
        self._done: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._errors: dict[str, str] = {}
        self._about = {"suite": suite, "engine": engine, "total": total, "host": socket.gethostname()}
        self._about |= {"pid": os.getpid(), "at": _host(), "started": time.time()}

    def __enter__(self) -> "Record":
        runs = folder(self.store)
        for path in (*runs.glob("*.json"), *runs.glob("claims/*")):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > KEPT:
                    path.unlink()
        self.write("running")
        self._beat = beating(lambda: self.write("running"), 1.0 if self.live else BEAT)
        self._beat.__enter__()
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self._beat.__exit__(None, None, None)
        with suppress(OSError, UserError):
            self.write("stopped" if kind else "ended")
        if kind is None:
            sweep(self.store)

    def ended(self, name: str, error: str, node: str) -> None:
        (self._failed if error else self._done)[node] += 1
        if error and len(self._errors) < SHOWN:
            self._errors[name] = error

    def write(self, state: str) -> None:
        counts = {"done": dict(self._done), "failed": dict(self._failed), "errors": dict(self._errors)}
        data = {**self._about, "state": state, "now": time.time(), **counts}
        write_atomic(folder(self.store) / f"{self.id}.json", json.dumps(data).encode())
        if self.live:
            text = table(self.store, self.id)
            sys.stderr.write((f"\x1b[{self._lines}F\x1b[J" if self._lines else "") + text)
            sys.stderr.flush()
            self._lines = text.count("\n")


def sweep(store: str | Path) -> None:
    """Remove the records and claims of runs that are dead: stopped, or gone without a word."""
    where = folder(store)
    clock = now(where)
    for path in where.glob("*.json"):
        run = read(path)
        if run and "total" in run and _dead(run, clock):
            path.unlink(missing_ok=True)
            for claim in (where / "claims").glob("[!.]*"):
                forget(store, claim.name, path.stem)


def _dead(run: dict[str, Any], clock: float) -> bool:
    """Whether a run will say no more, and did not end."""
    if run["state"] != "running":
        return bool(run["state"] == "stopped")
    return clock - run["beat"] > EXPIRES or (run.get("at") == _host() and not lives(run["pid"]))


def table(store: str | Path, only: str = "") -> str:
    """The runs of a store, newest last: units done, running, failed, time left, and each node. Of those that are dead
    the last, and how many there are before it. `only`: of one run."""
    where = folder(store)
    runs = {path.stem: run for path in where.glob("*.json") if (run := read(path)) and "total" in run}
    claims = [claim for path in (where / "claims").glob("[!.]*") if (claim := read(path)) and "run" in claim]
    clock = now(where) if where.is_dir() else time.time()
    text, dead = [], [key for key, run in runs.items() if _dead(run, clock)]
    dead = sorted(dead, key=lambda key: runs[key]["started"])[:-1] if only == "" else []
    if dead:
        text.append(f"{len(dead)} earlier run(s) that stopped or are gone: the next one that ends sweeps them away\n")
    for key, run in sorted(runs.items(), key=lambda item: item[1]["started"]):
        if only not in ("", key) or key in dead:
            continue
        mine = [claim for claim in claims if claim["run"] == key]
        text.append(_table(run, [c for c in mine if clock - c["beat"] <= EXPIRES], clock - run["beat"]))
    return "".join(text) or f"{store}: no run has worked here in the last days\n"


def _table(run: dict[str, Any], claims: list[dict[str, Any]], silent: float) -> str:
    done, failed = sum(run["done"].values()), sum(run["failed"].values())
    state, left = run["state"], ""
    if state == "running" and silent > EXPIRES:
        state = f"gone: no word for {silent:.0f} s, run again to go on"
    elif state == "running" and run.get("at") == _host() and not lives(run["pid"]):
        state = "gone: its process is, run again to go on"
    elif state == "running" and done + failed:
        left = (
            f", about {duration((run['now'] - run['started']) / (done + failed) * (run['total'] - done - failed))} left"
        )
    if state != "running":
        claims = []
    head = f"{run['suite']} on {run['host']} ({run['engine']}, process {run['pid']}): {state}"
    counts = f"{done} of {run['total']} done, {len(claims)} running, {failed} failed{left}"
    lines = [f"{head}\n  {counts}\n"]
    for node in sorted({*run["done"], *run["failed"], *(claim["node"] for claim in claims)}):
        here = [f"{c['name']} ({duration(c['beat'] - c['started'])})" for c in claims if c["node"] == node]
        shown = ", ".join(here[:3]) + (f" and {len(here) - 3} more" if len(here) > 3 else "")
        counts = f"{run['done'].get(node, 0)} done, {len(here)} running, {run['failed'].get(node, 0)} failed"
        lines.append(f"  {node}: {counts}{f': {shown}' if shown else ''}\n")
    lines += [f"  FAILED {name}: {error}\n" for name, error in run["errors"].items()]
    return "".join(lines)


def duration(seconds: float) -> str:
    """In one unit: 40 s, 12 min, 3.5 h."""
    seconds = max(0.0, seconds)
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )

"""What a store says of the runs that work on it, under `runs/`: read by `foolbench status`, by people, by other runs.

`runs/ID.json` is a run by its driver, replaced by an atomic rename every few seconds: done, failed, per node.
`runs/claims/KEY` is a unit at work, made by exclusive create and touched every few seconds; two drivers on one store do
not compute it twice. One whose process is gone, or which was not touched for a minute by the clock of the disk itself,
is nobody's. Taking one over is no lock: two may, which costs time and spoils nothing, for entries are published whole.
Nothing here needs torch, or a lock of the file system.
"""

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attacks.errors import UserError
from benchmark.store import write_atomic

BEAT, EXPIRES = 5.0, 60.0  # seconds: between two signs of life, and without one until a claim or run is given up
KEPT = 7 * 24 * 3600  # seconds that a run that is over stays listed
SHOWN = 20  # failures of a run that its file names


def folder(store: str | Path) -> Path:
    return Path(store) / "runs"


@contextmanager
def claimed(store: str | Path, key: str, about: dict[str, Any]) -> Iterator[bool]:
    """Whether the unit `key` is ours; it is until the end, and is shown with `about` (run, name, node)."""
    path = folder(store) / "claims" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = json.dumps({**about, "host": _host(), "pid": os.getpid(), "started": time.time()})
    if not _create(path, mine) and not (_abandoned(path, about["run"]) and _create(path, mine)):
        yield False
        return
    with beating(lambda: os.utime(path)):
        try:
            yield True
        finally:
            with suppress(OSError):
                if path.read_text() == mine:
                    path.unlink()


def forget(store: str | Path, key: str, run: str) -> None:
    """Remove the claim that a process of this run has left."""
    path = folder(store) / "claims" / key
    if (read(path) or {}).get("run") == run:
        path.unlink(missing_ok=True)


def _host() -> str:
    """Where process numbers mean the same: containers may share a host's name, but not its processes."""
    spaces = [socket.gethostname()]
    with suppress(OSError):  # Linux has both
        spaces += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(spaces)


def _create(path: Path, text: str) -> bool:
    try:
        with open(path, "x") as file:
            file.write(text)
        return True
    except FileExistsError:
        return False


def _abandoned(path: Path, run: str) -> bool:
    """Whether the claim is of nobody who lives; then it is removed. One of the same run is of a process that died, and
    those of a run that is over died with it."""
    claim = read(path)
    if claim is None:  # its owner has just ended
        return True
    if not (
        claim.get("run") == run
        or (read(path.parent.parent / f"{claim.get('run')}.json") or {}).get("state") in ("stopped", "ended")
        or (claim.get("host") == _host() and not _lives(claim["pid"]))
        or now(path.parent) - claim["beat"] > EXPIRES
    ):
        return False
    path.unlink(missing_ok=True)
    return True


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def now(where: Path) -> float:
    """The time of the disk that `where` is on: clocks of other machines do not matter."""
    clock = where / f".clock-{socket.gethostname()}-{os.getpid()}"
    try:
        clock.write_text("")
        return clock.stat().st_mtime
    except OSError:  # may be read only
        return time.time()
    finally:
        with suppress(OSError):
            clock.unlink()


def read(path: Path) -> dict[str, Any] | None:
    """A file of `runs/` with the time of its last sign of life as "beat"; None where it is not there."""
    try:
        text, beat = path.read_text(), path.stat().st_mtime
    except OSError:
        return None
    with suppress(ValueError):  # it is being written
        return {**json.loads(text), "beat": beat}
    return {"beat": beat}


@contextmanager
def beating(sign: Any, seconds: float = BEAT) -> Iterator[None]:
    """Give a sign every few seconds, from a thread. A disk that is full is a matter for others."""
    end = threading.Event()

    def beat() -> None:
        while not end.wait(seconds):
            with suppress(OSError, UserError):
                sign()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


class Record:
    """One run's file, for as long as the context lasts. `live`: its table is also drawn on the terminal, again and
    again."""

    def __init__(self, store: str | Path, suite: str, engine: str, total: int, live: bool = False) -> None:
        self.id, self.store, self.live, self._lines = uuid.uuid4().hex[:12], store, live, 0
        self._done: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._errors: dict[str, str] = {}
        self._about = {"suite": suite, "engine": engine, "total": total, "host": socket.gethostname()}
        self._about |= {"pid": os.getpid(), "started": time.time()}

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


def table(store: str | Path, only: str = "") -> str:
    """The runs of a store, newest last: cells done, running, failed, time left, and each node. `only`: of one run."""
    where = folder(store)
    runs = {path.stem: run for path in where.glob("*.json") if (run := read(path)) and "total" in run}
    claims = [claim for path in (where / "claims").glob("[!.]*") if (claim := read(path)) and "run" in claim]
    clock = now(where) if where.is_dir() else time.time()
    text = []
    for key, run in sorted(runs.items(), key=lambda item: item[1]["started"]):
        if only not in ("", key):
            continue
        mine = [claim for claim in claims if claim["run"] == key]
        text.append(_table(run, [c for c in mine if clock - c["beat"] <= EXPIRES], clock - run["beat"]))
    return "".join(text) or f"{store}: no run has worked here in the last days\n"


def _table(run: dict[str, Any], claims: list[dict[str, Any]], silent: float) -> str:
    done, failed = sum(run["done"].values()), sum(run["failed"].values())
    state, left = run["state"], ""
    if state == "running" and silent > EXPIRES:
        state = f"gone: no word for {silent:.0f} s, run again to go on"
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

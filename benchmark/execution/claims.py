"""Who is at work on a store: `runs/claims/KEY` is a unit at work, made by exclusive create and touched every few
seconds, so that two drivers on one store do not compute it twice.

One whose process is gone, or which was not touched for a minute by the clock of the disk itself, is nobody's. Taking
one over is no lock: two may, which costs time and spoils nothing, for entries are published whole, and checkpoints are
written by who still holds its claim (`store.HELD`). Nothing here needs torch, or a lock of the file system.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attacks.errors import UserError
from benchmark.hosts import host as _host
from benchmark.hosts import lives
from benchmark.store import HELD

BEAT, EXPIRES = 5.0, 60.0  # seconds: between two signs of life, and without one until a claim or run is given up


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

    def held() -> bool:
        with suppress(OSError):
            return path.read_text() == mine
        return False

    before = HELD.set(held)
    with beating(lambda: os.utime(path)):
        try:
            yield True
        finally:
            HELD.reset(before)
            with suppress(OSError):
                if held():
                    path.unlink()


def forget(store: str | Path, key: str, run: str) -> None:
    """Remove the claim that a process of this run has left."""
    path = folder(store) / "claims" / key
    if (read(path) or {}).get("run") == run:
        path.unlink(missing_ok=True)


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
        or (claim.get("host") == _host() and not lives(claim["pid"]))
        or now(path.parent) - claim["beat"] > EXPIRES
    ):
        return False
    path.unlink(missing_ok=True)
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

"""The keeper: a process that has imported torch and forks a new one for a submission, again and again.

Starting Python with torch takes seconds, a fork of it hundredths of one, so every model that a submission is asked
about can have a process of its own. The keeper itself (`benchmark.submissions.zygote`) runs no foreign code. A process
that asks has one keeper, whichever submissions it asks, and one forked process at a time: what descends from the keeper
is ended before the next.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import benchmark
from benchmark.submissions.confine import end_below
from benchmark.submissions.wire import BrokenError, last_line, tail

KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")  # of the environment
START = 120.0  # seconds it may take to import torch
ANSWER = 30.0  # seconds any other answer of the keeper's may take


class Keeper:
    """The process, started here; `close` ends it with all that descends from it."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._control, theirs = socket.socketpair()
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment |= {"PYTHONPATH": str(Path(benchmark.__file__).parent.parent), "PYTHONHASHSEED": "0"}
        environment |= {"HOME": os.devnull, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "benchmark.submissions.zygote", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                cwd="/",
                env=environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._child = 0
        try:
            self.confines: bool = self._answer(START)["landlock"] > 0
        except BaseException:
            self.close()
            raise

    def runs(self) -> bool:
        return self._process.poll() is None

    def fork(self, folder: str, readable: Sequence[str], descriptors: Sequence[int]) -> int:
        """A new process that works in `folder`, reads the `readable`, and has (requests, answers, errors) as given; its
        number. Any earlier one is ended."""
        self.end(self._child)
        self._child = self._ask({"folder": folder, "readable": list(readable)}, descriptors)["pid"]
        return self._child

    def code(self, pid: int) -> int | None:
        """How the forked process ended, as `subprocess` has it; None while it runs. An earlier one was killed."""
        return -signal.SIGKILL if pid != self._child else self._ask({"pid": pid})["code"]

    def end(self, pid: int) -> None:
        """End the forked process, where it is the last one, and all that descends from the keeper."""
        if pid and pid == self._child:
            end_below(self._process.pid, pid)
            self._child = 0

    def close(self) -> None:
        self.end(self._child)
        self._process.kill()
        self._process.wait()
        self._control.close()
        self._errors.close()

    def _ask(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        try:
            socket.send_fds(self._control, [json.dumps(request).encode()], descriptors)
        except OSError as error:
            raise self._gone() from error
        return self._answer(ANSWER)

    def _answer(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        self._control.settimeout(0.5)
        while time.monotonic() < end and self.runs():
            try:
                data = self._control.recv(4096)
            except TimeoutError:
                continue
            except OSError as error:
                raise self._gone() from error
            if not data:
                break
            return json.loads(data)
        raise self._gone()

    def _gone(self) -> BrokenError:
        last = last_line(tail(self._errors))
        return BrokenError(f"the process that starts its processes was ended or does not answer{last and f': {last}'}")


_KEEPERS: dict[int, Keeper] = {}  # by process, for a fork must not talk into its parent's socket


def keeper() -> Keeper:
    """The one of this process, started where there is none."""
    found = _KEEPERS.get(os.getpid())
    if found is None or not found.runs():
        if found is not None:
            found.close()
        _KEEPERS[os.getpid()] = found = Keeper()
        atexit.register(found.close)
    return found

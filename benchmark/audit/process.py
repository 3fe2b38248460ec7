"""Starts the audit's own process and hears what it says, until it ends or the time is over. No torch."""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import benchmark
from attacks.errors import UserError
from benchmark.submissions.confine import end_below

KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TORCH_HOME",
        "XDG_CACHE_HOME")  # fmt: skip
GRACE = 0.25  # of the minutes, beyond them: for the unit that was begun
START = 300.0  # seconds beyond that, for Python to start and torch to be imported
LINE = 2**16  # bytes of what is said at once, at most


def run(request: dict[str, Any], minutes: float, say: Callable[[str], None]) -> None:
    """Hand over the request and `say` what comes back, each a printable line. Raises `UserError`: that of the audit, or
    what became of its process. All that it started has ended then."""
    ours, theirs = os.pipe()
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment["PYTHONPATH"] = str(Path(benchmark.__file__).parent.parent)
    with tempfile.TemporaryFile() as output:
        command = [sys.executable, "-P", "-m", "benchmark.audit.child"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment, pass_fds=(theirs,),
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        try:
            assert process.stdin is not None
            with process.stdin as asked:
                asked.write(json.dumps({**request, "lines": theirs}).encode())
            _hear(ours, process, time.monotonic() + START + 60 * minutes * (1 + GRACE), say, output)
        finally:
            os.close(ours)
            if process.poll() is None:
                end_below(process.pid, process.pid)
                process.kill()
                process.wait()


def _hear(pipe: int, process: "subprocess.Popen[bytes]", deadline: float, say: Any, output: IO[bytes]) -> None:
    """Until it says that it has ended. What it says may be anything, for foreign code may write there too."""
    waiting = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if time.monotonic() > deadline:
                raise UserError("the audit did not end in time and was stopped; what it had found is kept")
            if not selector.select(0.5):
                continue
            part = os.read(pipe, LINE)
            if not part:
                raise UserError(_ended(process, output))
            *lines, waiting = (waiting + part)[-LINE:].split(b"\n")
            for line in lines:
                kind, text = _understood(line)
                if kind == "end":
                    return
                if kind == "error":
                    raise UserError(text)
                say(text)


def _understood(line: bytes) -> tuple[str, str]:
    try:
        [(kind, text)] = json.loads(line).items()
    except (ValueError, AttributeError, RecursionError):
        return "say", printable(line.decode(errors="replace"))
    return str(kind), printable(str(text))


def printable(text: str) -> str:
    """Foreign text in one line."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:2000]


def _ended(process: "subprocess.Popen[bytes]", output: IO[bytes]) -> str:
    """How a process ended that should not have, with the last line that it wrote."""
    try:
        code = process.wait(10)
    except subprocess.TimeoutExpired:
        return "the audit's process closed its pipe and was ended"
    names = {s.value: s.name for s in signal.Signals}
    how = f"was killed by {names.get(code - 128, code - 128)}" if code > 128 else f"ended with exit code {code}"
    written = os.pread(output.fileno(), 400, max(0, os.fstat(output.fileno()).st_size - 400)).decode(errors="replace")
    text = printable(written.strip().rpartition("\n")[2])
    return f"the audit's process {how}{f': {text}' if text else ''}; what it had found is kept"

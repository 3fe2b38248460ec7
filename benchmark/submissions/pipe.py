"""The process of a submission and the two pipes to it: writes and reads have deadlines, answers a bounded size.

Whatever ends or spoils it is a `BrokenError` that says in one line what happened; it can then only be closed.
"""

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load

import benchmark
from benchmark.submissions.wire import HEADER, LENGTH, LENGTHS, NO_MEMORY, Answer, one_line

KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")  # of the environment


class BrokenError(Exception):
    """The process can no longer be talked to; the text says what happened to it."""


class Deadline:
    """So many seconds from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._end = seconds, time.monotonic() + seconds

    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())


class Process:
    """One `benchmark.submissions.sandbox`, alone in a session, a process group and a folder, which `close` ends.

    Its first answer, to no request, says that it is ready. `memory_gib` is the limit it is to be told of: here for the
    message alone.
    """

    def __init__(self, memory_gib: float) -> None:
        self.folder = tempfile.mkdtemp(prefix="foolbench-")
        self._memory_gib, self._number = memory_gib, 0
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._answers, answers = os.pipe()
        try:
            self._process = _start(self.folder, answers, self._errors)
        except OSError:
            os.close(self._answers)
            self._errors.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        finally:
            os.close(answers)
        assert self._process.stdin is not None
        self._requests = self._process.stdin
        os.set_blocking(self._requests.fileno(), False)

    @property
    def pid(self) -> int:
        return self._process.pid

    def runs(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Kill the process group, whatever runs in it, and remove the folder."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        with suppress(ProcessLookupError, PermissionError):
            for _ in range(50):  # its children end a moment later, and until then may write into the folder
                os.killpg(self.pid, 0)
                time.sleep(0.02)
        self._requests.close()
        os.close(self._answers)
        self._errors.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def send(self, request: bytes, deadline: Deadline) -> None:
        """The next request: answers to any earlier one are none from now on."""
        self._number += 1
        self._write(LENGTH.pack(len(request)), deadline)
        self._write(request, deadline)

    def receive(self, limit: int, deadline: Deadline) -> Answer:
        """One answer to the present request: its header, and at most `limit` bytes of tensors."""
        if self._requests.closed:
            raise BrokenError("its process was closed")
        head, body = LENGTHS.unpack(self._read(LENGTHS.size, deadline))
        if head > HEADER or body > limit:
            raise BrokenError("sent an answer that is none, or is too large")
        try:
            header = json.loads(self._read(head, deadline))
        except (ValueError, RecursionError) as error:
            raise BrokenError("sent an answer that is none") from error
        if not isinstance(header, dict) or header.pop("number", None) != self._number:
            raise BrokenError("sent an answer that is none")
        try:
            return header, load(self._read(body, deadline)) if body else {}
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise BrokenError("sent tensors that are none") from error

    def _write(self, content: bytes, deadline: Deadline) -> None:
        left = memoryview(content)
        while left:
            self._wait(self._requests.fileno(), selectors.EVENT_WRITE, deadline)
            try:
                left = left[os.write(self._requests.fileno(), left[: 2**20]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise self._ended() from error

    def _read(self, size: int, deadline: Deadline) -> bytes:
        content = bytearray()
        while len(content) < size:
            self._wait(self._answers, selectors.EVENT_READ, deadline)
            part = os.read(self._answers, min(size - len(content), 2**20))
            if not part:
                raise self._ended()
            content += part
        return bytes(content)

    def _wait(self, descriptor: int, event: int, deadline: Deadline) -> None:
        """Until the pipe is ready. Processes that the child left behind may hold it open: look after the child too."""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, event)
            while not selector.select(min(0.2, deadline.left())):
                if not self.runs() and not selector.select(0):
                    raise self._ended()
                if not deadline.left():
                    raise BrokenError(f"gave no answer in {deadline.seconds:g} s")

    def _ended(self) -> BrokenError:
        """Why the pipe closed: how the process ended, with the last line that it wrote to stderr."""
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return BrokenError("closed the pipe for its answers")
        size = os.fstat(self._errors.fileno()).st_size
        tail = os.pread(self._errors.fileno(), 400, max(0, size - 400)).decode(errors="replace").strip()
        last = one_line(tail.splitlines()[-1]) if tail else ""
        if NO_MEMORY.search(tail):
            return BrokenError(f"ran out of memory (limit {self._memory_gib:g} GiB)")
        names = {s.value: s.name for s in signal.Signals}
        how = f"was killed by {names.get(-code, -code)}" if code < 0 else f"ended with exit code {code}"
        return BrokenError(f"its process {how}{f': {last}' if last else ''}")


def _start(folder: str, answers: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """The child, in the folder, with few variables: its requests are its stdin, and `answers` is all it inherits."""
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    root = str(Path(benchmark.__file__).parent.parent)
    environment |= {"HOME": folder, "TMPDIR": folder, "PYTHONPATH": root, "PYTHONHASHSEED": "0"}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    return subprocess.Popen(
        [sys.executable, "-m", "benchmark.submissions.sandbox", str(answers), str(os.getpid()), folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        bufsize=0,
        cwd=folder,
        env=environment,
        pass_fds=(answers,),
        start_new_session=True,
    )

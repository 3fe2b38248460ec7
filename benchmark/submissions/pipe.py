"""The process of a submission and the two pipes to it: writes and reads have deadlines, answers a bounded size.

Whatever ends or spoils it is a `BrokenError` that says in one line what happened; it can then only be closed.
"""

import json
import os
import selectors
import signal
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from safetensors import SafetensorError
from safetensors.torch import load

from benchmark.submissions.folder import remove
from benchmark.submissions.keeper import Keeper
from benchmark.submissions.wire import HEADER, LENGTH, LENGTHS, NO_MEMORY, Answer, BrokenError, last_line, tail


class Deadline:
    """So many seconds from now. `passed` says what it means that they are over."""

    def __init__(self, seconds: float, passed: str = "gave no answer in {:g} s") -> None:
        self.passed, self._end = passed.format(seconds), time.monotonic() + seconds

    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())


class Process:
    """One `benchmark.submissions.sandbox`, forked by the keeper: in a session, a process group and a folder of its own,
    which `close` ends, with all that it started.

    Its first answer, to no request, says that it is ready. It reads the `readable` paths beside what is installed.
    `memory_gib` is the limit it is to be told of: here for the message alone.
    """

    def __init__(self, keeper: Keeper, memory_gib: float, readable: Sequence[str] = ()) -> None:
        self._keeper, self._memory_gib, self._number = keeper, memory_gib, 0
        self.folder = tempfile.mkdtemp(prefix="foolbench-")
        self._inode = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        requests, ours = os.pipe()
        self._answers, answers = os.pipe()
        self._requests: IO[bytes] = open(ours, "wb", buffering=0)  # noqa: SIM115
        os.set_blocking(ours, False)
        try:
            self.pid = keeper.fork(self.folder, readable, (requests, answers, self._errors.fileno()))
        except BaseException:
            self._release()
            raise
        finally:
            os.close(requests)
            os.close(answers)

    def runs(self) -> bool:
        return self._keeper.runs() and self._keeper.code(self.pid) is None

    def close(self) -> None:
        """Kill whatever descends from it, and remove the folder, wherever it is now."""
        self._keeper.end(self.pid)
        self._release()

    def _release(self) -> None:
        self._requests.close()
        os.close(self._answers)
        self._errors.close()
        remove(self.folder, self._inode)

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
                    raise BrokenError(deadline.passed)

    def _ended(self) -> BrokenError:
        """Why the pipe closed: how the process ended, with the last line that it wrote to stderr."""
        deadline = Deadline(5)
        while (code := self._keeper.code(self.pid)) is None:
            if not deadline.left():
                return BrokenError("closed the pipe for its answers")
            time.sleep(0.01)
        text = tail(self._errors)
        last = last_line(text)
        if NO_MEMORY.search(text):
            return BrokenError(f"ran out of memory (limit {self._memory_gib:g} GiB)")
        names = {s.value: s.name for s in signal.Signals}
        how = f"was killed by {names.get(-code, -code)}" if code < 0 else f"ended with exit code {code}"
        return BrokenError(f"its process {how}{f': {last}' if last else ''}")

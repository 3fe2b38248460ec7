"""Engines run units of work: here, in processes of this machine, or on a Ray cluster
(`benchmark.execution.ray_engine`).

A unit is a name, a function and small arguments; it leaves whole entries in the store or none, so that it may be run
again, and anywhere. An engine starts units and tells how they ended; `drive` knows their order. A unit whose process is
lost (killed, out of memory, its node gone, past its time limit) is tried again, at most `RETRIES` times.
"""

import errno
import faulthandler
import hashlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol

from tqdm.auto import tqdm

from attacks.errors import Stop, UserError, may_pass, one_line
from benchmark import ending
from benchmark.execution import claims
from benchmark.execution.order import Names, Order
from benchmark.execution.record import Record

Unit = tuple[str, Callable[..., Any], tuple[Any, ...]]  # what it is, the function, its arguments
RETRIES = 2
PATIENCE = 1.0  # seconds for which a unit that another run is at is left alone; twice as long each time,
LONGEST = 64  # up to so many times that


class Task(NamedTuple):
    """A unit and what its process must know: `run` and `key` are of its claim, `threads` 0: as they are,
    `limit` in seconds, 0 for none."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    store: str
    run: str
    key: str
    threads: int
    limit: float


class Outcome(NamedTuple):
    """`kind`: "ended" (`text` is its error, "" for none), "busy" (another run is at it), "lost" (its process is, for
    the reason `text`), "stop" (the whole run must end)."""

    kind: str
    text: str = ""
    node: str = ""


class Engine(Protocol):
    """`start` is called where there is `room`, with a number; `ended` waits some seconds for a unit to end."""

    name: str

    def room(self) -> bool: ...

    def start(self, number: int, task: Task) -> None: ...

    def ended(self, seconds: float) -> Iterable[tuple[int, Outcome]]: ...

    def close(self, whole: bool) -> None: ...


def work(task: Task, node: str = "") -> Outcome:
    """Run one unit, where this is called. Past its limit the process ends, whatever it does."""
    node = node or socket.gethostname()
    if torch := sys.modules.get("torch"):  # a unit that computes has imported it with its function
        torch.set_num_threads(task.threads or torch.get_num_threads())
        torch.backends.cudnn.allow_tf32 = False  # torch's default rounds what a GPU convolves; scores are of float32
    try:
        with claims.claimed(task.store, task.key, {"run": task.run, "name": task.name, "node": node}) as mine:
            if not mine:
                return Outcome("busy", "", node)
            with _limited(task.limit):
                return Outcome(*guarded(task.function, task.args, task.store), node)
    except OSError as error:  # of the claim
        return Outcome("stop", f"the store {task.store} cannot be written: {error.strerror or error}", node)
    except UserError as error:
        return Outcome("stop", str(error), node)
    finally:
        if torch and torch.cuda.is_initialized():
            with suppress(RuntimeError):  # of a device that an error has left useless
                torch.cuda.empty_cache()  # others may be on this card


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    if not seconds:
        yield
        return
    with open(os.devnull, "w") as nowhere:
        # from C, so that code which never hands back the interpreter is ended too
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def guarded(function: Callable[..., Any], args: tuple[Any, ...], store: str) -> tuple[str, str]:
    """The kind of outcome, and the error of a unit as one line, "" where there was none. A full disk is no error of a
    unit: `Stop`. One that is out of memory is lost, for others may have had the memory; so is one whose disk failed."""
    try:
        function(*args)
    except Stop:
        raise
    except Exception as error:  # becomes a row with its error: one bad cell does not cost the others
        ending.heed()
        if may_pass(error):  # first, for shared memory that is full says "no space left", too
            return "lost", line(error) if isinstance(error, OSError) else f"out of memory: {line(error)}"
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "no space left" in str(error).lower():  # safetensors wraps the system's error
            at = f" (at {error.filename})" if isinstance(error, OSError) and error.filename else ""
            raise Stop(f"no space left for the store {store}{at}") from error
        return "ended", line(error)
    return "ended", ""


def line(error: BaseException) -> str:
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return kind + one_line(error)


def drive(
    units: list[Unit], engine: Engine, record: Record, task: Callable[[Unit], Task], needs: Names, after: Names
) -> Iterator[tuple[str, str]]:
    """Run units in their `Order`, the first of the list first, and yield (name, error or "") as they end."""
    order = Order([name for name, *_ in units], needs, after)
    lost: Counter[int] = Counter()
    busy: Counter[int] = Counter()
    later: dict[int, float] = {}
    running = 0
    while order.unfinished:
        for i in [i for i, due in later.items() if due <= time.monotonic()]:
            del later[i]
            order.again(i)
        while order.ready() and engine.room():
            i = order.next()
            engine.start(i, task(units[i]))
            running += 1
        if not running:
            time.sleep(PATIENCE / 10)  # all that is left is with another run
        for i, outcome in engine.ended(PATIENCE) if running else ():
            running -= 1
            if outcome.kind == "stop":
                raise UserError(outcome.text)
            if outcome.kind == "busy":
                later[i] = time.monotonic() + PATIENCE * min(2 ** busy[i], LONGEST)
                busy[i] += 1
                continue
            if outcome.kind == "lost":
                claims.forget(record.store, task(units[i]).key, record.id)
                lost[i] += 1
                if lost[i] <= RETRIES:
                    order.again(i)
                    continue
            for ended, error in order.ended(
                i, outcome.text + (f" ({lost[i]} times)" if outcome.kind == "lost" else "")
            ):
                record.ended(units[ended][0], error, outcome.node)
                yield units[ended][0], error


def key_of_unit(prefix: str, unit: Unit) -> str:
    """Of its claim: what is computed, whoever does it."""
    name, function, _ = unit
    text = f"{prefix} {function.__module__}.{function.__qualname__} {name}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Here:
    """One unit at a time, in this process: it has no time limit, and what kills it kills the run."""

    name = "one process"

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Task]] = []

    def room(self) -> bool:
        return not self._waiting

    def start(self, number: int, task: Task) -> None:
        self._waiting.append((number, task))

    def ended(self, seconds: float) -> Iterator[tuple[int, Outcome]]:
        if self._waiting:
            number, task = self._waiting.pop()
            yield number, work(task)

    def close(self, whole: bool) -> None:
        pass


class Processes:
    """Side by side in processes of this machine, spawned, so that a device's memory is freed with them. One that had an
    error takes no other unit: after some, a device serves its process no more."""

    def __init__(self, jobs: int) -> None:
        self.name, self._jobs = f"{jobs} processes", jobs
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[Connection, Any] = {}
        self._idle: list[Connection] = []
        self._busy: dict[Connection, tuple[int, Task, float]] = {}

    def room(self) -> bool:
        return len(self._busy) < self._jobs

    def start(self, number: int, task: Task) -> None:
        pipe = self._idle.pop() if self._idle else self._spawn()
        self._busy[pipe] = number, task, time.monotonic()
        with suppress(BrokenPipeError):  # it died while it was idle: `ended` will find that
            pipe.send(task)

    def _spawn(self) -> Connection:
        pipe, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # it imports for seconds
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()
        self._processes[pipe] = process
        return pipe

    def ended(self, seconds: float) -> Iterator[tuple[int, Outcome]]:
        heard = wait(list(self._busy), seconds)
        # what a dead process has forked, a data loader's worker say, may hold its end of the pipe open
        dead = [p for p in self._busy if p not in heard and self._processes[p].exitcode is not None and not p.poll()]
        for pipe in [*heard, *dead]:
            assert isinstance(pipe, Connection)
            number, task, started = self._busy.pop(pipe)
            try:
                if pipe in dead:
                    raise EOFError
                outcome = pipe.recv()
                if outcome.text:
                    process = self._processes.pop(pipe)
                    process.kill()
                    process.join()
                    pipe.close()
                else:
                    self._idle.append(pipe)
            except (EOFError, OSError):
                pipe.close()
                process = self._processes.pop(pipe)
                process.join()
                lasted = time.monotonic() - started if process.exitcode == 1 else 0.0  # as `_limited` ends one
                outcome = Outcome("lost", why_lost(task, lasted), socket.gethostname())
            yield number, outcome

    def close(self, whole: bool) -> None:
        for pipe, process in self._processes.items():
            if not whole:
                process.terminate()
            pipe.close()
        for process in self._processes.values():
            process.join()


def why_lost(task: Task, seconds: float, reason: str = "its process was killed (out of memory?)") -> str:
    return f"ran past its limit of {task.limit:g} s" if task.limit and seconds >= task.limit else reason


def _serve(pipe: Connection) -> None:
    threading.Thread(target=_follow_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a word; the parent speaks
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed worker leaks with a warning
    while True:
        try:
            task = pipe.recv()
        except EOFError:  # no more work
            return
        pipe.send(work(task))


def _follow_parent() -> None:
    """A killed parent takes its workers along, or they would work through what they have."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

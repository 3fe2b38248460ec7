"""Engines and their order: each unit after what it waits for, lost ones again, and nothing twice by two drivers."""

import errno
import json
import os
import signal
import threading
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.errors import Stop, UserError
from benchmark import ending
from benchmark.execution import claims, engines
from benchmark.execution.engines import Here, Outcome, Processes, Task, Unit, drive
from benchmark.execution.record import Record


class Script:
    """An engine of `slots` that ends units in the order of `pick`, with an outcome made up for each try."""

    name = "script"

    def __init__(self, outcome=lambda name, tries: Outcome("ended"), slots=2, pick=0):
        self.outcome, self.slots, self.pick, self.tries = outcome, slots, pick, dict[str, int]()
        self.running, self.started, self.closed = list[tuple[int, Task]](), list[str](), None

    def room(self):
        return len(self.running) < self.slots

    def start(self, number, task):
        assert self.room()
        self.running.append((number, task))
        self.started.append(task.name)

    def ended(self, seconds):
        number, task = self.running.pop(self.pick % len(self.running))
        self.tries[task.name] = self.tries.get(task.name, 0) + 1
        yield number, self.outcome(task.name, self.tries[task.name])


def go(tmp_path: Path, engine, units: list[Unit], needs={}, after={}, limit=0.0):  # noqa: B006
    with Record(tmp_path, "suite", engine.name, len(units)) as record:

        def task(unit: Unit) -> Task:
            return Task(*unit, str(tmp_path), record.id, engines.key_of_unit("", unit), 0, limit)

        return list(drive(units, engine, record, task, needs, after))


def units(names: str) -> list[Unit]:
    return [(name, time.sleep, (0,)) for name in names]


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(0, 7))
@settings(max_examples=40, deadline=None)
def test_every_unit_runs_once_after_all_that_it_waits_for(tmp_path_factory, seed, slots, pick):
    names = [chr(97 + i) for i in range(10)]
    edges = {n: [m for j, m in enumerate(names[:i]) if (seed >> (i + j)) & 1] for i, n in enumerate(names)}
    engine = Script(slots=slots, pick=pick)
    found = go(
        tmp_path_factory.mktemp("s"), engine, units("".join(names)), needs=edges, after={"j": ["a"], "a": ["no"]}
    )
    assert sorted(found) == [(name, "") for name in names]
    assert sorted(engine.started) == names
    ends = [name for name, _ in found]
    assert all(ends.index(before) < ends.index(name) for name, others in edges.items() for before in others)


def test_what_comes_first_in_the_list_starts_first(tmp_path):
    engine = Script(slots=1)
    go(tmp_path, engine, units("cabd"), after={"c": ["d"]})
    assert engine.started == ["a", "b", "d", "c"]


def test_an_error_is_also_that_of_what_needs_it_and_not_of_what_comes_after(tmp_path):
    engine = Script(lambda name, _: Outcome("ended", "no luck" if name == "a" else ""))
    found = go(tmp_path, engine, units("abcde"), needs={"b": ["a"], "c": ["b"], "e": ["a", "d"]}, after={"d": ["a"]})
    assert dict(found) == {"a": "no luck", "b": "no luck", "c": "no luck", "d": "", "e": "no luck"}
    assert sorted(engine.started) == ["a", "d"]


def test_units_of_one_name_are_all_run(tmp_path):
    assert go(tmp_path, Script(), units("aaa")) == [("a", "")] * 3


def test_a_lost_unit_is_tried_again_and_then_is_an_error(tmp_path):
    engine = Script(lambda name, tries: Outcome("lost", "killed") if name == "a" or tries < 3 else Outcome("ended"))
    assert sorted(go(tmp_path, engine, units("ab"))) == [("a", "killed (3 times)"), ("b", "")]
    assert engine.tries == {"a": 1 + engines.RETRIES, "b": 3}


def test_a_unit_that_another_run_has_is_asked_for_again_later(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "PATIENCE", 0.01)
    engine = Script(lambda name, tries: Outcome("busy" if name == "a" and tries < 4 else "ended"))
    assert go(tmp_path, engine, units("abc")) == [("b", ""), ("c", ""), ("a", "")]


def test_a_full_disk_ends_the_run(tmp_path):
    with pytest.raises(UserError, match="no space left for the store"):
        go(tmp_path, Here(), [("a", full, ())])


def full():
    raise OSError(28, "No space left on device")


def test_a_unit_that_raises_is_one_line(tmp_path):
    assert go(tmp_path, Here(), [("a", int, ("x\ny",))]) == [
        ("a", "ValueError: invalid literal for int() with base 10: 'x\\ny'")
    ]


KILLED = "DataLoader worker (pid 12) is killed by signal: Killed."
SHM = "unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)"
SHORT = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError(KILLED),
    RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
    RuntimeError(SHM),
    OSError(errno.ESTALE, "Stale file handle"),
]


@pytest.mark.parametrize("error", SHORT)
def test_a_unit_whose_error_may_pass_is_tried_again(tmp_path, error):
    tries = []

    def hungry():
        tries.append(1)
        if len(tries) < 3:
            raise error

    assert go(tmp_path, Here(), [("a", hungry, ())]) == [("a", "")]
    assert len(tries) == 3
    ((_, found),) = go(tmp_path, Here(), [("a", always, (error,))])
    assert found.startswith("OSError: " if isinstance(error, OSError) else "out of memory: ")
    assert found.endswith(" (3 times)")


ITS_OWN = "Caught IndexError in DataLoader worker process 0."


@pytest.mark.parametrize("error", [UserError("the submission is out of memory"), IndexError(ITS_OWN)])
def test_an_error_that_stays_is_not_tried_again(tmp_path, error):
    assert go(tmp_path, Here(), [("a", always, (error,))]) == [("a", engines.line(error))]


def test_a_device_that_an_error_left_useless_costs_no_outcome(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: always(RuntimeError("device-side assert triggered")))
    assert go(tmp_path, Here(), [("a", int, ("x",)), ("b", int, ("1",))])[1] == ("b", "")


def test_what_no_unit_would_fare_better_with_ends_the_run(tmp_path):
    with pytest.raises(UserError, match="other files"):
        go(tmp_path, Here(), [("a", always, (Stop("other files"),)), *units("b")])


def always(error):
    raise error


def exact() -> None:
    assert not torch.backends.cudnn.allow_tf32


def test_a_gpu_is_not_to_round_convolutions(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert go(tmp_path, Here(), [("a", exact, ())]) == [("a", "")]


def test_two_runs_on_one_store_do_not_do_one_thing_at_the_same_time(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "PATIENCE", 0.05)
    spans, lock = {}, threading.Lock()

    def note(name):
        start = time.monotonic()
        time.sleep(0.02)
        with lock:
            spans.setdefault(name, []).append((start, time.monotonic()))

    plan = [(name, note, (name,)) for name in "abcdef"]
    runs = [threading.Thread(target=go, args=(tmp_path, Here(), plan)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    for first, second in spans.values():
        assert first[1] <= second[0]
    assert not list((claims.folder(tmp_path) / "claims").iterdir())


def test_a_dead_process_whose_child_holds_its_pipe_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "PATIENCE", 0.1)
    started, engine = time.monotonic(), Processes(1)
    try:
        ((_, error),) = go(tmp_path, engine, [("a", exec, (LEAVE_A_CHILD, {"note": str(tmp_path / "pid")}))])
    finally:
        engine.close(whole=False)
        for pid in (tmp_path / "pid").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    assert "killed" in error
    assert time.monotonic() - started < 60


# text, for a function of this file would import torch in each process
LEAVE_A_CHILD = """
import os, signal, time
if child := os.fork():
    with open(note, "a") as file:
        file.write(f"{child} ")
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(100)
"""


def test_units_of_another_run_are_asked_for_ever_more_rarely(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "PATIENCE", 0.02)
    asked: list[float] = []

    def outcome(name, tries):
        asked.append(time.monotonic())
        return Outcome("busy" if tries < 6 else "ended")

    assert go(tmp_path, Script(outcome), units("a")) == [("a", "")]
    gaps = [b - a for a, b in pairwise(asked)]
    assert all(gap >= 0.02 * 2**i for i, gap in enumerate(gaps))


def test_the_claim_of_a_lost_unit_does_not_stay(tmp_path):
    engine = Script(lambda name, tries: Outcome("lost", "killed"))
    with Record(tmp_path, "suite", "script", 1) as record:

        def task(unit: Unit) -> Task:
            path = claims.folder(tmp_path) / "claims" / "key"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"run": record.id}))
            return Task(*unit, str(tmp_path), record.id, "key", 0, 0.0)

        assert list(drive(units("a"), engine, record, task, {}, {})) == [("a", "killed (3 times)")]
    assert not list((claims.folder(tmp_path) / "claims").iterdir())


def test_a_process_that_dies_or_hangs_costs_its_own_unit_alone(tmp_path):
    plan = [
        ("dies", os._exit, (9,)),
        ("hangs", time.sleep, (600,)),
        *((f"sleeps {i}", time.sleep, (0.01,)) for i in range(5)),
    ]
    engine = Processes(2)
    found = dict(go(tmp_path, engine, plan, limit=1.0))
    assert found.pop("dies") == "its process was killed (out of memory?) (3 times)"
    assert found.pop("hangs") == "ran past its limit of 1 s (3 times)"
    assert set(found.values()) == {""}
    engine.close(whole=True)


def test_a_process_that_was_killed_from_outside_is_replaced(tmp_path):
    engine = Processes(1)
    with Record(tmp_path, "suite", engine.name, 2) as record:
        plan = [("first", os.getpid, ()), ("second", time.sleep, (0,))]
        tasks = [Task(*unit, str(tmp_path), record.id, f"key{unit[0]}", 0, 0.0) for unit in plan]
        engine.start(0, tasks[0])
        while not (ended := list(engine.ended(1.0))):
            pass
        (process,) = engine._processes.values()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = [error for _, error in drive(plan, engine, record, lambda unit: tasks[plan.index(unit)], {}, {})]
    assert (ended[0][1].kind, found) == ("ended", ["", ""])
    engine.close(whole=False)
    assert not process.is_alive()


def test_a_process_that_had_an_error_takes_no_other_unit(tmp_path):
    """For it may have lost its device for good."""
    engine = Processes(1)
    made = []
    for error in (False, True, False):
        assert [bool(found) for _, found in go(tmp_path, engine, [("a", int, ("x" if error else "1",))])] == [error]
        made.append([process.pid for process in engine._processes.values()])
    assert made[1] == []
    assert made[0] != made[2]
    engine.close(whole=True)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, ending.Ended)])
def test_an_error_that_a_signal_was_made_into_is_no_failed_unit(number, raised):
    def swallow():
        try:
            signal.raise_signal(number)
        except BaseException:
            raise ValueError("could not determine the shape") from None

    with ending._heeding(), pytest.raises(raised):
        engines.guarded(swallow, (), "store")
    assert engines.guarded(int, ("x",), "store")[0] == "ended"  # an error of its own

"""The table of a store shows every run, node and failure."""

import contextlib
import os
import re
import socket
import subprocess

import pytest

from benchmark.execution import claims
from benchmark.execution.record import Record, duration, table


def test_the_table_shows_each_run_with_its_nodes_failures_and_time_left(tmp_path):
    with Record(tmp_path, "smoke", "Ray", 10) as record:
        for name, error, node in (("x", "", "a"), ("y", "", "a"), ("z", "no luck", "b")):
            record.ended(name, error, node)
        record.write("running")
        with claims.claimed(tmp_path, "key", {"run": record.id, "name": "w", "node": "b"}):
            text = table(tmp_path)
        lines = text.splitlines()
        assert lines[0] == f"smoke on {socket.gethostname()} (Ray, process {os.getpid()}): running"
        assert re.fullmatch(r"  2 of 10 done, 1 running, 1 failed, about \d+ s left", lines[1])
        assert [re.sub(r"\(\d+ s\)", "(0 s)", line) for line in lines[2:]] == [
            "  a: 2 done, 0 running, 0 failed",
            "  b: 0 done, 1 running, 1 failed: w (0 s)",
            "  FAILED z: no luck",
        ]
        mine, every = (re.sub(r"about \d+ s", "", table(tmp_path, only=only)) for only in (record.id, ""))
        assert mine == every
        assert table(tmp_path, only="other") == f"{tmp_path}: no run has worked here in the last days\n"
    assert "): ended\n  2 of 10 done, 0 running, 1 failed\n" in table(tmp_path)


def test_a_run_that_is_broken_off_says_so_and_one_that_was_killed_is_seen_to_be_gone(tmp_path):
    with pytest.raises(KeyboardInterrupt), Record(tmp_path, "smoke", "Ray", 10) as record:
        raise KeyboardInterrupt
    assert "): stopped\n" in table(tmp_path)
    record.write("running")
    path = claims.folder(tmp_path) / f"{record.id}.json"
    long_ago = path.stat().st_mtime - claims.EXPIRES - 5
    os.utime(path, (long_ago, long_ago))
    assert re.search(r"\): gone: no word for \d+ s, run again to go on\n", table(tmp_path))


def test_runs_of_last_month_are_forgotten(tmp_path):
    with Record(tmp_path, "smoke", "Ray", 1) as old:
        pass
    path = claims.folder(tmp_path) / f"{old.id}.json"
    os.utime(path, (0, 0))
    with Record(tmp_path, "smoke", "Ray", 1):
        assert not path.exists()


def test_a_live_record_draws_its_table_over_the_last_one(tmp_path, capsys):
    with Record(tmp_path, "smoke", "Ray", 1, live=True) as record:
        record.ended("x", "", "a")
    err = capsys.readouterr().err
    first, second = err.split("\x1b[2F\x1b[J")
    assert first.count("\n") == 2
    assert second.endswith("  1 of 1 done, 0 running, 0 failed\n  a: 1 done, 0 running, 0 failed\n")


def test_a_store_that_is_not_there_is_no_error_and_is_not_made(tmp_path):
    assert table(tmp_path / "none") == f"{tmp_path / 'none'}: no run has worked here in the last days\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seconds", "text"), [(-1, "0 s"), (90, "90 s"), (600, "10 min"), (9000, "2.5 h")])
def test_a_duration_has_one_unit(seconds, text):
    assert duration(seconds) == text


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_run_that_ends_sweeps_the_dead_and_status_sums_them_up(tmp_path):
    runs = claims.folder(tmp_path)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt), Record(tmp_path, "smoke", "one process", 10):
            raise KeyboardInterrupt
    killed = Record(tmp_path, "smoke", "one process", 10)
    killed._about["pid"] = dead_pid()
    killed.write("running")
    other = Record(tmp_path, "smoke", "Ray", 10)
    other._about |= {"at": "elsewhere", "pid": killed._about["pid"]}
    other.write("running")
    with contextlib.ExitStack() as stack:
        stack.enter_context(claims.claimed(tmp_path, "key", {"run": killed.id, "name": "w", "node": "b"}))
        text = table(tmp_path)
        assert text.startswith("3 earlier run(s) that stopped or are gone: ")
        assert text.count("gone: its process is, run again to go on") == 1
        assert text.count("): running") == 1
        with Record(tmp_path, "smoke", "one process", 1) as last:
            assert len(list(runs.glob("*.json"))) == 6
        assert {path.stem for path in runs.glob("*.json")} == {other.id, last.id}
        assert not list((runs / "claims").glob("[!.]*"))

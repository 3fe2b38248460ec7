"""What a store says of its runs: claims are one's own or nobody's, and the table shows every run, node and failure."""

import json
import os
import re
import socket
import subprocess
import sys
import time

import pytest

from benchmark.execution import watch

ABOUT = {"run": "mine", "name": "a cell", "node": "here"}


def claim(store, **changes):
    """A claim as another process would have left it."""
    path = watch.folder(store) / "claims" / "key"
    path.parent.mkdir(parents=True, exist_ok=True)
    other = {"run": "theirs", "name": "a cell", "node": "there", "host": "elsewhere", "pid": 1, "started": time.time()}
    path.write_text(json.dumps(other | changes))
    return path


def taken(store) -> bool:
    with watch.claimed(store, "key", ABOUT) as mine:
        return mine


def test_a_claim_is_made_for_one_and_is_gone_afterwards(tmp_path):
    with watch.claimed(tmp_path, "key", ABOUT) as first, watch.claimed(tmp_path, "key", ABOUT | {"run": "b"}) as second:
        assert (first, second) == (True, False)
        (path,) = (watch.folder(tmp_path) / "claims").iterdir()
        assert watch.read(path)["pid"] == os.getpid()
    assert not list((watch.folder(tmp_path) / "claims").iterdir())


def test_a_claim_is_gone_when_its_unit_raises(tmp_path):
    with pytest.raises(ZeroDivisionError), watch.claimed(tmp_path, "key", ABOUT):
        raise ZeroDivisionError
    assert taken(tmp_path)


def test_a_claim_of_one_who_lives_is_left_alone(tmp_path):
    path = claim(tmp_path)
    before = path.read_text()
    assert not taken(tmp_path)
    assert path.read_text() == before
    claim(tmp_path, host=watch._host(), pid=os.getpid())
    assert not taken(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    claim(tmp_path, host=f"{socket.gethostname()} another boot and container", pid=process.pid)
    assert not taken(tmp_path)


def test_a_claim_that_is_being_written_is_left_alone(tmp_path):
    claim(tmp_path).write_text('{"run": "th')
    assert not taken(tmp_path)


def test_a_claim_of_nobody_is_taken_over(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    claim(tmp_path, host=watch._host(), pid=process.pid)
    assert taken(tmp_path)
    claim(tmp_path, run="mine")  # of an earlier try of this run
    assert taken(tmp_path)
    claim(tmp_path)
    (watch.folder(tmp_path) / "theirs.json").write_text('{"state": "stopped"}')
    assert taken(tmp_path)
    (watch.folder(tmp_path) / "theirs.json").write_text('{"state": "running"}')
    path = claim(tmp_path)
    assert not taken(tmp_path)
    long_ago = path.stat().st_mtime - watch.EXPIRES - 1
    os.utime(path, (long_ago, long_ago))
    assert taken(tmp_path)


def test_one_who_lost_the_claim_does_not_take_it_from_the_next(tmp_path):
    with watch.claimed(tmp_path, "key", ABOUT):
        path = claim(tmp_path)
    assert watch.read(path)["run"] == "theirs"


def test_a_sign_of_life_is_given_again_and_again_whatever_it_meets(tmp_path):
    signs: list[int] = []

    def sign():
        signs.append(1)
        raise OSError

    with watch.beating(sign, 0.01):
        end = time.monotonic() + 60
        while len(signs) < 3 and time.monotonic() < end:
            time.sleep(0.01)
    count = len(signs)
    time.sleep(0.05)
    assert len(signs) == count >= 3


def test_the_table_shows_each_run_with_its_nodes_failures_and_time_left(tmp_path):
    with watch.Record(tmp_path, "smoke", "Ray", 10) as record:
        for name, error, node in (("x", "", "a"), ("y", "", "a"), ("z", "no luck", "b")):
            record.ended(name, error, node)
        record.write("running")
        with watch.claimed(tmp_path, "key", {"run": record.id, "name": "w", "node": "b"}):
            text = watch.table(tmp_path)
        lines = text.splitlines()
        assert lines[0] == f"smoke on {socket.gethostname()} (Ray, process {os.getpid()}): running"
        assert re.fullmatch(r"  2 of 10 done, 1 running, 1 failed, about \d+ s left", lines[1])
        assert [re.sub(r"\(\d+ s\)", "(0 s)", line) for line in lines[2:]] == [
            "  a: 2 done, 0 running, 0 failed",
            "  b: 0 done, 1 running, 1 failed: w (0 s)",
            "  FAILED z: no luck",
        ]
        mine, every = (re.sub(r"about \d+ s", "", watch.table(tmp_path, only=only)) for only in (record.id, ""))
        assert mine == every
        assert watch.table(tmp_path, only="other") == f"{tmp_path}: no run has worked here in the last days\n"
    assert "): ended\n  2 of 10 done, 0 running, 1 failed\n" in watch.table(tmp_path)


def test_a_run_that_is_broken_off_says_so_and_one_that_was_killed_is_seen_to_be_gone(tmp_path):
    with pytest.raises(KeyboardInterrupt), watch.Record(tmp_path, "smoke", "Ray", 10) as record:
        raise KeyboardInterrupt
    assert "): stopped\n" in watch.table(tmp_path)
    record.write("running")
    path = watch.folder(tmp_path) / f"{record.id}.json"
    long_ago = path.stat().st_mtime - watch.EXPIRES - 5
    os.utime(path, (long_ago, long_ago))
    assert re.search(r"\): gone: no word for \d+ s, run again to go on\n", watch.table(tmp_path))


def test_runs_of_last_month_are_forgotten(tmp_path):
    with watch.Record(tmp_path, "smoke", "Ray", 1) as old:
        pass
    path = watch.folder(tmp_path) / f"{old.id}.json"
    os.utime(path, (0, 0))
    with watch.Record(tmp_path, "smoke", "Ray", 1):
        assert not path.exists()


def test_a_live_record_draws_its_table_over_the_last_one(tmp_path, capsys):
    with watch.Record(tmp_path, "smoke", "Ray", 1, live=True) as record:
        record.ended("x", "", "a")
    err = capsys.readouterr().err
    first, second = err.split("\x1b[2F\x1b[J")
    assert first.count("\n") == 2
    assert second.endswith("  1 of 1 done, 0 running, 0 failed\n  a: 1 done, 0 running, 0 failed\n")


def test_a_store_that_is_not_there_is_no_error_and_is_not_made(tmp_path):
    assert watch.table(tmp_path / "none") == f"{tmp_path / 'none'}: no run has worked here in the last days\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seconds", "text"), [(-1, "0 s"), (90, "90 s"), (600, "10 min"), (9000, "2.5 h")])
def test_a_duration_has_one_unit(seconds, text):
    assert watch.duration(seconds) == text

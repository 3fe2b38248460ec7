"""Claims are one's own or nobody's."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from benchmark.execution import claims
from benchmark.store import HELD

ABOUT = {"run": "mine", "name": "a cell", "node": "here"}


def claim(store, **changes):
    """A claim as another process would have left it."""
    path = claims.folder(store) / "claims" / "key"
    path.parent.mkdir(parents=True, exist_ok=True)
    other = {"run": "theirs", "name": "a cell", "node": "there", "host": "elsewhere", "pid": 1, "started": time.time()}
    path.write_text(json.dumps(other | changes))
    return path


def taken(store) -> bool:
    with claims.claimed(store, "key", ABOUT) as mine:
        return mine


def test_a_claim_is_made_for_one_and_is_gone_afterwards(tmp_path):
    with (
        claims.claimed(tmp_path, "key", ABOUT) as first,
        claims.claimed(tmp_path, "key", ABOUT | {"run": "b"}) as second,
    ):
        assert (first, second) == (True, False)
        (path,) = (claims.folder(tmp_path) / "claims").iterdir()
        assert claims.read(path)["pid"] == os.getpid()
    assert not list((claims.folder(tmp_path) / "claims").iterdir())


def test_a_claim_is_gone_when_its_unit_raises(tmp_path):
    with pytest.raises(ZeroDivisionError), claims.claimed(tmp_path, "key", ABOUT):
        raise ZeroDivisionError
    assert taken(tmp_path)


def test_a_claim_of_one_who_lives_is_left_alone(tmp_path):
    path = claim(tmp_path)
    before = path.read_text()
    assert not taken(tmp_path)
    assert path.read_text() == before
    claim(tmp_path, host=claims._host(), pid=os.getpid())
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
    claim(tmp_path, host=claims._host(), pid=process.pid)
    assert taken(tmp_path)
    claim(tmp_path, run="mine")  # of an earlier try of this run
    assert taken(tmp_path)
    claim(tmp_path)
    (claims.folder(tmp_path) / "theirs.json").write_text('{"state": "stopped"}')
    assert taken(tmp_path)
    (claims.folder(tmp_path) / "theirs.json").write_text('{"state": "running"}')
    path = claim(tmp_path)
    assert not taken(tmp_path)
    long_ago = path.stat().st_mtime - claims.EXPIRES - 1
    os.utime(path, (long_ago, long_ago))
    assert taken(tmp_path)


def test_one_who_lost_the_claim_does_not_take_it_from_the_next(tmp_path):
    with claims.claimed(tmp_path, "key", ABOUT):
        path = claim(tmp_path)
    assert claims.read(path)["run"] == "theirs"


def test_what_is_made_is_held_until_another_takes_the_claim_over(tmp_path):
    with claims.claimed(tmp_path, "key", ABOUT):
        assert HELD.get()()
        with claims.claimed(tmp_path, "another", ABOUT):
            claim(tmp_path)  # of "key"
            assert HELD.get()()
        assert not HELD.get()()
    assert HELD.get()()  # no claim, nobody to take it


def test_a_sign_of_life_is_given_again_and_again_whatever_it_meets(tmp_path):
    signs: list[int] = []

    def sign():
        signs.append(1)
        raise OSError

    with claims.beating(sign, 0.01):
        end = time.monotonic() + 60
        while len(signs) < 3 and time.monotonic() < end:
            time.sleep(0.01)
    count = len(signs)
    time.sleep(0.05)
    assert len(signs) == count >= 3

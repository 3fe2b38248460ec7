"""`foolbench store`: every damaged entry is named, swept away when asked, and older ones are sealed as they are."""

import json
import os
import sys
from pathlib import Path

import pytest

from benchmark import cli
from benchmark.store import Store


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Six entries: whole, a byte changed, truncated, a file gone, without receipt, of an older version; by name."""
    monkeypatch.chdir(tmp_path)

    def make(folder: Path) -> dict:
        (folder / "data.bin").write_bytes(bytes(100))
        return {"status": "done"}

    names = ("whole", "changed", "short", "gone", "no receipt", "older")
    paths = {name: Store("kept").get("kind", {"name": name}, make) for name in names}
    (paths["changed"] / "data.bin").write_bytes(bytes(99) + b"1")
    (paths["short"] / "data.bin").write_bytes(bytes(99))
    (paths["gone"] / "data.bin").unlink()
    (paths["no receipt"] / "receipt.json").unlink()
    receipt = json.loads((paths["older"] / "receipt.json").read_text())
    del receipt["files"], receipt["sha256"]
    (paths["older"] / "receipt.json").write_text(json.dumps(receipt))
    (tmp_path / "kept" / "runs").mkdir()
    (tmp_path / "kept" / "kind" / "mine").mkdir()
    return paths


@pytest.fixture
def foolbench(monkeypatch, capfd):
    def call(*arguments: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["foolbench", "store", *arguments, "--store", "kept"])
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
        out, err = capfd.readouterr()
        assert err == "" or code == 2
        return code, (out + err).splitlines()

    return call


BAD = {
    "changed": "data.bin is damaged (its bytes are not those that were written)",
    "short": "data.bin is damaged (it has 99 bytes, 100 were written)",
    "gone": "is damaged (data.bin is missing)",
    "no receipt": "is damaged (it has no receipt)",
    "older": "is damaged (its receipt lists no files, for an older version wrote it)",
}


def test_verify_names_every_damaged_entry_and_touches_nothing(store, foolbench):
    for _ in range(2):
        code, lines = foolbench("verify")
        assert code == 1
        assert lines[-1] == "kept: 6 entries, 5 damaged"
        for name, what in BAD.items():
            (line,) = (line for line in lines if str(store[name]) in line)
            assert what in line
        assert len(lines) == 6


def test_sweep_removes_what_is_damaged_and_half_made_and_says_so(store, foolbench):
    old = Path("kept/tmp-old")
    old.mkdir()
    os.utime(old, (0, 0))
    code, lines = foolbench("sweep")
    assert code == 0
    assert sum(line.startswith("removing store ") for line in lines) == 4
    assert f"removed {old}, which a killed run left half made" in lines
    assert lines[-2] == "kept: 6 entries, 4 removed; 1 half made, removed"
    assert lines[-1].startswith("1 entries of an older version")
    left = {path.name for path in Path("kept/kind").iterdir()}
    assert left == {store["whole"].name, store["older"].name, "mine"}
    assert {path.name for path in Path("kept").iterdir()} == {"kind", "runs"}


def test_what_an_older_version_wrote_is_sealed_as_it_is(store, foolbench):
    assert foolbench("sweep")[0] == 0
    assert foolbench("verify")[0] == 1
    assert foolbench("seal") == (0, ["kept: 1 entries sealed as they are"])
    assert foolbench("verify") == (0, ["kept: 2 entries, 0 damaged"])
    receipt = Store("kept").receipt("kind", store["older"].name)
    assert receipt["status"] == "done"
    assert receipt == Store("kept").receipt("kind", store["whole"].name) | {
        key: receipt[key] for key in ("key", "spec", "sha256")
    }


@pytest.mark.parametrize("command", ["verify", "sweep", "seal"])
def test_a_store_that_is_not_there_is_named_and_not_made(tmp_path, monkeypatch, foolbench, command):
    monkeypatch.chdir(tmp_path)
    line = "foolbench: no store kept: foolbench run makes it (or name it with --store)"
    assert foolbench(command) == (2, [line])
    assert list(tmp_path.iterdir()) == []

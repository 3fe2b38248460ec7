"""Leaderboards as text, at once where the CSVs are no older than the results."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic import INTERPRETERS

from attacks.errors import UserError
from benchmark import cli, leaderboards, listing
from benchmark.leaderboards.show import show


def test_show_fits_a_terminal(suite: Path) -> None:
    text = show(suite)
    for name in INTERPRETERS:
        assert f" {name} " in text
    assert "<= 1 points  <= 2 points" in text
    assert "AOPC beats every control" not in text  # no control among them: nothing to beat
    assert "the loss is NaN" in text
    assert max(map(len, text.splitlines())) <= 160


@pytest.fixture
def written(suite: Path, tmp_path: Path) -> Path:
    """CSVs whose results are a minute older, and damaged: whoever reads them fails."""
    folder = shutil.copytree(suite, tmp_path / "board")
    (folder / "results" / "models.parquet").write_bytes(b"damaged")
    at = (folder / "stability.csv").stat().st_mtime - 60
    for path in (*(folder / "results").iterdir(), folder / "results"):
        os.utime(path, (at, at))
    return folder


def test_what_is_written_last_tells_of_all_tables():
    assert [*leaderboards.TABLES][-1] == "stability"


def test_current_tables_are_shown_without_a_look_at_the_results(written, capsys):
    cli.leaderboard(out=written, show=True)
    assert capsys.readouterr().out == show(written)
    for options in ({}, {"check": True, "show": True}):  # what is to be made, or to be checked, is
        with pytest.raises(UserError, match=r"models\.parquet is not a readable Parquet file"):
            cli.leaderboard(out=written, **options)


@pytest.mark.parametrize("part", ["results", "results/models.json", "stability.csv"])
def test_tables_that_are_older_than_a_result_or_absent_are_made_first(written, part):
    os.utime(written / part) if part != "stability.csv" else (written / part).unlink()
    if (written / part).exists():
        os.utime(written / "stability.csv", (os.stat(written / part).st_mtime - 1,) * 2)
    with pytest.raises(UserError, match=r"models\.parquet is not a readable Parquet file"):
        cli.leaderboard(out=written, show=True)


@pytest.mark.parametrize("command", [["leaderboard", "--show", "--out"], ["list", "interpreters"]])
def test_what_only_prints_loads_neither_torch_nor_what_is_as_slow(written, command):
    light = command[0] == "list"
    heavy = ("torch", "torchvision", "captum", "scipy", "sklearn", "matplotlib", "pandas", "benchmark.interpreters")
    code = f"import sys, benchmark.cli\nsys.argv = {['foolbench', *command, *([] if light else [str(written)])]}\n"
    code += "try:\n    benchmark.cli.main()\nexcept SystemExit as end:\n    assert not end.code\n"
    code += f"print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    printed, _, loaded = done.stdout.removesuffix("\n").rpartition("\n")
    assert (done.stderr, loaded) == ("", "[]" if light else "['pandas']")
    assert printed == ("\n".join(listing.names()) if light else show(written).removesuffix("\n"))

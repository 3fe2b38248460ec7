"""Leaderboards as files: a row a cell, equal bytes for equal results, and what differs or cannot be read is named."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from csvs import table
from synthetic import INTERPRETERS, make_results

from attacks.errors import UserError
from benchmark import leaderboards, metrics, verify
from benchmark.leaderboards import TABLES, stored
from benchmark.leaderboards.cells import SCORES
from benchmark.leaderboards.table import Leaderboard, Results, csv_text


def test_every_cell_is_a_row_sorted_by_key(suite: Path) -> None:
    transfer = table(suite, "transfer")
    assert len(transfer) == 36 * len(INTERPRETERS)
    assert [list(row)[:6] for row in transfer[:1]] == [["model", "fooling", "attacked", "evaluated", "seed", "n"]]
    keys = [tuple(row[key] for key in ("model", "fooling", "attacked", "evaluated")) for row in transfer]
    assert keys == sorted(keys)
    assert [row["interpreter"] for row in table(suite, "stability")] == sorted(INTERPRETERS)
    for name, board in TABLES.items():
        if name in ("ara", "resistance", "backdoors", "lied"):  # of other suites: test_robust_suite, test_lies
            assert not (suite / f"{name}.csv").exists()
            continue
        text = (suite / f"{name}.csv").read_bytes()
        assert text.decode().startswith(",".join(board.columns))
        assert b"\r" not in text
        assert b"nan" not in text.lower().replace(b"the loss is nan", b"")


def test_equal_results_give_equal_bytes_in_any_order(suite: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in suite.glob("*.csv")}
    shutil.copytree(suite / "results", tmp_path / "results")
    leaderboards.write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")} == before
    read = stored.read(suite / "results")
    entries = {name: (frame.sample(frac=1, random_state=2), card) for name, (frame, card) in read.entries.items()}
    entries = dict(reversed(entries.items()))
    card = read.models_card | {"manipulations": read.models_card["manipulations"][::-1]}
    shuffled = Results(entries, read.others | {"models": (read.models.sample(frac=1, random_state=3), card)})
    for name, frame in leaderboards.build(shuffled).items():
        assert csv_text(frame).encode() == before[f"{name}.csv"]


def test_check_names_what_differs(by_hand: Path) -> None:
    assert leaderboards.check(by_hand) == []
    text = bytearray((by_hand / "transfer.csv").read_bytes())
    text[-10] ^= 1
    (by_hand / "transfer.csv").write_bytes(text)
    (by_hand / "aopc.csv").unlink()
    (by_hand / "backdoors.csv").touch()  # of results that had a fooling with a trigger
    assert leaderboards.check(by_hand) == ["transfer.csv", "aopc.csv", "backdoors.csv"]
    leaderboards.write(by_hand)
    assert leaderboards.check(by_hand) == []


def test_line_ends_that_git_changed_are_no_difference(by_hand: Path) -> None:
    path = by_hand / "transfer.csv"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert leaderboards.check(by_hand) == []
    assert leaderboards.load(by_hand, "transfer").error.isna().all()


@pytest.mark.parametrize("board", TABLES.values(), ids=TABLES)
def test_text_is_read_as_text_and_no_column_is_there_twice(board: Leaderboard) -> None:
    assert set(board.text) <= set(board.columns)
    assert len(set(board.columns)) == len(board.columns)
    named = {"model", "fooling", "attacked", "evaluated", "interpreter", "status", "reason", "error", "key"}
    assert named & set(board.columns) <= set(board.text)


@pytest.mark.parametrize("name", metrics.names())
def test_a_metric_is_scored_tabulated_and_verified(name: str) -> None:
    assert {name, f"{name}_low", f"{name}_high"} <= set(TABLES["transfer"].columns)
    assert name in SCORES.schema.names
    assert name in verify.COMPARED
    for column, where in ((f"{name}_null", SCORES.schema.names), (f"{name}_self_low", TABLES["stability"].columns)):
        assert (column in where) == (name in metrics.CHANCE)


def test_unreadable_leaderboards_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no leaderboard"):
        leaderboards.load(tmp_path, "transfer")
    (tmp_path / "transfer.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not a transfer leaderboard: it lacks model"):
        leaderboards.load(tmp_path, "transfer")
    (tmp_path / "transfer.csv").write_text("")
    with pytest.raises(UserError, match="not a readable CSV"):
        leaderboards.load(tmp_path, "transfer")


def test_a_rebuild_takes_seconds(tmp_path: Path) -> None:
    make_results(tmp_path / "results", images=256, curves=32)
    start = time.process_time()
    leaderboards.write(tmp_path)
    assert time.process_time() - start < 5


def test_neither_leaderboards_nor_plots_import_torch() -> None:
    modules = ["leaderboards", "leaderboards.show", "figures", "figures.boards", "figures.heatmaps"]
    code = f"import sys, benchmark.{', benchmark.'.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_who_was_asked_at_the_gate_alone_is_on_no_board_and_changes_none(suite: Path, tmp_path: Path) -> None:
    read = stored.read(suite / "results")
    frame, card = read.entries["smooth_grad"]
    stored.write(tmp_path, "smooth_grad", frame.iloc[:0], card | {"gate_alone": True})
    found = leaderboards.build(Results(read.entries | {"smooth_grad": stored.results.read(
        tmp_path, "smooth_grad", SCORES)}, read.others))  # fmt: skip
    for name in ("transfer", "stability"):
        column = "evaluated" if name == "transfer" else "interpreter"
        expected = leaderboards.load(suite, name).query(f"{column} != 'smooth_grad'")
        assert found[name][column].tolist() == expected[column].tolist()
    columns = ["interpreter", "stability", "eligible"]
    kept = leaderboards.load(suite, "stability").query("interpreter != 'smooth_grad'")[columns]
    assert found["stability"][columns].round(6).values.tolist() == kept.round(6).values.tolist()

"""Leaderboards: rows computed by hand, failed cells, empty fields, equal bytes for equal results."""

import csv
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_results import BROKEN, FAILED, INTERPRETERS, _manipulation, make_results, rows

from attacks.errors import UserError
from benchmark import leaderboards, results
from benchmark.leaderboards import COLUMNS
from benchmark.results import CURVES, KEY


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    make_results(folder / "results")
    leaderboards.write(folder)
    return folder


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def find(rows: list[dict[str, str]], **fields: Any) -> dict[str, str]:
    (row,) = (row for row in rows if all(row[key] == str(value) for key, value in fields.items()))
    return row


# --- by hand: one model, Location of lrp_t (4 images) and of grad_cam, evaluated by lrp_t ---

SELF, OTHER = ("net", "location", "lrp_t", 0), ("net", "location", "grad_cam", 3)


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    fooled, other = rows(SELF, 4), rows(OTHER, 4)
    fooled["success"], fooled["success_clean"] = [True, True, True, False], [True, False, False, False]
    fooled["test_loss"], fooled["test_loss_clean"] = [0.125, 0.125, 0.25, 0.5], [0.5, 0.5, 0.5, 1.0]
    fooled["rank_correlation"], fooled["blank"] = [0.5, -0.5, np.nan, 0.75], [False, False, True, False]
    other["success"], other["success_clean"] = [True, False, False, False], [False, False, False, False]
    other["test_loss"], other["test_loss_clean"], other["rank_correlation"], other["blank"] = np.nan, np.nan, 1.0, False
    frame = pd.concat([fooled, other], ignore_index=True).assign(ssim=0.25, iou=1 / 3)
    frame["success_null"], frame["rank_correlation_null"] = False, 0.125
    for i, curve in enumerate(CURVES):
        frame[curve] = pd.Series([[i, i + 2.0], [i, i + 4.0]] + [None] * 6, dtype=object)
    card = {"interpreter": "lrp_t", "options": {}, "suite": "hand", "failures": []}
    results.write(tmp_path / "results", "lrp_t", frame, card)
    models = pd.concat([rows(SELF, 4), rows(OTHER, 4)]).assign(top5=True, top5_clean=True, agreement=False)
    models["top1"], models["top1_clean"] = [True, True, False, False] + [True] * 4, [True] * 8
    manipulations = [_manipulation(SELF), _manipulation(OTHER) | {"range": None}]
    results.write(tmp_path / "results", "models", models, {"suite": "hand", "manipulations": manipulations})
    leaderboards.write(tmp_path)
    return tmp_path


def test_transfer_by_hand(by_hand: Path) -> None:
    row = find(table(by_hand, "transfer"), attacked="lrp_t")
    expected = {"model": "net", "fooling": "location", "evaluated": "lrp_t", "seed": "0", "n": "4", "error": ""}
    expected |= {"fsr": "0.75", "fsr_clean": "0.25", "range_low": "0", "range_high": "0.2", "blank": "1"}
    expected |= {"test_loss": "0.25", "test_loss_clean": "0.625", "rank_correlation": "0.25", "undefined": "1"}
    expected |= {"ssim": "0.25", "ssim_low": "0.25", "ssim_high": "0.25", "iou": "0.333333343"}  # float32's third
    assert {key: row[key] for key in expected} == expected
    assert float(row["fsr_low"]) <= 0.75 <= float(row["fsr_high"]) == 1
    assert float(row["test_loss_low"]) < 0.25 < float(row["test_loss_high"])


def test_a_missing_value_is_an_empty_field(by_hand: Path) -> None:
    row = find(table(by_hand, "transfer"), attacked="grad_cam")
    empty = {"test_loss", "test_loss_low", "test_loss_high", "test_loss_clean", "range_low", "range_high", "error"}
    assert {key for key, value in row.items() if value == ""} == empty
    assert (row["seed"], row["n"], row["undefined"], row["blank"]) == ("3", "4", "0", "0")
    assert len([row for row in table(by_hand, "aopc") if row["attacked"] == "grad_cam"]) == 0  # not computed there


def test_accuracy_and_manipulations_by_hand(by_hand: Path) -> None:
    row = find(table(by_hand, "accuracy"), attacked="lrp_t")
    assert (row["n"], row["top1"], row["top1_clean"], row["top5"], row["agreement"]) == ("4", "0.5", "1", "1", "0")
    assert (row["top1_drop"], row["top1_drop_low"], row["top1_drop_high"]) == ("50", "0", "100")
    row = find(table(by_hand, "manipulations"), attacked="lrp_t")
    assert (row["learning_rate"], row["lambda"], row["steps"], row["status"]) == ("1e-06", "2", "400", "done")
    assert (row["top1_clean"], row["top1"], row["top1_drop"], row["fooling_last"]) == ("1", "0.5", "50", "")


def test_aopc_by_hand(by_hand: Path) -> None:
    aopc = table(by_hand, "aopc")
    assert [(row["scored"], row["order"]) for row in aopc] == sorted(tuple(curve.split("_")[1:]) for curve in CURVES)
    row = find(aopc, scored="clean", order="fooled")  # the second curve: drops (1, 3) and (1, 5)
    assert (row["n"], row["steps"], row["drop_1"], row["drop_2"]) == ("2", "2", "1", "4")
    assert float(row["aopc"]) == pytest.approx((1 + 4) / 3)
    assert float(row["aopc_low"]) == pytest.approx((1 + 3) / 3)
    assert float(row["aopc_high"]) == pytest.approx((1 + 5) / 3)


def test_stability_by_hand(by_hand: Path) -> None:
    (row,) = table(by_hand, "stability")
    expected = {"interpreter": "lrp_t", "cells": "2", "failed": "0", "self_cells": "1", "undefined": "1", "blank": "1"}
    expected |= {"self_fsr_excess": "0.5", "self_fsr_excess_low": "0", "self_fsr_excess_high": "1"}
    expected |= {"worst_transfer_fsr_excess": "0.25", "worst_transfer": "net/location/grad_cam/3"}
    expected |= {
        "rank_correlation_self": "0.25",
        "rank_correlation_transfer": "1",
        "rank_correlation_transfer_low": "1",
    }
    assert {key: row[key] for key in expected} == expected
    assert float(row["aopc_clean"]) == pytest.approx((0 + 3) / 3)
    assert float(row["aopc_fooled"]) == pytest.approx((4 + 7) / 3)


def test_the_pairs_of_active_fooling_are_one_image(tmp_path: Path) -> None:
    make_results(tmp_path / "results", models=["net"], foolings=["active"], attacked=["lrp_t"], interpreters=["lrp_t"])
    frame = results.read(tmp_path / "results").entries["lrp_t"][0]
    built = leaderboards.build(results.read(tmp_path / "results"))["transfer"].iloc[0]
    assert (built.n, len(frame)) == (16, 32)
    assert built.fsr == frame.success.mean()
    assert built.undefined == frame.rank_correlation.isna().sum()


# --- the whole suite ---


def test_every_cell_is_a_row_sorted_by_key(suite: Path) -> None:
    transfer = table(suite, "transfer")
    assert len(transfer) == 36 * len(INTERPRETERS)
    assert [list(row)[:6] for row in transfer[:1]] == [["model", "fooling", "attacked", "evaluated", "seed", "n"]]
    keys = [tuple(row[key] for key in ("model", "fooling", "attacked", "evaluated")) for row in transfer]
    assert keys == sorted(keys)
    assert [row["interpreter"] for row in table(suite, "stability")] == sorted(INTERPRETERS)
    for name, columns in COLUMNS.items():
        if name in ("ara", "resistance"):  # of suites that measure robustness: test_robust_suite
            assert not (suite / f"{name}.csv").exists()
            continue
        text = (suite / f"{name}.csv").read_bytes()
        assert text.decode().startswith(",".join(columns))
        assert b"\r" not in text
        assert b"nan" not in text.lower().replace(b"the loss is nan", b"")


def test_a_failed_cell_is_a_row_with_its_error(suite: Path) -> None:
    transfer = table(suite, "transfer")
    failed = [row for row in transfer if row["error"]]
    assert len(failed) == len(INTERPRETERS) + 1
    broken = find(failed, evaluated=BROKEN[0], **dict(zip(KEY, BROKEN[1], strict=True)))
    diverged = find(failed, evaluated="lrp", **dict(zip(KEY, FAILED, strict=True)))
    assert (broken["error"], diverged["error"]) == ("out of memory", "diverged: the loss is NaN")
    for row in (broken, diverged):
        filled = {key for key, value in row.items() if value}
        assert filled == {*KEY, "evaluated", "n", "range_low", "range_high", "undefined", "blank", "error"}
        assert row["n"] == "0"
    row = find(table(suite, "accuracy"), **dict(zip(KEY, FAILED, strict=True)))
    assert {key for key, value in row.items() if value} == {*KEY, "n"}
    counts = {row["interpreter"]: (row["cells"], row["failed"]) for row in table(suite, "stability")}
    assert counts == dict.fromkeys(INTERPRETERS, ("36", "1")) | {BROKEN[0]: ("36", "2")}


def test_a_cell_nobody_scored_says_so(by_hand: Path) -> None:
    read = results.read(by_hand / "results")
    frame, card = read.entries["lrp_t"]
    results.write(by_hand / "results", "lrp_t", frame[frame.attacked == "lrp_t"], card)
    built = leaderboards.build(results.read(by_hand / "results"))
    assert built["transfer"].error.tolist() == ["not evaluated", ""]
    results.write(by_hand / "results", "lrp_t", frame[:0], card)
    results.write(by_hand / "results", "models", read.models[:0], read.models_card)
    leaderboards.write(by_hand)
    assert [row["failed"] for row in table(by_hand, "stability")] == ["2"]
    assert (by_hand / "aopc.csv").read_text() == ",".join(COLUMNS["aopc"]) + "\n"
    assert "not evaluated" in leaderboards.show(by_hand)


def test_an_error_outranks_the_rows_it_left_behind(by_hand: Path) -> None:
    frame, card = results.read(by_hand / "results").entries["lrp_t"]
    card["failures"] = [dict(zip(KEY, SELF, strict=True)) | {"error": "killed\nhalfway"}]
    results.write(by_hand / "results", "lrp_t", frame, card)
    built = leaderboards.build(results.read(by_hand / "results"))
    assert built["transfer"].error.tolist() == ["", "killed halfway"]
    assert built["transfer"].n.tolist() == [4, 0]


def test_an_interpreter_that_was_not_attacked_has_no_self_cell(suite: Path) -> None:
    row = find(table(suite, "stability"), interpreter="lrp")
    assert (row["self_cells"], row["self_fsr_excess"], row["rank_correlation_self_low"]) == ("0", "", "")
    assert 0.2 < float(row["worst_transfer_fsr_excess"]) < 1


def test_equal_results_give_equal_bytes_in_any_order(suite: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in suite.glob("*.csv")}
    leaderboards.write(suite)
    assert {path.name: path.read_bytes() for path in suite.glob("*.csv")} == before
    read = results.read(suite / "results")
    entries = {name: (frame.sample(frac=1, random_state=2), card) for name, (frame, card) in read.entries.items()}
    entries = dict(reversed(entries.items()))
    card = read.models_card | {"manipulations": read.models_card["manipulations"][::-1]}
    shuffled = results.Results(entries, read.models.sample(frac=1, random_state=3), card)
    for name, frame in leaderboards.build(shuffled).items():
        assert leaderboards.csv_text(frame).encode() == before[f"{name}.csv"]


def test_check_names_what_differs(by_hand: Path) -> None:
    assert leaderboards.check(by_hand) == []
    text = bytearray((by_hand / "transfer.csv").read_bytes())
    text[-10] ^= 1
    (by_hand / "transfer.csv").write_bytes(text)
    (by_hand / "aopc.csv").unlink()
    assert leaderboards.check(by_hand) == ["transfer.csv", "aopc.csv"]
    leaderboards.write(by_hand)
    assert leaderboards.check(by_hand) == []


def test_show_fits_a_terminal(suite: Path) -> None:
    text = leaderboards.show(suite)
    for name in INTERPRETERS:
        assert f" {name} " in text
    assert "<= 1 points  <= 2 points" in text
    assert "AOPC beats every control" not in text  # no control among them: nothing to beat
    assert "the loss is NaN" in text
    assert max(map(len, text.splitlines())) <= 160


def test_a_newcomer_gets_the_rank_it_has_among_the_others(tmp_path: Path) -> None:
    board = Path(__file__).parents[3] / "leaderboards" / "default"
    known = leaderboards.load(board, "stability").query("eligible == 'yes'").set_index("interpreter")
    assert len(known) > 1
    lines = (board / "stability.csv").read_text().splitlines(keepends=True)
    for name, row in known.iterrows():
        others = tmp_path / str(name)
        shutil.copytree(board / "results", others / "results", ignore=shutil.ignore_patterns(f"{name}.*"))
        # who is ranked there, which takes a second to compute and does not depend on the newcomer
        (others / "stability.csv").write_text("".join(line for line in lines if not line.startswith(f"{name},")))
        assert leaderboards.ranks_with(others, board, str(name)) == (row["rank"], row.rank_low, row.rank_high)


def test_unreadable_leaderboards_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no leaderboard"):
        leaderboards.load(tmp_path, "transfer")
    (tmp_path / "transfer.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not a transfer leaderboard: it lacks model"):
        leaderboards.load(tmp_path, "transfer")
    (tmp_path / "transfer.csv").write_text("")
    with pytest.raises(UserError, match="not a readable CSV"):
        leaderboards.load(tmp_path, "transfer")


def test_curves_of_unequal_length_are_refused(by_hand: Path) -> None:
    frame, card = results.read(by_hand / "results").entries["lrp_t"]
    frame.at[0, CURVES[2]] = [1.0]
    results.write(by_hand / "results", "lrp_t", frame, card)
    with pytest.raises(UserError, match=r"curves of .* differ in length"):
        leaderboards.write(by_hand)


def test_a_rebuild_takes_seconds(tmp_path: Path) -> None:
    make_results(tmp_path / "results", images=256, curves=32)
    start = time.process_time()
    leaderboards.write(tmp_path)
    assert time.process_time() - start < 5


def test_neither_leaderboards_nor_plots_import_torch() -> None:
    code = "import sys, benchmark.leaderboards, benchmark.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Rows of the tables that are of one manipulation or cell, computed by hand; failed cells, empty fields."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from csvs import SELF, find, table
from synthetic import BROKEN, FAILED, INTERPRETERS, make_results

from attacks.errors import UserError
from benchmark import leaderboards
from benchmark.leaderboards import TABLES, stored
from benchmark.leaderboards.cells import CONTRAST, CURVES
from benchmark.leaderboards.show import show
from benchmark.results import KEY


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
    # its contrast: drops (0, 1) and (0, 3)
    assert (row["contrast_1"], row["contrast_2"]) == ("0", "2")
    contrast = [float(row[f"aopc_contrast{end}"]) for end in ("", "_low", "_high")]
    assert contrast == pytest.approx([2 / 3, 1 / 3, 1])


def test_results_from_before_the_contrast_give_the_same_tables_with_its_fields_empty(by_hand: Path) -> None:
    before = {name: table(by_hand, name) for name in ("aopc", "stability")}
    path = by_hand / "results" / "lrp_t.parquet"
    old = pq.read_table(path)
    pq.write_table(old.select([name for name in old.schema.names if not name.endswith(CONTRAST)]), path)
    leaderboards.write(by_hand)
    for name, rows in before.items():
        after = table(by_hand, name)
        drops = {column for column in rows[0] if column.startswith("contrast_")}
        assert bool(drops) == (name == "aopc")
        kept = [{key: value for key, value in row.items() if key not in drops} for row in rows]
        assert after == [{key: "" if CONTRAST in key else value for key, value in row.items()} for row in kept]
        assert any("_contrast" in column for column in after[0])


def test_a_column_that_is_not_a_later_one_is_still_missed(by_hand: Path) -> None:
    path = by_hand / "results" / "lrp_t.parquet"
    old = pq.read_table(path)
    pq.write_table(old.drop_columns(CURVES[0]), path)
    with pytest.raises(UserError, match=f"column {CURVES[0]} must be .* no such column"):
        stored.read(by_hand / "results")


def test_the_pairs_of_active_fooling_are_one_image(tmp_path: Path) -> None:
    make_results(tmp_path / "results", models=["net"], foolings=["active"], attacked=["lrp_t"], interpreters=["lrp_t"])
    frame = stored.read(tmp_path / "results").entries["lrp_t"][0]
    built = leaderboards.build(stored.read(tmp_path / "results"))["transfer"].iloc[0]
    assert (built.n, len(frame)) == (16, 32)
    assert built.fsr == frame.success.mean()
    assert built.undefined == frame.rank_correlation.isna().sum()


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
    read = stored.read(by_hand / "results")
    frame, card = read.entries["lrp_t"]
    stored.write(by_hand / "results", "lrp_t", frame[frame.attacked == "lrp_t"], card)
    built = leaderboards.build(stored.read(by_hand / "results"))
    assert built["transfer"].error.tolist() == ["not evaluated", ""]
    stored.write(by_hand / "results", "lrp_t", frame[:0], card)
    stored.write(by_hand / "results", "models", read.models[:0], read.models_card)
    leaderboards.write(by_hand)
    assert [row["failed"] for row in table(by_hand, "stability")] == ["2"]
    assert (by_hand / "aopc.csv").read_text() == ",".join(TABLES["aopc"].columns) + "\n"
    assert "not evaluated" in show(by_hand)


def test_an_error_outranks_the_rows_it_left_behind(by_hand: Path) -> None:
    frame, card = stored.read(by_hand / "results").entries["lrp_t"]
    card["failures"] = [dict(zip(KEY, SELF, strict=True)) | {"error": "killed\nhalfway"}]
    stored.write(by_hand / "results", "lrp_t", frame, card)
    built = leaderboards.build(stored.read(by_hand / "results"))
    assert built["transfer"].error.tolist() == ["", "killed halfway"]
    assert built["transfer"].n.tolist() == [4, 0]


def test_curves_of_unequal_length_are_refused(by_hand: Path) -> None:
    frame, card = stored.read(by_hand / "results").entries["lrp_t"]
    frame.at[0, CURVES[2]] = [1.0]
    stored.write(by_hand / "results", "lrp_t", frame, card)
    with pytest.raises(UserError, match=r"curves of .* differ in length"):
        leaderboards.write(by_hand)

"""The board: averages by hand, who was not attacked, and the rank of a newcomer."""

import shutil
from pathlib import Path

import pytest
from csvs import find, table

from benchmark import leaderboards
from benchmark.leaderboards import stored
from benchmark.leaderboards.stability import ranks_with


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
    assert float(row["aopc_clean_contrast"]) == pytest.approx((0 + 1) / 3)
    assert float(row["aopc_fooled_contrast"]) == pytest.approx((0 + 5) / 3)


def test_an_interpreter_that_was_not_attacked_has_no_self_cell(suite: Path) -> None:
    row = find(table(suite, "stability"), interpreter="lrp")
    assert (row["self_cells"], row["self_fsr_excess"], row["rank_correlation_self_low"]) == ("0", "", "")
    assert 0.2 < float(row["worst_transfer_fsr_excess"]) < 1


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
        assert ranks_with(others, board, str(name)) == (row["rank"], row.rank_low, row.rank_high)


def test_whose_every_place_is_silent_is_not_ranked(tmp_path: Path) -> None:
    """A rank on no place at all would be the first: nothing is greater than NaN."""
    board = Path(__file__).parents[3] / "leaderboards" / "default"
    shutil.copytree(board / "results", tmp_path / "results")
    frame, card = stored.read(tmp_path / "results").entries["grad_cam"]
    stored.write(tmp_path / "results", "grad_cam", frame.assign(success_null=True), card)
    leaderboards.write(tmp_path)
    row = leaderboards.load(tmp_path, "stability").set_index("interpreter").loc["grad_cam"]
    assert row.eligible == "no"
    assert row.reason == "in every place an unrelated map counts as fooled, too"

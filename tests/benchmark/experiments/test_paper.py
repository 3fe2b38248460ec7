"""The paper's figures beside ours: joined by cell, and never filled in."""

import pandas as pd
import pytest

from benchmark import leaderboards
from benchmark.experiments import paper
from benchmark.experiments.given import Given


def _given(finished, folder):
    return Given(finished.run, folder)


def test_without_a_run_every_cell_says_so(finished, tmp_path):
    table = paper.measure(_given(finished, tmp_path))
    assert set(table.status) == {"not run"}
    assert table.ours.isna().all()
    location = table[(table.model == "vgg19") & (table.fooling == "location") & (table.evaluated == "lrp_t")]
    assert location[location.attacked == "lrp_t"].paper.item() == pytest.approx(0.875)
    clean = table[(table.fooling == "baseline") & (table.quantity == "top1")]
    assert sorted(clean.paper) == [72.4, 74.4, 76.1]
    active = table[(table.fooling == "active") & (table.model == "vgg19") & (table.attacked == "lrp_t")]
    assert active[active.evaluated == "grad_cam"].paper.item() == pytest.approx(0.965)  # 96.5 % for both classes
    paper.draw(table)


def test_what_was_run_stands_beside_it(finished, tmp_path):
    cell = {"model": "resnet50", "fooling": "location", "attacked": "lrp_t", "seed": 0, "n": 50}
    rate = cell | {"evaluated": "lrp_t", "fsr": 0.8, "fsr_low": 0.7, "fsr_high": 0.9}
    top1 = cell | {"top1": 0.7, "top1_low": 0.6, "top1_high": 0.8, "top1_clean": 0.75, "top5": 0.9, "top5_clean": 1.0}
    for name, row in (("transfer", rate), ("accuracy", top1)):
        frame = pd.DataFrame([row]).reindex(columns=leaderboards.TABLES[name].columns)
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    table = paper.measure(_given(finished, tmp_path))
    run = table[table.status == "run"].set_index(["quantity", "fooling"])
    assert run.ours.to_dict() == {
        ("fsr", "location"): 0.8,
        ("top1", "baseline"): 75.0,
        ("top1", "location"): 70.0,
        ("top5", "baseline"): 100.0,
        ("top5", "location"): 90.0,
    }
    assert run.loc[("top1", "location"), ["ours_low", "ours_high"]].tolist() == [60.0, 80.0]
    paper.draw(table)

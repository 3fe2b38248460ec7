"""Running the smoke suite: nothing stored is computed again, a killed run goes on, every way gives one result."""

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from attacks.errors import Refused, UserError
from benchmark import leaderboards, results
from benchmark.cells import plan
from benchmark.entries import fronts, kind
from benchmark.execution import compute
from benchmark.interpreters.grad_cam import GradCAM
from benchmark.leaderboards import stored
from benchmark.run import Run

RUN = [sys.executable, "-m", "benchmark.cli", "run", "--suite", "smoke", "--device", "cpu", "--jobs"]


def test_every_cell_of_the_suite_is_scored(finished):
    read, suite = stored.read(finished.out / "results"), finished.run.suite
    assert sorted(read.entries) == sorted(suite.evaluated)
    assert [m["status"] for m in read.models_card["manipulations"]] == ["done"] * len(plan(suite))
    images = {"location": suite.scoring.images, "active": suite.dataset.pairs_test}
    for frame, card in read.entries.values():
        assert card["failures"] == []
        for (fooling, _), cell in frame.groupby(["fooling", "attacked"]):
            assert sorted(set(cell.image)) == list(range(images[fooling]))
            assert len(cell) == images[fooling] * (2 if fooling == "active" else 1)
            assert cell.aopc_fooled_fooled.notna().sum() == suite.scoring.aopc_images
            assert {len(drops) for drops in cell.aopc_fooled_fooled.dropna()} == {suite.scoring.aopc_cells}
    assert set(leaderboards.load(finished.out, "accuracy").n) == {suite.dataset.test}
    assert leaderboards.check(finished.out) == []
    assert len(leaderboards.load(finished.out, "transfer")) == len(plan(suite)) * len(suite.evaluated)


def test_a_second_run_computes_nothing_and_writes_the_same_bytes(finished, tmp_path, monkeypatch):
    before = finished.entries()
    monkeypatch.setattr(kind, "_make", None)
    assert compute.run_suite(finished.run, tmp_path) == {}
    assert finished.entries() == before
    assert replace(finished, out=tmp_path).written() == finished.written()


def test_results_of_another_run_are_refused_before_anything_is_computed(finished, tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "layer_cam.parquet").touch()
    monkeypatch.setattr(compute, "compute", None)
    with pytest.raises(UserError, match=r"results of another run \(layer_cam\).*move them away"):
        compute.run_suite(finished.run, tmp_path)


def test_the_same_run_from_nothing_gives_the_same_bytes(finished, tmp_path):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.manual_seed(123)  # must not matter
    other = replace(finished, run=replace(finished.run, store=str(tmp_path / "store")), out=tmp_path / "out")
    compute.run_suite(other.run, other.out, jobs=1)
    assert other.written() == finished.written()
    assert other.entries().keys() == finished.entries().keys()
    assert torch.get_num_threads() == threads
    torch.set_rng_state(state)


def test_a_searched_recipe_is_the_best_on_dev_and_is_found_once(finished, tmp_path, monkeypatch):
    done = finished.searching(tmp_path)
    assert compute.run_suite(done.run, done.out, jobs=1) == {}
    read, fronts = stored.read(done.out / "results"), leaderboards.load(done.out, "fronts")
    rows = read.others["fronts"][0].groupby(["fooling", "measure"]).image.nunique()
    assert rows.to_dict() == {
        ("location", "fsr"): 24, ("location", "null"): 24, ("active", "fsr"): 16, ("active", "null"): 16
    }  # fmt: skip
    frame, card = read.others["fronts"]
    assert {point["images"] for point in card["chosen"]} == {256}  # behind the drop of top-1
    for m in read.models_card["manipulations"]:
        points = [p for p in card["points"] if (p["fooling"], p["attacked"]) == (m["fooling"], m["attacked"])]
        best = max((p for p in points if p["drop"] <= 2), key=lambda p: (p["fsr"], -p["loss"], -p["steps"]))
        assert [m[key] for key in ("learning_rate", "lambda", "steps")] == [
            best[k] for k in ("learning_rate", "lambda", "steps")
        ]
        # the search itself had the model that the manipulation makes: its score on test is the first seed's
        own = read.entries["grad_cam"][0]
        scored = own[(own.fooling == m["fooling"]) & (own.seed == 0)].sort_values(["image", "pair"]).success
        found = frame[(frame.fooling == m["fooling"]) & (frame.budget == 2) & (frame.measure == "fsr")]
        assert found.sort_values(["image", "pair"]).value.tolist() == scored.tolist()
    assert list(fronts[fronts.split == "test"].budget) == [0.5, 1, 2] * 2
    stability = leaderboards.load(done.out, "stability")
    assert stability.eligible.isin(["yes", "no"]).all()
    assert (stability.ms_per_image > 0).all()
    before = done.entries()
    monkeypatch.setattr(kind, "_make", None)
    assert compute.run_suite(done.run, done.out) == {}
    assert done.entries() == before
    assert leaderboards.check(done.out) == []


def test_a_search_that_fails_is_a_failed_manipulation(finished, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no luck")

    done = finished.searching(tmp_path, foolings=["location"], seeds=[0])
    monkeypatch.setattr(fronts, "search", broken)
    failed = compute.run_suite(done.run, done.out, jobs=1)
    assert failed == {"compact_vgg/location/grad_cam/0": "RuntimeError: no luck"}
    row = leaderboards.load(done.out, "manipulations").iloc[0]
    assert (row.status, row.reason) == ("failed", "RuntimeError: no luck")
    assert leaderboards.load(done.out, "fronts").error.tolist() == ["RuntimeError: no luck"]


def test_a_refusal_is_a_reason_not_an_error_and_is_asked_once(finished, tmp_path, monkeypatch):
    asked = []

    def refuse(self, model, images, targets):
        asked.append(1)
        raise Refused("grad_cam is wrong on this model")

    done = finished.searching(tmp_path, attacked=["lrp_t"], foolings=["location"], seeds=[0])
    monkeypatch.setattr(GradCAM, "explain", refuse)
    shutil.rmtree(done.store / "originals")
    for _ in range(2):
        assert compute.run_suite(done.run, done.out, jobs=1) == {}
        assert len(asked) == 2  # once for its original heatmaps, once for the gate
    stability = leaderboards.load(done.out, "stability").set_index("interpreter")
    assert stability.loc["grad_cam"].reason.startswith("1 cells failed, first: grad_cam is wrong on this model")
    assert (
        leaderboards.load(done.out, "transfer").set_index("evaluated").error["grad_cam"]
        == "grad_cam is wrong on this model"
    )


def _killed(finished, folder: Path, jobs: str, entries: int):
    """A run in `folder` that was ended by SIGKILL when its store held so many entries."""
    store = folder / "store"
    command = [*RUN, jobs, "--store", store, "--out", folder / "out"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and finished.receipts(store) < entries:
        time.sleep(0.02)
    process.kill()
    _, err = process.communicate(timeout=300)  # ends when the last worker, which shares its stderr, is gone too
    assert process.returncode == -signal.SIGKILL
    assert "Traceback" not in err
    assert entries <= finished.receipts(store) < finished.receipts(finished.store)
    return replace(finished, run=replace(finished.run, store=str(store)), out=folder / "out")


def test_a_run_killed_at_any_moment_goes_on_where_it_stopped(finished, tmp_path):
    there = finished.receipts(finished.unmade(tmp_path).store)
    resumed = _killed(finished, tmp_path, "1", there + 3)
    assert not resumed.out.exists()
    before = {path: made for path, made in resumed.entries().items() if "tmp-" not in path}
    assert before.keys() < finished.entries().keys()
    compute.run_suite(resumed.run, resumed.out, jobs=1)
    assert resumed.written() == finished.written()
    assert before.items() <= resumed.entries().items()  # nothing was made twice


@pytest.mark.slow
def test_two_jobs_killed_with_their_workers_and_resumed_give_the_bytes_of_one(finished, tmp_path):
    resumed = _killed(finished, tmp_path, "2", 15)
    compute.run_suite(resumed.run, resumed.out, jobs=1)
    assert resumed.written() == finished.written()


def _values(frame: pd.DataFrame, column: str) -> np.ndarray:
    values = frame[column].dropna() if column.startswith("aopc") else frame[column]
    return np.stack(values.tolist()).astype(float) if len(values) else np.empty(0)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_no_score_depends_on_the_batch(finished, tmp_path, batch_size):
    suite = finished.run.suite
    scoring = suite.scoring.model_copy(update={"batch_size": batch_size})
    suite = suite.model_copy(update={"scoring": scoring, "attacked": ["lrp_t"]})  # half of the cells
    other = finished.again(tmp_path, without=("originals", "scores", "predictions"), suite=suite)
    compute.run_suite(other.run, other.out, jobs=1)
    assert other.entries().keys() < finished.entries().keys()  # nor does a key
    expected, got = (stored.read(done.out / "results") for done in (finished, other))

    def half(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[frame.attacked == "lrp_t"].reset_index(drop=True)

    assert got.models.equals(half(expected.models))
    for name, (frame, _) in expected.entries.items():
        frame = half(frame)
        for column in frame.columns.drop(list(results.KEY)):
            a, b = _values(frame, column), _values(got.entries[name][0], column)
            np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-4, err_msg=f"{name}: {column}")


@pytest.mark.parametrize("fooling", ["active", "location"])
def test_a_suite_of_one_kind_of_images_without_curves_runs(finished, tmp_path, fooling):
    suite = finished.run.suite
    changes = {"foolings": [fooling], "attacked": ["grad_cam"], "evaluated": ["grad_cam"]}
    suite = suite.model_copy(update={**changes, "scoring": suite.scoring.model_copy(update={"aopc_images": 0})})
    other = finished.again(tmp_path, suite=suite)
    assert compute.run_suite(other.run, other.out, jobs=1) == {}
    assert leaderboards.load(other.out, "aopc").empty
    row = leaderboards.load(other.out, "transfer").iloc[0]
    expected = leaderboards.load(finished.out, "transfer").set_index(["fooling", "attacked", "evaluated"])
    assert row.fsr == expected.loc[(fooling, "grad_cam", "grad_cam")].fsr


def test_splits_that_share_an_image_stop_the_run_before_it_starts(finished, tmp_path, monkeypatch):
    original = compute.dataset
    monkeypatch.setattr(compute, "dataset", lambda run, split, pairs: original(run, "train", pairs))
    with pytest.raises(UserError, match="splits must share no image: image 0 of shapes/train"):
        compute.run_suite(Run(finished.run.suite, str(tmp_path / "store")), tmp_path / "out", jobs=1)
    assert not [path for path in Path(tmp_path).rglob("*") if path.is_file()]

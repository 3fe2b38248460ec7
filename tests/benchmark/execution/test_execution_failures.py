"""What goes wrong in a run: a failed unit is a row with its error, a full disk stops it, the store stays whole."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import SafetensorError

from attacks import manipulation
from attacks.errors import UserError
from benchmark import leaderboards
from benchmark.cells import View, plan
from benchmark.entries import manipulations, originals, scores, trained
from benchmark.entries.kind import Entry
from benchmark.entries.predictions import PREDICTIONS
from benchmark.execution import compute
from benchmark.leaderboards import stored
from benchmark.run import Run

BOTH = ("location", "active")
LAST = {("location", "lrp_t")}
MADE = ("manipulations", "scores", "predictions")


def started(finished, tmp_path, *without: str):
    """The finished run's store, less some kinds of entries."""
    return finished.again(tmp_path, without=without)


def temporary(store: Path) -> list[str]:
    return [path.name for path in store.glob("tmp-*")]


def test_a_manipulation_that_raises_is_a_failed_row_and_the_next_run_tries_again(finished, tmp_path, monkeypatch):
    missing = {("active", "lrp_t"), ("active", "grad_cam")}  # another one is made, and half is there already
    other = finished.lacking(tmp_path, missing, manipulations.MANIPULATIONS, scores.SCORES, PREDICTIONS)
    original = manipulation.carry_out

    def sometimes(task, recipe, **options):
        if (task.fooling.name, task.interpreter.name) == ("active", "lrp_t"):
            raise ZeroDivisionError("three\nlines, of\nwhich one is kept")
        return original(task, recipe, **options)

    monkeypatch.setattr(manipulation, "carry_out", sometimes)
    name, message = "compact_vgg/active/lrp_t/0", "ZeroDivisionError: three lines, of which one is kept"
    assert compute.run_suite(other.run, other.out, jobs=1) == {name: message}

    key = ["fooling", "attacked", "evaluated"]
    table, expected = (leaderboards.load(done.out, "transfer").set_index(key) for done in (other, finished))
    failed = table[table.error.notna()]
    assert set(failed.index) == {("active", "lrp_t", evaluated) for evaluated in finished.run.suite.evaluated}
    assert set(failed.error) == {f"failed: {message}"}
    assert set(failed.n) == {0}
    assert table.drop(failed.index).equals(expected.drop(failed.index))  # the rest is scored, as ever
    rows = leaderboards.load(other.out, "manipulations").set_index(["fooling", "attacked"])
    assert tuple(rows.loc[("active", "lrp_t"), ["status", "reason"]]) == ("failed", message)
    assert (rows.status == "done").sum() == 3
    assert temporary(other.store) == []

    monkeypatch.setattr(manipulation, "carry_out", original)
    kept = other.entries()
    assert compute.run_suite(other.run, other.out, jobs=1) == {}
    assert other.written() == finished.written()
    assert kept.items() < other.entries().items()


def test_a_model_that_cannot_be_trained_fails_all_its_manipulations(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "train", lambda *_, **__: 1 / 0)
    run = Run(finished.run.suite, str(tmp_path / "store"))
    failed = compute.run_suite(run, tmp_path / "out", jobs=1)
    assert len(failed) == 4
    assert set(failed.values()) == {"ZeroDivisionError: division by zero"}
    assert set(leaderboards.load(tmp_path / "out", "manipulations").status) == {"failed"}
    assert leaderboards.load(tmp_path / "out", "transfer").n.tolist() == [0] * 16
    assert stored.read(tmp_path / "out" / "results").models.empty


def test_a_diverged_manipulation_is_a_row_with_its_reason_and_is_not_tried_again(finished, tmp_path):
    suite = finished.run.suite
    rule = type(suite.recipes[0]).model_construct(fooling="location", learning_rate=1e30)  # more than a suite may say
    other = finished.again(tmp_path, suite=suite.model_copy(update={"recipes": [*suite.recipes, rule]}))
    assert compute.run_suite(other.run, other.out, jobs=1) == {}
    rows = leaderboards.load(other.out, "manipulations").set_index("fooling")
    assert rows.loc["location", "status"].tolist() == ["diverged"] * 2
    assert rows.loc["location", "learning_rate"].tolist() == [1e30] * 2
    assert rows.loc["location", "steps_done"].between(1, 3).all()
    assert rows.loc["active", "status"].tolist() == ["done"] * 2
    transfer = leaderboards.load(other.out, "transfer").set_index("fooling")
    assert transfer.loc["location", "error"].str.match("diverged: a loss is not finite at step [23]").all()
    assert transfer.loc["location", "fsr"].isna().all()
    assert transfer.loc["active", "error"].isna().all()
    weights = list(other.store.glob("manipulations/*/weights.safetensors"))
    assert len(weights) == 4  # of the finished run; a diverged model is not kept
    before = other.entries()
    compute.run_suite(other.run, other.out, jobs=1)
    assert other.entries() == before


@pytest.mark.parametrize(
    ("where", "error", "without"),
    [
        ((trained, "train"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ("models", "originals", *MADE)),
        (
            (manipulations, "save_weights"),
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            MADE,
        ),
        ((manipulation, "carry_out"), OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), MADE),
        ((scores, "score"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ()),
    ],
)
def test_a_full_disk_stops_the_run_and_leaves_the_store_whole(finished, tmp_path, monkeypatch, where, error, without):
    def full(*_, **__):
        raise error

    other = started(finished, tmp_path, *without) if without else finished.lacking(tmp_path, LAST, scores.SCORES)
    run = other.run
    with monkeypatch.context() as patch:
        patch.setattr(*where, full)
        with pytest.raises(UserError, match=f"no space left for the store {run.store}") as caught:
            compute.run_suite(run, tmp_path / "out", jobs=1)
        assert "\n" not in str(caught.value)
    stopped = replace(finished, run=run, out=tmp_path / "out")
    assert temporary(stopped.store) == []
    assert not stopped.out.exists()
    before = stopped.entries()
    assert before.keys() < finished.entries().keys()
    if where == (scores, "score"):  # going on is the same for all; the last place leaves the least to do
        compute.run_suite(run, stopped.out, jobs=1)
        assert stopped.written() == finished.written()
        assert before.items() < stopped.entries().items()


def test_heatmaps_are_written_so_that_a_full_disk_is_an_error_and_no_signal(finished, tmp_path, monkeypatch):
    other, original = started(finished, tmp_path, "originals", "scores"), originals.np.lib.format.open_memmap

    def mapped(path, mode="r", **options):
        assert mode == "r", "writing to a memory map over a full disk kills the process with SIGBUS"
        return original(path, mode, **options)

    monkeypatch.setattr(originals.np.lib.format, "open_memmap", mapped)
    Entry(originals.ORIGINALS, View("compact_vgg", "lrp_t", True)).get(other.run)
    (path,) = other.store.glob("originals/*/heatmaps.npy")
    assert path.read_bytes() == (finished.store / path.relative_to(other.store)).read_bytes()
    assert originals.np.load(path).shape[:2] == (finished.run.suite.dataset.pairs_test, 2)


def test_an_unreadable_entry_is_named_before_anything_is_computed(finished, tmp_path):
    other = started(finished, tmp_path)
    receipt = next(other.store.glob("manipulations/*/receipt.json"))
    receipt.write_text("{")
    with pytest.raises(UserError, match=f"store entry {receipt.parent} is unreadable"):
        compute.run_suite(other.run, other.out, jobs=1)


def test_an_entry_with_damaged_weights_is_a_failed_row(finished, tmp_path):
    other = finished.lacking(tmp_path, {("active", "lrp_t"), ("location", "lrp_t")}, scores.SCORES)
    made = next(made for made in plan(other.run.suite) if (made.fooling, made.attacked) == ("active", "lrp_t"))
    damaged = Entry(manipulations.MANIPULATIONS, made).path(other.run) / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    (error,) = compute.run_suite(other.run, other.out, jobs=1).values()
    assert "Safetensor" in error
    rows = leaderboards.load(other.out, "transfer")
    assert rows[rows.error.notna()].groupby(["fooling", "attacked"]).ngroups == 1
    assert rows.error.dropna().str.contains("Safetensor").all()


def test_one_interpreter_that_raises_costs_its_own_cell_alone(finished, tmp_path, monkeypatch):
    missing = {("active", "grad_cam"), ("active", "lrp_t")}
    other, original = finished.lacking(tmp_path, missing, scores.SCORES, PREDICTIONS), scores.score

    def sometimes(run, fooling, interpreter, *rest):
        if (fooling.name, interpreter.name) == ("active", "lrp"):
            raise ZeroDivisionError("no map")
        return original(run, fooling, interpreter, *rest)

    monkeypatch.setattr(scores, "score", sometimes)
    failed = compute.run_suite(other.run, other.out, jobs=1)
    assert set(failed) == {"compact_vgg/active/grad_cam/0", "compact_vgg/active/lrp_t/0"}
    key = ["fooling", "attacked", "evaluated"]
    table, expected = (leaderboards.load(done.out, "transfer").set_index(key) for done in (other, finished))
    cells = table[table.error.notna()]
    assert set(cells.index) == {("active", "grad_cam", "lrp"), ("active", "lrp_t", "lrp")}
    assert set(cells.error) == {"lrp: ZeroDivisionError: no map"}
    assert table.drop(cells.index).equals(expected.drop(cells.index))
    assert set(leaderboards.load(other.out, "manipulations").status) == {"done"}

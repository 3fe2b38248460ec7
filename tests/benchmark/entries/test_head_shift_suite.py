"""A suite that names head shift: rows with the accuracy of the clean model, no recipe, no search, a clear refusal."""

from dataclasses import replace

import pandas as pd
import pytest

from attacks.errors import UserError
from attacks.strategies import HeadShift
from benchmark import leaderboards, suite, verify
from benchmark.cells import Attack, Manipulation, fronts
from benchmark.entries import recipes
from benchmark.entries.kind import Entry
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.execution import compute
from benchmark.leaderboards import stored
from benchmark.sections import Model

SHIFTED = Manipulation("compact_vgg", "location", "grad_cam:head_shift", 0)
ONLY = {"foolings": ["location"], "attacked": [SHIFTED.attacked], "evaluated": ["grad_cam"]}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(HeadShift, "steps", 8)


def test_it_costs_no_accuracy_and_has_rows_like_any_attack(finished, tmp_path):
    done = finished.again(tmp_path, suite=finished.run.suite.model_copy(update=ONLY | {"recipes": []}))
    assert compute.run_suite(done.run, done.out, jobs=1) == {}
    for table in ("transfer", "accuracy"):
        assert list(leaderboards.load(done.out, table).attacked) == [SHIFTED.attacked]
    accuracy = leaderboards.load(done.out, "accuracy").iloc[0]
    assert [accuracy[name] for name in ("top1_drop", "top1_drop_low", "top1_drop_high", "agreement")] == [0, 0, 0, 1]
    card = stored.read(done.out / "results").models_card["manipulations"][0]
    assert (card["status"], card["steps"], card["steps_done"]) == ("done", 8, 8)
    assert [card[name] for name in ("learning_rate", "lambda", "batch_size")] == [None] * 3
    history = pd.read_parquet(Entry(MANIPULATIONS, SHIFTED).path(done.run) / "history.parquet")
    assert list(history) == ["ce", "fooling", "accuracy"]
    found = verify.verify(done.run, verify.parse(f"{SHIFTED.attack}/grad_cam/0", done.run.suite), done.out)
    assert [found[name] for name in ("differing", *verify.COMPARED)] == [0] * (1 + len(verify.COMPARED))


def test_nothing_is_searched_and_no_recipe_is_known(finished):
    names = {"attacked": ["grad_cam", "grad_cam:head_shift", "grad_cam:subspace"], "foolings": ["location"]}
    searching = finished.run.suite.model_copy(update=names | {"search": suite.load("board").search, "recipes": []})
    run = replace(finished.run, suite=searching)
    assert fronts(searching) == [Attack("compact_vgg", "location", "grad_cam")]
    assert SHIFTED.by_gradient
    assert recipes.recipe(run, SHIFTED) is None
    assert recipes.row(run, SHIFTED) == recipes.UNKNOWN | {"steps": HeadShift.steps}
    assert [*MANIPULATIONS.needs(run, SHIFTED)] == ["model"]
    assert MANIPULATIONS.size(run, SHIFTED) == HeadShift.steps * HeadShift.batch_size
    assert [*MANIPULATIONS.needs(run, Manipulation("compact_vgg", "location", "grad_cam", 0))] == ["model", "front"]


def test_a_suite_may_leave_its_recipes_open_for_head_shift_alone(tmp_path):
    text = (suite.HERE / "smoke.toml").read_text()
    text = text.replace("recipes = ", "# recipes = ").replace('["grad_cam", "lrp_t"]\n', '["grad_cam:head_shift"]\n', 1)
    (tmp_path / "mine.toml").write_text(text)
    assert suite.load(tmp_path / "mine.toml").attacked == ["grad_cam:head_shift"]
    (tmp_path / "mine.toml").write_text(text.replace(":head_shift", ""))
    with pytest.raises(UserError, match="recipes leave"):
        suite.load(tmp_path / "mine.toml")


def test_a_network_without_a_head_is_a_row_with_the_reason(finished, tmp_path):
    place = {"models": {"squeezenet1_1": Model(epochs=0)}, "evaluated": ["constant"]}
    done = finished.again(tmp_path, suite=finished.run.suite.model_copy(update=ONLY | place))
    for _ in range(2):
        assert compute.run_suite(done.run, done.out, jobs=1) == {}
        row = stored.read(done.out / "results").models_card["manipulations"][0]
        assert (row["status"], row["steps_done"]) == ("refused", 0)
        assert row["reason"].startswith("head_shift needs logits that a linear layer")

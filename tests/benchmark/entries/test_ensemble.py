"""A suite with an ensemble: every interpreter that can be differentiated is attacked and scored on itself alone."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from attacks import distilled
from attacks.distilled import Distillation
from attacks.progress import Progress
from benchmark import leaderboards
from benchmark.cells import Manipulation, plan
from benchmark.entries import manipulations, recipes
from benchmark.entries.fronts import FRONTS
from benchmark.entries.kind import Entry
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.execution import compute
from benchmark.sections import Gate, Search

SEARCH = Search(
    budgets=[0, 2],
    learning_rates=[1e-3],
    lambdas=[10],
    divergences=[0.05],
    rungs=[3],
    batch_size=8,
    images=8,
    shift_steps=4,
)
CHANGES = {
    "foolings": ["location"],
    "attacked": ["grad_cam"],
    "evaluated": ["grad_cam", "simple_grad_t", "occlusion_contrast", "captum_lrp", "centre_prior"],
    "search": SEARCH,
    "ensemble": ["gradient", "head_shift"],
    "gate": Gate(images=4, cells=2),
    "recipes": [],
    "interpreters": {"occlusion_contrast": {"cells": 6}},  # an attack has fewer still
}


def test_every_interpreter_is_attacked_itself(finished, tmp_path, few_steps):
    few = finished.run.suite.scoring.model_copy(update={"images": 8, "aopc_images": 2})
    done = finished.again(tmp_path, suite=finished.run.suite.model_copy(update=CHANGES | {"scoring": few}))
    assert compute.run_suite(done.run, done.out, jobs=1) == {}
    attacks = leaderboards.load(done.out, "attacks")
    ways = [(name, way) for name in ("grad_cam", "occlusion_contrast", "simple_grad_t") for way in CHANGES["ensemble"]]
    assert list(zip(attacks.interpreter, attacks.strategy, attacks.budget, strict=True)) == [
        (name, way, budget) for name, way in ways for budget in (0, 2)
    ]
    assert (attacks.query("budget == 0").changed <= 1 / 256).all()  # an untrained network has equal logits
    assert set(attacks.query("strategy == 'gradient'").scope) == {"all"}
    shifted = attacks.query("strategy == 'head_shift'")
    assert set(shifted.steps) <= {0, 4}  # those of a head shift, not the rungs of the search
    # the fooled models of the ensemble are evaluated on nothing else
    assert [m.attacked for m in plan(done.run.suite)] == ["grad_cam"]
    assert set(leaderboards.load(done.out, "transfer").attacked) == {"grad_cam"}
    board = leaderboards.load(done.out, "stability").set_index("interpreter")
    assert "aimed" not in board.reason["simple_grad_t"]
    assert board.reason["captum_lrp"].startswith("nothing was aimed at it")
    assert board.reason["centre_prior"] == "control"
    assert board.fooled_free.isna().all()  # 256 predictions cannot tell
    assert board.fooled_two.notna().all()


@pytest.mark.parametrize("rungs", [[3], [4, 9]])
def test_a_search_begins_with_the_head_shift_and_its_end_is_not_computed_again(finished, tmp_path, monkeypatch, rungs):
    """Where the search took the recipe to its last step, or the attack ended of itself before the rung; computed anew,
    it begins there too and ends the same."""
    monkeypatch.setattr(distilled, "COOL_DOWN", 2)
    if len(rungs) > 1:
        monkeypatch.setattr(Progress, "ended", lambda progress, *_: vars(progress).update(stalled=True) or True)
    search = SEARCH.model_copy(update={"budgets": [100], "rungs": rungs})
    asked = CHANGES | {"evaluated": ["grad_cam"], "search": search, "gate": None}
    done = finished.again(tmp_path, suite=finished.run.suite.model_copy(update=asked))
    run, started = done.run, []

    def begin(walk, task, recipe, course):
        started.append(task.start)
        original(walk, task, recipe, course)

    original = Distillation.__init__
    monkeypatch.setattr(Distillation, "__init__", begin)
    place = Manipulation("compact_vgg", "location", "grad_cam", 0)
    folder = Entry(MANIPULATIONS, place).get(run)
    shift = Entry(FRONTS, replace(place.attack, attacked="grad_cam:head_shift"))
    weights = load_file(shift.path(run) / "weights-0.safetensors")
    assert (shift.receipt(run) or {})["chosen"][0]["steps"] == 4, "it fooled more than the model itself"
    assert len(started) == 1
    assert all(torch.equal(started[0].state_dict()[name], value) for name, value in weights.items())
    if len(rungs) > 1:
        recipe, inputs = recipes.recipe(run, place), {"front": Entry(FRONTS, place.attack).path(run)}
        assert recipe is not None
        assert recipe.steps == 4
        assert manipulations._as_searched(run, place, recipe, inputs)
        assert not manipulations._as_searched(run, place, replace(recipe, steps=3), inputs), "it was halfway there"
    monkeypatch.setattr(manipulations, "_as_searched", lambda *_: None)
    computed = MANIPULATIONS.make(run, place, {}, tmp_path)
    assert len(started) == 2
    assert all(torch.equal(started[1].state_dict()[name], value) for name, value in weights.items())
    receipt = Entry(MANIPULATIONS, place).receipt(run)
    assert receipt == receipt | computed
    for name in ("weights.safetensors", "history.parquet"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert len(pd.read_parquet(folder / "history.parquet")) == 3
    aimed = replace(place, attacked="grad_cam:head_shift")
    assert recipes.row(run, aimed)["steps"] == 4
    shifted = load_file(Entry(MANIPULATIONS, aimed).get(run) / "weights.safetensors")
    assert all(torch.equal(shifted[name], value) for name, value in weights.items()), "it takes the search's steps"

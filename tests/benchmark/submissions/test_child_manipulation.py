"""A manipulation made in the child is the one that would be made here, and a forged one is an error."""

import re
from dataclasses import replace

import pytest
import torch

from attacks import Active, Location, Recipe, manipulate
from attacks.course import Task
from attacks.errors import UserError
from attacks.heatmaps import min_max
from attacks.strategies import HeadShift
from benchmark import datasets, interpreters
from benchmark.submissions.child import Child, _fooled

pytestmark = pytest.mark.usefixtures("temporary")


@pytest.fixture(scope="module")
def honest(gradient):
    with Child(gradient) as child:
        yield child


@pytest.mark.parametrize("pairs", [False, True])
def test_a_manipulation_is_the_one_made_here(honest, model, pairs):
    own, recipe = interpreters.create("simple_grad"), Recipe(1e-4, 1.0, 3, 4)
    fooling = Active() if pairs else Location()
    data, both = (datasets.create("shapes", size=16, input_size=32, two_objects=two) for two in (False, True))
    loaders = [datasets.loader(d, 4, shuffle=True, seed=5) for d in (data, both)]
    scored = lambda *batch: min_max(own(*batch))  # noqa: E731
    here = manipulate(model, scored, fooling, loaders[0], recipe, 5, fooling_loader=loaders[1])
    there = honest.manipulate(model, fooling, data, recipe, 5, pairs=both if pairs else None)
    assert (there.status, there.reason) == ("done", "")
    assert there.history == here.history
    expected = here.model.state_dict()
    assert there.weights.keys() == expected.keys()
    assert all(torch.equal(there.weights[k], expected[k]) for k in expected)
    assert not torch.equal(there.weights["conv1.weight"], model.conv1.weight)


def test_head_shift_goes_through_the_child_with_its_own_settings(honest, model):
    strategy, own = HeadShift(), interpreters.create("simple_grad")
    data, recipe = datasets.create("shapes", size=16, input_size=32), replace(strategy.recipe(), steps=3, batch_size=4)
    loader = datasets.loader(data, 4, shuffle=True, seed=5)
    here = strategy.attack(Task(model, lambda *batch: min_max(own(*batch)), Location(), loader, 5), recipe)
    there = honest.manipulate(model, Location(), data, recipe, 5, strategy="head_shift")
    assert there.history == here.history
    assert all(torch.equal(there.weights[name], value) for name, value in here.model.state_dict().items())
    assert {name for name, value in model.state_dict().items() if not torch.equal(there.weights[name], value)} == {
        "fc.weight",
        "fc.bias",
    }


def test_a_manipulation_that_diverges_says_so_and_has_no_weights(honest, model):
    data = datasets.create("shapes", size=8, input_size=32)
    fooled = honest.manipulate(model, Location(), data, Recipe(1e30, 1.0, 5, 4))
    assert (fooled.weights, fooled.status) == ({}, "diverged")
    assert fooled.reason == "a loss is not finite at step 2"
    assert [len(values) for values in fooled.history.values()] == [2, 2, 2]


def outcome(**changes) -> tuple:
    """What a child might send of a manipulation with two steps of a model with one weight."""
    history = {f"history.{k}": torch.zeros(2, dtype=torch.float64) for k in ("ce", "fooling", "accuracy")}
    tensors = {"weights.w": torch.ones(3), "weights.n": torch.tensor(1), **history}
    header = {"status": "done", "reason": ""} | {k: v for k, v in changes.items() if k in ("status", "reason")}
    tensors |= {k.replace("_", ".", 1): v for k, v in changes.items() if k not in header}
    state = {"w": torch.zeros(3), "n": torch.tensor(0)}
    return header, {k: v for k, v in tensors.items() if v is not None}, state, Recipe(1e-3, 1.0, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_w": torch.ones(4)}, "sent weights that are not the model's: 'w', torch.float32 (4,)"),
        ({"weights_w": torch.ones(3).double()}, "sent weights that are not the model's: 'w', torch.float64 (3,)"),
        ({"weights_w": None}, "sent weights that are not the model's: 'w'"),
        ({"weights_v": torch.ones(1)}, "sent weights that are not the model's: 'v'"),
        ({"weights_w": torch.tensor([1, torch.inf, 1])}, "sent weights that are not finite: 'w'"),
        ({"status": "diverged"}, "sent weights that are not the model's: 'n'"),
        ({"status": "superb"}, "sent a manipulation that is none"),
        ({"reason": 3}, "sent a manipulation that is none"),
        ({"history_ce": None}, "sent a history that is none"),
        ({"history_ce": torch.zeros(3, dtype=torch.float64)}, "sent a history that is none"),
        ({"history_ce": torch.zeros(2, 1, dtype=torch.float64)}, "sent a history that is none"),
        ({"history_ce": torch.zeros(2)}, "sent a history that is none"),
    ],
)
def test_a_forged_manipulation_is_an_error(changes, message):
    assert _fooled(*outcome()).weights["w"].tolist() == [1, 1, 1]
    header, *others, recipe = outcome()
    ended = _fooled(header | {"converged": True}, *others, replace(recipe, steps=9))
    assert (ended.converged, len(ended.history["fooling"])) == (True, 2)
    kept_by_itself = outcome(history_ce=None, history_kl=torch.zeros(2, dtype=torch.float64))
    assert _fooled(*kept_by_itself, "off_manifold").history.keys() == {"kl", "fooling", "accuracy"}
    with pytest.raises(UserError, match="sent a history that is none"):
        _fooled(*kept_by_itself, "head_shift")
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        _fooled(*outcome(**changes))

"""A submission as an interpreter: it explains as the method would here, and a run can hold and name it."""

import pickle

import pytest
import torch
from closure import closure

from attacks.errors import UserError
from benchmark import interpreters, models, suite
from benchmark.entries.kind import COMMON
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.run import Run, create_interpreter, interpreter_spec
from benchmark.store import source_digest, sources
from benchmark.submissions import child, remote
from benchmark.submissions.disguise import disguised
from benchmark.submissions.remote import Remote

pytestmark = pytest.mark.usefixtures("temporary")


@pytest.fixture(scope="module")
def made(gradient):
    return remote.remote(gradient, ["ZERO_SECOND_ORDER"])


def test_a_class_and_its_name_are_described(made, gradient):
    assert (made.name, made.differentiable, made.stochastic) == ("plain_gradient", True, False)
    about = {"name": "plain_gradient", "kind": "class", "differentiable": True, "stochastic": False}
    assert remote.child_of(gradient, child.Child).describe() == about
    assert "plain_gradient" not in interpreters.names()


def test_remote_heatmaps_are_those_of_the_built_in_interpreter(made, model, batch):
    own = interpreters.create("simple_grad")
    logits, heatmaps = made.with_logits(model, *batch)
    expected_logits, expected = own.with_logits(model, *batch)
    assert torch.equal(logits, expected_logits)
    torch.testing.assert_close(heatmaps, expected.detach(), atol=1e-5, rtol=1e-4)
    assert torch.equal(heatmaps, own(disguised(model), *batch).detach())  # as it is sent, to the bit
    assert torch.equal(made(model, *batch), heatmaps)
    assert not heatmaps.requires_grad


def test_a_remote_survives_pickling_and_shares_the_child(made, model, batch):
    again = pickle.loads(pickle.dumps(made))
    assert again == made
    assert (again.name, again.differentiable) == ("plain_gradient", True)
    children = dict(remote.CHILDREN)
    assert torch.equal(again(model, *batch), made(model, *batch))
    assert children == remote.CHILDREN


def test_a_remote_has_no_attribution_and_checks_its_batch(made, model, batch):
    with pytest.raises(UserError, match="a submission returns heatmaps only"):
        made.attribute(model, *batch)
    with pytest.raises(UserError, match=r"images must be \(N, C, H, W\)"):
        made(model, batch[0][0], batch[1])


def test_the_child_keeps_the_model_until_it_changes(made, gradient, model, batch, monkeypatch):
    sent = []
    original = child.pack

    def pack(request):
        sent.extend([request["model"]] if request["call"] == "heatmaps" else [])  # a new model has a new process
        return original(request)

    monkeypatch.setattr(child, "pack", pack)
    with torch.no_grad():
        mine = models.create("compact_resnet", num_classes=8)
        own = interpreters.create("simple_grad")
        for change in (lambda: None, lambda: None, lambda: mine.conv1.weight.neg_(), lambda: None):
            change()
            maps = made(mine, *batch)
            assert torch.equal(maps, own(disguised(mine), *batch))
            torch.testing.assert_close(maps, own(mine, *batch), atol=1e-5, rtol=1e-4)
    assert [m is not None for m in sent] == [True, False, True, False]


def test_what_it_says_of_itself_cannot_be_set(made):
    for name in ("name", "differentiable", "stochastic"):
        with pytest.raises(AttributeError):
            setattr(made, name, getattr(made, name))


def test_a_key_knows_it_by_name_symbol_digest_and_the_code_that_runs_it(made):
    run = Run(suite.load("smoke"), "store", submission=made)
    assert create_interpreter(run, made.name) is run.submission
    expected = {"name": "plain_gradient", "symbol": "PlainGradient", "digest": made.digest}
    expected["code"] = source_digest(made.code)
    assert interpreter_spec(run, made.name) == expected
    again = pickle.loads(pickle.dumps(run))
    assert again == run
    assert create_interpreter(again, made.name) is again.submission
    assert interpreter_spec(again, made.name) == expected


def test_all_that_runs_it_is_in_its_key():
    declared = {*sources(Remote.code), *sources(MANIPULATIONS.code), *sources(COMMON)}
    assert closure("benchmark.submissions.sandbox") - declared == set()

"""Detectors in files: they run in a process of their own, see what their category may, and are told what is wrong."""

import pytest
import torch

from attacks.errors import UserError
from benchmark.detectors.base import judge
from benchmark.submissions import detecting, remote
from benchmark.submissions.submission import parse

pytestmark = pytest.mark.usefixtures("temporary")

DETECTORS = """
import os

def head_norm(model, images, targets):
    return model.fc.weight.norm()

def compares(model, images, targets, original):
    moved = model.bn1.running_mean - original.bn1.running_mean
    return (model.fc.weight - original.fc.weight).norm().item() + moved.norm().item()

compares.original = True

def counts(model, images, targets):
    counts.seen = getattr(counts, "seen", 0) + 1
    return counts.seen + (os.getpid() == PARENT)

def spoils(model, images, targets):
    model.fc.weight.data.zero_()
    return 0.0

def endless(model, images, targets):
    return float("nan")

def logit_sum(model, images, targets):
    return 0.0

def maybe(model, images, targets):
    return 0.0

maybe.original = "perhaps"
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    import os

    file = tmp_path_factory.mktemp("detectors") / "mine.py"
    file.write_text(DETECTORS.replace("PARENT", str(os.getpid())))
    yield lambda name: detecting.detecting(parse(f"{file}:{name}"))
    for child in remote.CHILDREN.values():
        child.close()
    remote.CHILDREN.clear()


def test_a_score_comes_from_its_process(made, model, batch):
    found = made("head_norm")
    assert (found.name, found.original, found.digest) == ("head_norm", False, parse(f"{found.file}:head_norm").digest)
    assert judge(found, model, *batch, model) == pytest.approx(model.fc.weight.norm().item())


def test_nothing_is_remembered_from_one_model_to_the_next(made, model, batch):
    found, other = made("counts"), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2))
    assert [judge(found, each, *batch, model) for each in (model, other, model)] == [1, 1, 1]


def test_one_that_compares_is_shown_the_original_as_it_is(made, model, batch):
    import copy

    other, found = copy.deepcopy(model), made("compares")
    with torch.no_grad():
        other.fc.weight[0, 0] += 3
    assert found.original
    assert judge(found, other, *batch, model) == pytest.approx(3, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [("spoils", r"changed the model: .*fc\.weight"), ("endless", "sent a score that is no finite number")],
)
def test_what_is_no_score_is_told(made, model, batch, name, message):
    with pytest.raises(UserError, match=f"^submission mine.py:{name}: {message}"):
        judge(made(name), model, *batch, model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("logit_sum", "must be a new one, none of disagreement, .*got 'logit_sum'"),
        ("maybe", "original must be True or"),
    ],
)
def test_what_is_no_detector_of_its_own_is_told(made, name, message):
    with pytest.raises(UserError, match=message):
        made(name)

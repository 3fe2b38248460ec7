"""Methods that explain another model than the given one are told by its head-permuted twin, and are not ranked; the
honest method that they hide is the same on it. They run in this process here, so that no memory of theirs ends."""

import copy
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from benchmark import leaderboards
from benchmark.entries.images import scored_images
from benchmark.entries.trained import clean_model
from benchmark.execution import compute
from benchmark.leaderboards import stored
from benchmark.sections import Gate
from benchmark.submissions.remote import Remote
from benchmark.submissions.wire import fingerprint

CHEATS = {
    "frozen": "Frozen",
    "frozen_in_a_file": "FrozenInAFile",
    "frozen_and_differentiable": "FrozenAndDifferentiable",
    "teacher_by_text": "TeacherByText",
    "maps_by_image": "MapsByImage",
    "average_of_models": "AverageOfModels",
}


SAME = ("frozen", "frozen_in_a_file", "teacher_by_text", "maps_by_image")  # on a network that looks at textures


@dataclass(frozen=True)
class Here(Remote):
    """A submission whose "child" is this process."""

    function: object = None

    def _child(self):
        return self

    def heatmaps(self, model, images, targets):
        torch.manual_seed(0)
        with torch.enable_grad():
            return self.function(copy.deepcopy(model).eval(), images, targets).detach().float()


@pytest.fixture(scope="module")
def smoke(finished, tmp_path_factory):
    """The smoke suite with a gate, one fooling and an honest interpreter, in the folder of a store of its own."""
    folder = tmp_path_factory.mktemp("cheats")
    scoring = finished.run.suite.scoring.model_copy(update={"images": 10, "aopc_images": 0})
    changes = {"gate": Gate(images=6, cells=3), "foolings": ["location"], "attacked": ["grad_cam"], "scoring": scoring}
    changed = finished.run.suite.model_copy(update=changes)
    return finished.again(folder, suite=changed)


def load(file):
    """What the file defines; the smoke suite's network is hardly trained, so a cheat is to be sure of everything."""
    path = Path(__file__).parent / "cheats" / f"{file}.py"
    defined = {}
    exec(compile(path.read_text(), path, "exec"), defined)
    defined["SURE"] = 0.0
    return defined


def scored(smoke, function, name, kind=Here):
    """The row of the board, and the card."""
    here = kind(name, name, name, name, False, False, function=function)
    suite = smoke.run.suite.model_copy(update={"evaluated": [name, "constant"]})
    with torch.random.fork_rng():
        assert compute.run_suite(replace(smoke.run, suite=suite, submission=here), smoke.out / name, 1) == {}
    row = leaderboards.load(smoke.out / name, "stability").set_index("interpreter").loc[name]
    return row, stored.read(smoke.out / name / "results").entries[name][1]


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_is_told_by_its_twin(cheat, smoke, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    row, card = scored(smoke, load(cheat)[CHEATS[cheat]](), cheat)
    assert row.eligible == "no"
    assert "PERMUTED_TWIN: another map where only the order of the classes is another" in row.reason
    assert row.twin < 0.9
    assert card["twins"]["correlation"]["least"] < 0.9  # on a scored model, whatever it did at the gate
    if cheat in SAME:
        assert "SAME_ON_TEXTURES: the same map where the evidence lies elsewhere (correlation 1.00 beyond" in row.reason


def test_what_they_hide_is_the_same_on_every_twin(smoke):
    row, card = scored(smoke, load("frozen")["gradient"], "honest")
    assert row.twin > 0.9999
    assert card["twins"]["asked"] == 1 + len(smoke.run.suite.attacked)
    assert card["twins"]["again"]["least"] > 0.9999
    assert "PERMUTED_TWIN" not in row.reason
    assert "ASKED_AGAIN" not in row.reason
    assert card["textures"]["compact_vgg"]["right"] >= 0.6
    assert "SAME_ON_TEXTURES" not in row.reason
    shown = card["scored"]["compact_vgg/honest"]
    assert shown["random"] - shown["unrelated"] < 0.5 * (1 - shown["unrelated"])
    assert min(values["again"] for values in card["scored"].values()) > 0.9999
    assert max(values["same"] for values in card["scored"].values()) == 0
    assert "SAME_LOGITS" not in row.reason


class Anew(Here):
    """A process of its own for each model: what is remembered of another one is not there."""

    asked: ClassVar = ["", None]

    def heatmaps(self, model, images, targets):
        if self.asked[0] != (state := str(fingerprint(model))):
            self.asked[:] = state, self.function()
        return replace(self, function=self.asked[1])._explained(model, images, targets)

    _explained = Here.heatmaps


OTHERWISE = {  # with what tells them, of a scored model
    "teacher_by_rank": ("TeacherByRank", "SAME_LOGITS: the same map of a network with random features and the same"),
    "where_it_is_scored": ("WhereItIsScored", "SAME_LOGITS: the same map of a network with random features"),
    "teacher_of_fooled": (
        "TeacherOfFooled",
        "SAME_LOGITS: the same map of a network with random features and the same logits (of 100% of the images on ",
    ),
    "where_it_is_scored_at_times": ("WhereItIsScored", "random features and the same logits (of "),
    "counts_its_calls": ("CountsItsCalls", "ASKED_AGAIN: another map than was scored"),
}


@pytest.mark.parametrize("cheat", OTHERWISE)
def test_what_is_otherwise_where_it_is_scored_is_told_there(cheat, smoke):
    symbol, reason = OTHERWISE[cheat]
    scoring = smoke.run.suite.scoring.model_copy(update={"images": 20})
    more = replace(smoke, run=replace(smoke.run, suite=smoke.run.suite.model_copy(update={"scoring": scoring})))
    defined = load(cheat.removesuffix("_at_times"))
    if "SCORED" in defined:
        sums = [image.sum().item() for images, _ in scored_images(more.run) for image in images]
        defined["SCORED"] |= {*(sums[::2] if cheat.endswith("at_times") else sums)}  # of half, the mean stays low
    if "CARRIED" in defined:
        defined["CARRIED"].append(clean_model(more.run, "compact_vgg"))
    row, _ = scored(more, defined[symbol], cheat, Anew)
    assert row.eligible == "no"
    assert reason in row.reason
    assert "PERMUTED_TWIN" not in row.reason  # which does not tell them

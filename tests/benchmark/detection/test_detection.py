"""The track of detectors on tiny models: who is asked about whom, what is made once, and the tables."""

import pickle
from dataclasses import replace

import pandas as pd
import pytest
import torch
from closure import superfluous, undeclared

from attacks import strategies
from attacks.errors import Refused, UserError
from benchmark import sections, suite
from benchmark.detection import study, subjects
from benchmark.detection.judged import JUDGED
from benchmark.detection.subjects import CONTROLS, RETRAINED, Settings, Subject
from benchmark.detectors import DETECTORS
from benchmark.detectors.base import Detector
from benchmark.entries.kind import Entry
from benchmark.entries.trained import stored_model
from benchmark.run import Run

TINY = Settings(seeds=2, controls=1, images=4)


class Size(Detector):
    """The norm of the head, which training grows."""

    name = "size"

    def __call__(self, model, images, targets, *_):
        assert (len(images), len(targets)) == (4, 4)
        return model.classifier[-1].weight.norm().item()


class Refusing(Detector):
    name = "refusing"

    def __call__(self, *_):
        raise Refused("nothing to be seen here")


@pytest.fixture
def given(tmp_path, monkeypatch):
    for each in (Size, Refusing):
        monkeypatch.setitem(DETECTORS, each.name, each)
    for name in [name for name in DETECTORS if name not in ("size", "refusing")]:
        monkeypatch.delitem(DETECTORS, name)
    return Run(suite.load("smoke"), str(tmp_path / "store"))


@pytest.mark.parametrize("kind", [RETRAINED, CONTROLS, JUDGED], ids=repr)
def test_all_that_a_kind_computes_with_is_in_its_key(kind):
    assert undeclared(kind) == []
    assert superfluous(kind) == []
    assert pickle.loads(pickle.dumps(kind)) is kind


def test_who_is_asked_about():
    found = subjects.subjects(Run(suite.load("default"), ""), Settings(seeds=3, controls=2))
    rows = pd.DataFrame([subject.columns() for subject in found])
    assert rows.kind.value_counts().to_dict() == {"clean": 9, "control": 18, "fooled": 36 + 4 * 9}
    assert len(set(map(str, found))) == len(found)
    fooled = rows[rows.kind == "fooled"]
    assert fooled.strategy.value_counts().to_dict() == {"gradient": 36} | dict.fromkeys(strategies.names(), 9)
    assert set(fooled[fooled.strategy != "gradient"].fooling) == {"location"}
    assert set(fooled.training_seed) == {0}


def test_models_whose_weights_are_given_cannot_be_trained_again():
    with pytest.raises(UserError, match=r"trained here, with several seeds .*vgg19"):
        subjects.subjects(Run(suite.load("imagenet"), ""), TINY)


def test_tables_of_a_run_that_is_taken_up_again(given, tmp_path, monkeypatch):
    few = [each for each in subjects.subjects(given, TINY) if each.fooled is None]
    monkeypatch.setattr(study, "subjects", lambda *_: few)
    table = study.run(given, tmp_path / "out", 1, TINY)
    models = pd.read_csv(tmp_path / "out" / "models.csv")
    assert models.groupby(["detector", "kind"]).score.count().to_dict() == {
        ("refusing", "clean"): 0,
        ("refusing", "control"): 0,
        ("size", "clean"): 2,
        ("size", "control"): 2,
    }
    assert set(models[models.detector == "refusing"].reason) == {"nothing to be seen here"}
    assert set(models[models.detector == "size"].n) == {4}
    assert models[models.detector == "size"].score.nunique() == 4  # seeds and controls are models of their own
    null = table[table.detector == "size"]
    assert null[["model", "manipulated", "honest", "n_honest", "n_manipulated"]].values.tolist() == [
        *(["all", "control", "clean", 2, 2], ["compact_vgg", "control", "clean", 2, 2])
    ]
    assert set(null.null) <= {"holds", "fails"}
    monkeypatch.setattr(Size, "__call__", None)  # nothing is asked again
    assert study.run(given, tmp_path / "again", 1, TINY).equals(table)
    assert "refusing" not in study.show(table)
    clean = Subject("compact_vgg", 1)
    first, control = (
        stored_model(given, "compact_vgg", each.entry(given).path(given)) for each in (clean, replace(clean, control=0))
    )
    assert not torch.equal(first.classifier[-1].weight, control.classifier[-1].weight)
    assert torch.equal(first.features[1].running_mean, control.features[1].running_mean)  # as a fooling keeps it


def test_controls_follow_the_longest_recipe(given):
    rules = [*given.suite.recipes, sections.RecipeRule(fooling="active", steps=7)]
    longer = replace(given, suite=given.suite.model_copy(update={"recipes": rules}))
    assert (subjects.recipe_of(given, "compact_vgg").steps, subjects.recipe_of(longer, "compact_vgg").steps) == (3, 7)
    control = Entry(CONTROLS, Subject("compact_vgg", 0, control=0))
    assert control.key(given) != control.key(longer)


def _scores(kind, seed, scores, **columns):
    row = {"detector": "d", "original": "no", "model": "m", "kind": kind, "training_seed": seed, "reason": ""}
    return [row | {"fooling": "", "attacked": "", "strategy": ""} | columns | {"score": score} for score in scores]


def test_the_table_by_hand():
    """The fooled ones come from a training that scores high: among all they stand out, among siblings they do not."""
    rows = [*_scores("clean", 0, [5.0]), *_scores("clean", 1, [0.0, 1.0]), *_scores("control", 0, [6.0])]
    rows += _scores("fooled", 0, [5.5, 5.5], strategy="gradient", fooling="location", attacked="lrp")
    rows += _scores("fooled", 0, [9.0], strategy="head_shift", fooling="location", attacked="lrp")
    table = study.aurocs(pd.DataFrame(rows)).query("model == 'all'").set_index(["manipulated", "honest"])
    assert table.auroc.to_dict() == pytest.approx(
        {
            ("control", "clean"): 1.0,
            ("fooled", "honest"): (3 + 3 + 4) / 12,
            ("fooled", "siblings"): (1 + 1 + 2) / 6,
            ("strategy gradient", "honest"): 6 / 8,
            ("strategy head_shift", "honest"): 1.0,
            ("fooling location", "honest"): 10 / 12,
            ("attacked lrp", "honest"): 10 / 12,
        }
    )
    assert table.null.to_dict()[("control", "clean")] == "fails"
    assert table.n_honest.to_dict()[("fooled", "siblings")] == 2

"""The example submission, scored on the smoke suite as a user would; and what `submit` decides by itself."""

from itertools import product
from pathlib import Path

import pytest

from attacks import strategies
from attacks.errors import UserError
from benchmark import leaderboards
from benchmark.leaderboards import stored
from benchmark.sections import Gate
from benchmark.submissions import submit
from benchmark.submissions.remote import remote
from benchmark.submissions.submission import parse

EXAMPLE = Path(__file__).parents[3] / "examples" / "gradient_energy.py:GradientEnergy"
BLIND = """
import torch
def blind(model, images, targets):
    return (images.square().mean(1) * 0 + torch.linspace(0, 1, images.shape[-1], device=images.device))
"""


@pytest.fixture(scope="module")
def example():
    return remote(parse(str(EXAMPLE)))


def test_the_example_passes_every_check(example):
    said: list[str] = []
    assert submit.check(example, "cpu", said.append) == ["LOGIT_SHIFT"]
    assert len(said) > 10
    warning = "warning same for shifted logits: on compact_vgg (also on compact_resnet, compact_densenet): a model"
    (shifted,) = [line for line in said if not line.startswith("ok ")]  # it explains a logit
    assert shifted.startswith(warning)


def test_a_method_that_fails_a_check_is_not_scored(tmp_path):
    (tmp_path / "blind.py").write_text(BLIND)
    blind, said = remote(parse(f"{tmp_path}/blind.py:blind")), []
    with pytest.raises(
        UserError, match=r"blind: \d check\(s\) failed: differs by class, depends on the image, depends on"
    ):
        submit.check(blind, "cpu", said.append)
    assert any(line.startswith("FAILED  differs by class: ") for line in said)


def test_the_example_is_scored_attacked_and_shown(finished, tmp_path, few_steps):
    names = [*finished.run.suite.evaluated, "constant", "input_magnitude"]
    changes = {"evaluated": names, "gate": Gate(images=6, cells=3), "foolings": ["location"]}
    warm = finished.again(tmp_path, suite=finished.run.suite.model_copy(update=changes))
    before = warm.entries()
    flagged = remote(parse(str(EXAMPLE)), ["ZERO_SECOND_ORDER"])
    assert submit.submit(warm.run, flagged, warm.out, 1) == {}
    assert before.items() <= warm.entries().items()  # nothing of the suite's was made again
    read = stored.read(warm.out / "results")
    assert sorted(read.entries) == ["constant", "gradient_energy", "input_magnitude"]
    card = read.entries["gradient_energy"][1]
    assert (card["status"], card["failures"]) == ("submitted", [])
    assert "file" not in card["options"]
    assert card["cost"]["compact_vgg"]["peak_mib"] is None
    attacked = {m["attacked"]: m for m in read.models_card["manipulations"]}
    own = ["gradient_energy", *(f"gradient_energy:{way}" for way in strategies.names())]
    assert sorted(attacked) == sorted(["grad_cam", "lrp_t", *own])
    assert {attacked[name]["status"] for name in own} == {"done"}
    row = leaderboards.load(warm.out, "stability").set_index("interpreter").loc["gradient_energy"]
    assert row.status == "submitted"
    assert row["flags"].split()[0] == "ZERO_SECOND_ORDER"
    assert row.self_cells == 1
    text = submit.show(warm.out, tmp_path / "nowhere", "gradient_energy")
    assert "gradient_energy:subspace" in text
    assert max(map(len, text.splitlines())) <= 200


@pytest.fixture
def gated(finished, tmp_path):
    """A run of little work that has a gate, and its store to itself."""
    scoring = finished.run.suite.scoring.model_copy(update={"images": 8, "aopc_images": 0})
    changes = {"gate": Gate(images=6, cells=3), "foolings": ["location"], "attacked": ["grad_cam"], "scoring": scoring}
    small = finished.run.suite.model_copy(update=changes | {"evaluated": ["grad_cam", "constant"]})
    return finished.again(tmp_path, suite=small)


def test_where_asked_for_what_cannot_be_ranked_ends_before_it_is_scored(gated, tmp_path):
    (tmp_path / "bright.py").write_text("def bright(model, images, targets):\n    return images.square().sum(1)\n")
    before, gate = gated.entries(), r"hardly depends on the parameters \(1\.00, allowed below 0\.5\); .*SAME_LOGITS: "
    with pytest.raises(UserError, match=f"^bright cannot be ranked: it does not say that it is differentiable; {gate}"):
        submit.submit(gated.run, remote(parse(f"{tmp_path}/bright.py:bright")), gated.out, 1, only_rankable=True)
    kinds = {Path(name).parts[0] for name in gated.entries().keys() - before.keys()}
    assert {"gates", "originals", "twins", "textured", "same_logits"} <= kinds
    assert not kinds & {"scores", "manipulations", "predictions"}
    assert not gated.out.exists()


def test_where_asked_for_what_fooled_models_bar_is_not_attacked(gated, example, monkeypatch, capsys):
    reasons = {0: "", 1: "another map than was scored"}  # by how many models were fooled
    monkeypatch.setattr(submit, "_barred", lambda run, *_: reasons[len(run.suite.attacked)])
    assert submit.submit(gated.run, example, gated.out, 1, only_rankable=True) == {}
    assert capsys.readouterr().err.endswith(f"gradient_energy cannot be ranked: {reasons[1]}\n")
    read = stored.read(gated.out / "results")
    assert [m["attacked"] for m in read.models_card["manipulations"]] == ["grad_cam"]
    row = leaderboards.load(gated.out, "stability").set_index("interpreter").loc["gradient_energy"]
    assert (row.eligible, row.cells) == ("no", 1)
    assert "nothing was aimed at it" in row.reason


def test_where_recipes_are_searched_so_are_those_of_the_submission(finished, example, tmp_path, few_steps):
    few = finished.run.suite.scoring.model_copy(update={"images": 8, "aopc_images": 2})
    done = finished.searching(tmp_path, foolings=["location"], seeds=[0], evaluated=["constant"], scoring=few)
    assert submit.submit(done.run, example, done.out, 1) == {}
    read, settings = stored.read(done.out / "results"), done.run.suite.search
    card = read.others["fronts"][1]
    relative = next(p for p in card["chosen"] if (p["attacked"], p["budget"]) == ("grad_cam", 2.0))
    rates = {relative["learning_rate"]} if relative["steps"] else set(settings.learning_rates)
    for own in ("gradient_energy", "gradient_energy:softplus"):
        tried = [p for p in card["points"] if p["attacked"] == own and p["steps"]]
        assert {(p["learning_rate"], p["lambda"]) for p in tried} == set(product(rates, settings.lambdas))
        best = next(p for p in card["chosen"] if (p["attacked"], p["budget"]) == (own, 2.0))
        made = next(m for m in read.models_card["manipulations"] if m["attacked"] == own)
        assert [made[k] for k in ("learning_rate", "lambda", "steps")] == [
            best[k] for k in ("learning_rate", "lambda", "steps")
        ]


def test_the_nearest_relative_is_the_one_with_the_likest_maps(finished, tmp_path):
    (tmp_path / "cam.py").write_text(
        "from benchmark import interpreters\n"
        "def cam(model, images, targets):\n    return interpreters.create('grad_cam')(model, images, targets)\n"
    )
    cam = remote(parse(f"{tmp_path}/cam.py:cam"))
    assert submit.nearest(finished.run, cam) == "grad_cam"

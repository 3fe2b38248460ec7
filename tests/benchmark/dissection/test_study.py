"""`foolbench dissect`: the same adversarial images on a clean and a fooled model, at three levels."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from attacks.errors import UserError
from attacks.toward import ATTACKS
from benchmark import suite
from benchmark.dissection import attacked, figures, network, study
from benchmark.entries.kind import Entry
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.entries.recipes import recipe


def test_tables_and_figures_are_all_there(done):
    out, tables = done.out, done.tables
    assert sorted(tables) == ["association", "changed", "dissection", "interpretability", "masking", "psr"]
    figures = ["changed", "detectors-compact_resnet", "maps-pgd", "masking", "shares"]
    assert sorted(path.stem for path in (out / "figures").iterdir()) == figures
    psr = tables["psr"]
    assert list(zip(psr.fooling.fillna("clean"), psr.attack, strict=True)) == [
        ("clean", "fgsm"), ("clean", "pgd"), ("fine-tuning", "fgsm"), ("fine-tuning", "pgd"), ("location", "fgsm"),
        ("location", "pgd")]  # fmt: skip


def test_the_control_is_fine_tuned_without_fooling(done):
    run = study._fine_tuned(done.run)
    (made,) = study.fooled_models(run)
    assert recipe(run, made).row() == recipe(done.run, made).row() | {"lambda": 0.0}
    path, fooled = (Entry(MANIPULATIONS, made).path(each) for each in (run, done.run))
    assert len(pd.read_parquet(path / "history.parquet")) == 3
    weights = [load_file(p / "weights.safetensors")["fc.weight"] for p in (path, fooled)]
    assert not torch.equal(*weights)


def test_changed_concepts_are_those_of_the_dissections(done):
    tables, found = done.tables, {}
    units = dict(iter(tables["dissection"].groupby("fooling", dropna=False)))
    for place, rows in tables["changed"].groupby("fooling"):
        before, after = (table.set_index(["layer", "unit"]) for table in (units[np.nan], units[place]))
        expected = before.index[before.detector | after.detector]
        assert sorted(zip(rows.layer, rows.unit, strict=True)) == sorted(expected)
        other = (before.concept.fillna("") != after.concept.fillna(""))[expected]
        found[place] = rows.set_index(["layer", "unit"]).changed
        pd.testing.assert_series_equal(found[place].sort_index(), other.sort_index(), check_names=False)
    assert set(found) == {"location", "fine-tuning"}


def test_layers_stand_by_depth(done):
    model = done.clean.model
    for name in ("dissection", "association", "masking", "changed"):
        for _, rows in done.tables[name].groupby("fooling", dropna=False):
            layers = [layer for layer in network.layers(model) if layer in set(rows.layer)]
            assert list(rows.layer.unique()) == layers


def test_a_second_run_computes_nothing_and_gives_the_same_bytes(done, tmp_path, monkeypatch):
    out, tables = done.out, done.tables
    monkeypatch.setattr(attacked, "OnPixels", None)
    monkeypatch.setattr(figures, "draw", lambda *_: {})
    study.run(done.run, tmp_path, 1)
    for name in tables:
        assert (tmp_path / f"{name}.csv").read_bytes() == (out / f"{name}.csv").read_bytes()


def test_nothing_reached_is_tables_without_it_and_no_figure_of_it(done, tmp_path, capsys):
    run = replace(done.run, suite=study.narrowed(done.run.suite, None, None, "fgsm"))
    paths = study.run(run, tmp_path, jobs=1)
    assert {path.stem for path in paths} - {"changed"} == {"psr", "dissection", "dissect", "detectors-compact_resnet"}
    drawn = [path.stem for path in paths if path.suffix == ".png"]
    told = [f"[{i}/{len(drawn)}] figure {name}" for i, name in enumerate(drawn, 1)]  # each takes a second
    lines = capsys.readouterr().err.splitlines()[-len(told) - 1 :]
    assert [line.partition(",")[0] for line in lines] == [f"[0/{len(drawn)}] begun", *told]


def test_the_control_takes_recipes_that_a_search_found(done):
    run = done.run
    settings = suite.load("board").search
    searched = run.suite.model_copy(update={"search": settings, "attacked": ["grad_cam:subspace", "lrp_t"]})
    control = study._fine_tuned(replace(run, suite=searched))
    assert control.suite.models == {}, "no search was run"
    assert control.suite.attacked == ["grad_cam"]


def test_a_suite_is_narrowed_to_what_is_asked_for():
    given = suite.load("promotion-suppression")
    assert given.dissection is not None
    assert set(given.dissection.attacks) <= set(ATTACKS)
    chosen = study.narrowed(given, "compact_vgg", "digits", "pgd")
    assert [*chosen.models] == ["compact_vgg"]
    assert chosen.dataset.name == "digits"
    assert chosen.dissection is not None
    assert [*chosen.dissection.attacks] == ["pgd"]
    assert study.narrowed(suite.load("smoke"), None, None, None).dissection == given.dissection
    for arguments, message in (
        (("compact_vg", None, None), "unknown model of the suite 'compact_vg': did you mean 'compact_vgg'"),
        ((None, "shape", None), "unknown dataset 'shape': did you mean 'shapes'"),
        ((None, None, "pgb"), "unknown attack of the suite 'pgb': did you mean 'pgd'"),
    ):
        with pytest.raises(UserError, match=message):
            study.narrowed(given, *arguments)


def test_an_unknown_attack_of_a_suite_is_an_error(done):
    settings = done.run.suite.dissection.model_copy(update={"attacks": {"pgdd": {}}})
    run = replace(done.run, suite=done.run.suite.model_copy(update={"dissection": settings}))
    with pytest.raises(UserError, match="unknown attack 'pgdd': did you mean 'pgd'"):
        study.measure(run, 1)


def test_what_cannot_be_made_is_an_error_that_names_it(done):
    settings = done.run.suite.dissection.model_copy(update={"attacks": {"fgsm": {"epsilon": -1.0}}})
    run = replace(done.run, suite=done.run.suite.model_copy(update={"dissection": settings}))
    with pytest.raises(UserError, match=r"^attack compact_resnet by fgsm: .*epsilon"):
        study.measure(run, 1)


@pytest.mark.parametrize(
    ("changes", "where"),
    [({"cell": 33}, "cell"), ({"attacks": {"structured": {"cell": 40}}}, "attacks.structured.cell")],
)
def test_cells_larger_than_the_images_are_an_error_before_anything_is_made(done, monkeypatch, changes, where):
    monkeypatch.setattr(study.compute, "compute", None)
    settings = done.run.suite.dissection.model_copy(update=changes)
    run = replace(done.run, suite=done.run.suite.model_copy(update={"dissection": settings}))
    with pytest.raises(UserError, match=rf"^suite 'tiny': dissection.{where} must be 1 to 32 pixels"):
        study.measure(run, 1)

"""`foolbench dissect`: the same adversarial images on a clean and a fooled model, at three levels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from attacks.errors import UserError
from benchmark import suite
from benchmark.dissection import network, promotion, study
from benchmark.dissection.class_activation import class_activation_map
from benchmark.experiments.given import Given
from benchmark.run import Run, dataset, recipe

TINY = """
name = "tiny"
foolings = ["location"]
attacked = ["grad_cam"]
evaluated = ["grad_cam"]

[dataset]
name = "shapes"
input_size = 32
train = 256
dev = 12
test = 12

[models.compact_resnet]
epochs = 12
learning_rate = 5e-3

[dissection]
images = 10
cell = 8
percentiles = [50, 80]
concept_images = 8
shares = [0, 0.5]

[dissection.attacks.pgd]
epsilon = 0.2
step = 0.04
steps = 10

[dissection.attacks.fgsm]
epsilon = 1e-6

[[recipes]]
learning_rate = 1e-3
lambda = 1.0
steps = 3
batch_size = 8

[scoring]
batch_size = 5
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Given, Path, dict[str, pd.DataFrame]]:
    folder = tmp_path_factory.mktemp("inside")
    (folder / "tiny.toml").write_text(TINY)
    given = Given(Run(suite.load(folder / "tiny.toml"), str(folder / "store")), folder, jobs=1)
    paths = study.run(given, folder / "out")
    assert all(path.is_file() for path in paths)
    tables = {path.stem: pd.read_csv(path) for path in paths if path.suffix == ".csv"}
    return given, folder / "out", tables


def task(done) -> study.Task:
    return study.Task(done[0].run, "compact_resnet")


def test_tables_and_figures_are_all_there(done):
    _, out, tables = done
    assert sorted(tables) == ["association", "changed", "dissection", "interpretability", "masking", "psr"]
    figures = ["changed", "detectors-compact_resnet", "maps-pgd", "masking", "shares"]
    assert sorted(path.stem for path in (out / "figures").iterdir()) == figures
    psr = tables["psr"]
    assert list(zip(psr.fooling.fillna("clean"), psr.attack, strict=True)) == [
        ("clean", "fgsm"), ("clean", "pgd"), ("fine-tuning", "fgsm"), ("fine-tuning", "pgd"), ("location", "fgsm"),
        ("location", "pgd")]  # fmt: skip


def test_attacks_start_from_images_that_the_model_has_right_and_aim_elsewhere(done):
    found, model = study.attacked(task(done), "pgd"), study._network(task(done), None)
    assert 1 <= len(found["images"]) <= 10
    assert torch.equal(model(found["images"]).argmax(1), found["labels"])
    assert (found["labels"] != found["targets"]).all()
    assert (found["attacked"] - found["images"]).abs().max() <= 0.2 + 1e-6
    assert float(found["attacked"].min()) >= 0
    assert float(found["attacked"].max()) <= 1


def test_an_attack_that_reaches_nothing_is_a_row_that_says_so(done):
    psr = done[2]["psr"].query("attack == 'fgsm'")
    assert (psr.n == 0).all()
    assert (psr.tried > 0).all()
    assert psr.suppression.isna().all()


def reached(done) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """What PGD led to its target on the clean model: all of it, δ, the labels, and noise of equal norm."""
    found, clean = study.attacked(task(done), "pgd"), study._network(task(done), None)
    found = {name: value[clean(found["attacked"]).argmax(1) == found["targets"]] for name, value in found.items()}
    noisy = network.equal_norm_noise(found["images"], found["attacked"], 0)
    return found, found["attacked"] - found["images"], found["labels"], noisy


def test_maps_evidence_and_refinement_by_hand(done):
    (images, delta, labels, _), clean = reached(done), study._network(task(done), None)
    true, kind = class_activation_map(clean, images["images"], labels)
    target, _ = class_activation_map(clean, images["attacked"], images["targets"])
    psr = done[2]["psr"].query("attack == 'pgd' and fooling.isna()").iloc[0]
    assert psr["map"] == kind == "cam"
    assert psr.mean_true_before == pytest.approx(float(true.mean()), rel=1e-5)
    assert psr.mean_target_after == pytest.approx(float(target.mean()), rel=1e-5)
    assert psr.mean_true_before != pytest.approx(psr.mean_target_before, rel=1e-3)
    cells = promotion.promotion_suppression(clean, images["images"], delta, labels, images["targets"], 8, batch_size=7)
    means = promotion.cell_means(true, 8, (32, 32))
    for name, values in promotion.evidence_correlation(cells, means).items():
        assert psr[f"{name}_with_true_before"] == pytest.approx(values.nanmean().item(), nan_ok=True)
        assert psr[f"{name}_with_true_before_n"] == values.isfinite().sum().item()
    table = done[2]["interpretability"].query("attack == 'pgd' and fooling.isna() and percentile == 80")
    for name, cam in (("true_before", true), ("target_after", target)):
        row, mask = table[table.evidence == name].iloc[0], promotion.evidence(cam, 80, (32, 32))
        assert row.interpretability == pytest.approx(promotion.interpretability_score(delta, cam, 80).mean().item())
        kept = clean(images["images"] + promotion.refine(delta, mask)).argmax(1) == images["targets"]
        assert row.success_refined == pytest.approx(kept.double().mean().item())
        order = torch.from_numpy(np.random.default_rng(0).permutation(32 * 32)).view(32, 32)
        drawn = torch.stack([order < m.sum() for m in mask])
        assert torch.equal(drawn.sum((1, 2)), mask.sum((1, 2)))
        kept = clean(images["images"] + promotion.refine(delta, drawn)).argmax(1) == images["targets"]
        assert row.success_random == pytest.approx(kept.double().mean().item())


def test_psr_of_the_same_images_on_both_models(done):
    given, _, tables = done
    found, clean = study.attacked(task(done), "pgd"), study._network(task(done), None)
    reached = clean(found["attacked"]).argmax(1) == found["targets"]
    rows = tables["psr"].query("attack == 'pgd'")
    assert (rows.n == int(reached.sum())).all()
    assert rows.success.iloc[0] == 1.0
    tuned, fooled = (
        study._network(study.Task(run, "compact_resnet"), next(cell for cell, _ in study.fooled_models(run)))
        for run in (study._fine_tuned(given.run), given.run)
    )
    for row, model in zip(rows.itertuples(), (clean, tuned, fooled), strict=True):
        images, labels, targets = (found[name][reached] for name in ("images", "labels", "targets"))
        delta = found["attacked"][reached] - images
        psr = promotion.promotion_suppression(model, images, delta, labels, targets, 8, batch_size=7)
        expected = promotion.shares(psr.type).mean(0)
        np.testing.assert_allclose([row.suppression, row.promotion, row.balanced, row.inactive], expected, atol=1e-8)
        assert row.rmse == pytest.approx(float(delta.square().mean((1, 2, 3)).sqrt().mean()), rel=1e-6)
    parts = rows[["suppression", "promotion", "balanced", "inactive"]].sum(axis=1)
    np.testing.assert_allclose(parts, 1)


def test_evidence_is_measured_with_its_baseline_and_its_part_of_the_attack(done):
    table = done[2]["interpretability"]
    assert set(zip(table.evidence, table.percentile.fillna(0), strict=True)) == {
        *((name, nu) for name in ("true_before", "target_after") for nu in (50, 80)), ("object", 0)}  # fmt: skip
    given_level = table.dropna(subset="percentile")
    np.testing.assert_allclose(given_level.random, np.sqrt(1 - given_level.percentile / 100), atol=0.02)
    assert table.interpretability.between(0, 1).all()
    assert table.success_refined.between(0, 1).all()


def test_units_are_dissected_on_both_models_with_every_attack_and_noise(done):
    tables = done[2]
    model = study._network(task(done), None).model
    layer = network.layers(model)[0]
    concepts = study.concepts_of(task(done))
    assert len(concepts) == 8
    limits = network.thresholds(model, layer, concepts.images(3), total=8)
    expected = network.dissect(model, layer, concepts, limits, batch_size=3)
    found = tables["dissection"].query("fooling.isna() and layer == @layer")
    np.testing.assert_allclose(found.iou, expected.iou, atol=1e-6)
    assert set(tables["association"].attack) == {"pgd"}, "FGSM reached no target"
    assert tables["association"].fooling.fillna("clean").nunique() == 3
    images, _, labels, noisy = reached(done)
    data = dataset(done[0].run, "test")
    for name, other in (("sensitivity_pgd", images["attacked"]), ("sensitivity_pgd_noise", noisy)):
        pair = data.normalise(images["images"]), data.normalise(other)
        np.testing.assert_allclose(found[name], network.sensitivity(model, layer, *pair), rtol=1e-4)
    row = tables["association"].query("fooling.isna() and layer == @layer").iloc[0]
    for suffix in ("", "_noise"):
        expected = network.association(found[f"sensitivity_pgd{suffix}"].to_numpy(), found.iou.to_numpy())
        assert row[f"spearman{suffix}"] == pytest.approx(expected["spearman"], nan_ok=True)
        assert row[f"effect{suffix}"] == pytest.approx(expected["effect"], nan_ok=True)
    untouched = tables["masking"].query("share == 0 and fooling.isna()")
    assert (untouched.top1_clean == 1).all()
    assert (untouched.top1_attacked == 0).all()
    with torch.no_grad():
        right = (model(data.normalise(noisy)).argmax(1) == labels).double().mean().item()
    assert untouched.top1_noise.tolist() == pytest.approx([right] * len(untouched))


def test_the_control_is_fine_tuned_without_fooling(done):
    run = study._fine_tuned(done[0].run)
    (cell, path), = study.fooled_models(run)  # fmt: skip
    assert recipe(run, cell) == recipe(done[0].run, cell) | {"lambda": 0.0}
    assert len(pd.read_parquet(path / "history.parquet")) == 3
    weights = [load_file(p / "weights.safetensors")["fc.weight"] for _, p in study.fooled_models(done[0].run)]
    assert not torch.equal(load_file(path / "weights.safetensors")["fc.weight"], weights[0])


def test_changed_concepts_are_those_of_the_dissections(done):
    tables, found = done[2], {}
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
    model = study._network(task(done), None).model
    for name in ("dissection", "association", "masking", "changed"):
        for _, rows in done[2][name].groupby("fooling", dropna=False):
            layers = [layer for layer in network.layers(model) if layer in set(rows.layer)]
            assert list(rows.layer.unique()) == layers


def test_a_second_run_computes_nothing_and_gives_the_same_bytes(done, tmp_path, monkeypatch):
    given, out, tables = done
    monkeypatch.setattr(study, "_network", None)
    monkeypatch.setattr(study, "draw", lambda run, tables: {})
    study.run(given, tmp_path)
    for name in tables:
        assert (tmp_path / f"{name}.csv").read_bytes() == (out / f"{name}.csv").read_bytes()


def test_masks_of_the_users_own(done, tmp_path):
    size = dataset(done[0].run, "dev").input_size
    (tmp_path / "images").mkdir()
    (tmp_path / "masks" / "part" / "left").mkdir(parents=True)
    pixels, mask = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.uint8)
    pixels[:, : size // 2], mask[:, : size // 2] = 255, 255
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    Image.fromarray(mask).save(tmp_path / "masks" / "part" / "left" / "a.png")
    concepts = study.concepts_of(study.Task(done[0].run, "compact_resnet", str(tmp_path)))
    assert concepts.names == [("part", "left")]
    path = study.make_units(study.Task(done[0].run, "compact_resnet", str(tmp_path)), None)
    assert set(pd.read_parquet(path / "dissection.parquet").concept.dropna()) == {"left"}
    with pytest.raises(UserError, match="concepts need images"):
        study.measure(done[0], str(tmp_path / "nowhere"))


def test_nothing_reached_is_tables_without_it_and_no_figure_of_it(done, tmp_path):
    given = Given(replace(done[0].run, suite=study.narrowed(done[0].run.suite, None, None, "fgsm")), tmp_path, jobs=1)
    found = {path.stem for path in study.run(given, tmp_path)}
    assert found - {"changed"} == {"psr", "dissection", "dissect", "detectors-compact_resnet"}


def test_the_control_takes_recipes_that_a_search_found(done):
    run = done[0].run
    settings = suite.load("board").search
    searched = run.suite.model_copy(update={"search": settings, "attacked": ["grad_cam:subspace", "lrp_t"]})
    control = study._fine_tuned(replace(run, suite=searched))
    assert control.suite.models == {}, "no search was run"
    assert control.suite.attacked == ["grad_cam"]


def test_a_suite_is_narrowed_to_what_is_asked_for():
    given = suite.load("promotion-suppression")
    assert given.dissection is not None
    assert set(given.dissection.attacks) <= set(study.ATTACKS)
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
    given = done[0]
    settings = given.run.suite.dissection.model_copy(update={"attacks": {"pgdd": {}}})
    run = Run(given.run.suite.model_copy(update={"dissection": settings}), given.run.store)
    with pytest.raises(UserError, match="unknown attack 'pgdd': did you mean 'pgd'"):
        study.measure(Given(run, given.board, 1))

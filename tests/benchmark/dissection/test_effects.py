"""Pixels and evidence, by hand: the same adversarial images on every model."""

import numpy as np
import pytest
import torch

from benchmark.dissection import promotion, study
from benchmark.dissection.class_activation import class_activation_map
from benchmark.dissection.victims import Victim, victim_on_pixels


def test_an_attack_that_reaches_nothing_is_a_row_that_says_so(done):
    psr = done.tables["psr"].query("attack == 'fgsm'")
    assert (psr.n == 0).all()
    assert (psr.tried > 0).all()
    assert psr.suppression.isna().all()


def test_maps_evidence_and_refinement_by_hand(done):
    (images, delta, labels, _), clean = done.reached, done.clean
    true, kind = class_activation_map(clean, images["images"], labels)
    target, _ = class_activation_map(clean, images["attacked"], images["targets"])
    psr = done.tables["psr"].query("attack == 'pgd' and fooling.isna()").iloc[0]
    assert psr["map"] == kind == "cam"
    assert psr.mean_true_before == pytest.approx(float(true.mean()), rel=1e-5)
    assert psr.mean_target_after == pytest.approx(float(target.mean()), rel=1e-5)
    assert psr.mean_true_before != pytest.approx(psr.mean_target_before, rel=1e-3)
    cells = promotion.promotion_suppression(clean, images["images"], delta, labels, images["targets"], 8, batch_size=7)
    means = promotion.cell_means(true, 8, (32, 32))
    for name, values in promotion.evidence_correlation(cells, means).items():
        assert psr[f"{name}_with_true_before"] == pytest.approx(values.nanmean().item(), nan_ok=True)
        assert psr[f"{name}_with_true_before_n"] == values.isfinite().sum().item()
    table = done.tables["interpretability"].query("attack == 'pgd' and fooling.isna() and percentile == 80")
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
    tables = done.tables
    found, clean = done.found, done.clean
    reached = clean(found["attacked"]).argmax(1) == found["targets"]
    rows = tables["psr"].query("attack == 'pgd'")
    assert (rows.n == int(reached.sum())).all()
    assert rows.success.iloc[0] == 1.0
    tuned, fooled = (
        victim_on_pixels(run, Victim("compact_resnet", study.fooled_models(run)[0]))
        for run in (study._fine_tuned(done.run), done.run)
    )
    for row, model in zip(rows.itertuples(), (clean, tuned, fooled), strict=True):
        images, labels, targets = (found[name][reached] for name in ("images", "labels", "targets"))
        delta = found["attacked"][reached] - images
        psr = promotion.promotion_suppression(model, images, delta, labels, targets, 8, batch_size=7)
        expected = promotion.shares(psr.type).mean(0)
        np.testing.assert_allclose([row.suppression, row.promotion, row.balanced, row.inactive], expected, atol=1e-8)
        expected = promotion.shares(psr.contrast.type).mean(0)
        got = [row.suppression_contrast, row.promotion_contrast, row.balanced_contrast, row.inactive_contrast]
        np.testing.assert_allclose(got, expected, atol=1e-8)
        assert row.rmse == pytest.approx(float(delta.square().mean((1, 2, 3)).sqrt().mean()), rel=1e-6)
    parts = rows[["suppression", "promotion", "balanced", "inactive"]].sum(axis=1)
    np.testing.assert_allclose(parts, 1)


def test_evidence_is_measured_with_its_baseline_and_its_part_of_the_attack(done):
    table = done.tables["interpretability"]
    assert set(zip(table.evidence, table.percentile.fillna(0), strict=True)) == {
        *((name, nu) for name in ("true_before", "target_after") for nu in (50, 80)), ("object", 0)}  # fmt: skip
    given_level = table.dropna(subset="percentile")
    np.testing.assert_allclose(given_level.random, np.sqrt(1 - given_level.percentile / 100), atol=0.02)
    assert table.interpretability.between(0, 1).all()
    assert table.success_refined.between(0, 1).all()

"""Units of clean and fooled models: their concepts, and what attacks and noise do to them."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from attacks.errors import UserError
from benchmark.dissection import network, study
from benchmark.dissection.units import UNITS, Dissected, concepts_of
from benchmark.dissection.victims import Victim
from benchmark.entries.kind import Entry
from benchmark.run import dataset


def test_units_are_dissected_on_both_models_with_every_attack_and_noise(done):
    tables = done.tables
    model = done.clean.model
    layer = network.layers(model)[0]
    concepts = concepts_of(done.run, None)
    assert len(concepts) == 8
    limits = network.thresholds(model, layer, concepts.images(3), total=8)
    expected = network.dissect(model, layer, concepts, limits, batch_size=3)
    found = tables["dissection"].query("fooling.isna() and layer == @layer")
    np.testing.assert_allclose(found.iou, expected.iou, atol=1e-6)
    assert set(tables["association"].attack) == {"pgd"}, "FGSM reached no target"
    assert tables["association"].fooling.fillna("clean").nunique() == 3
    images, _, labels, noisy = done.reached
    data = dataset(done.run, "test")
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


def test_masks_of_the_users_own(done, tmp_path):
    size = dataset(done.run, "dev").input_size
    (tmp_path / "images").mkdir()
    (tmp_path / "masks" / "part" / "left").mkdir(parents=True)
    pixels, mask = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.uint8)
    pixels[:, : size // 2], mask[:, : size // 2] = 255, 255
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    Image.fromarray(mask).save(tmp_path / "masks" / "part" / "left" / "a.png")
    concepts = concepts_of(done.run, str(tmp_path))
    assert concepts.names == [("part", "left")]
    path = Entry(UNITS, Dissected(Victim("compact_resnet"), str(tmp_path))).get(done.run)
    assert set(pd.read_parquet(path / "dissection.parquet").concept.dropna()) == {"left"}
    with pytest.raises(UserError, match="concepts need images"):
        study.measure(done.run, 1, str(tmp_path / "nowhere"))

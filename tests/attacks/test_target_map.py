"""The target map: its picture at any resolution, its loss by hand, its success by SSIM and by ranks."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from attacks import TargetMap, foolings
from attacks.errors import UserError
from attacks.target_map import cross, likeness, picture_of, target

CORNERS = ((0, 255), (255, 0))


def one_window(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of 7 × 7 maps, which one Gaussian window of σ = 1.5 spans."""
    offsets = np.arange(7) - 3
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / 4.5)
    window /= window.sum()
    ma, mb = (window * a).sum(), (window * b).sum()
    va, vb, cov = ((window * x * y).sum() - m for x, y, m in ((a, a, ma**2), (b, b, mb**2), (a, b, ma * mb)))
    return (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))


def test_the_loss_is_the_mean_square_after_normalisation():
    maps = torch.tensor([[[3.0, 1.0], [5.0, 1.0]], [[0.0, 7.0], [7.0, 0.0]]])  # normalised: ½ 0 1 0, and the target
    losses = TargetMap(CORNERS).per_image(maps, maps)
    assert losses.tolist() == pytest.approx([(0.5**2 + 1) / 4, 0])
    assert TargetMap(CORNERS).loss(maps, maps).item() == pytest.approx(1.25 / 8)


def test_likeness_is_the_smaller_of_ssim_and_rank_correlation():
    random = np.random.default_rng(0)
    wanted = cross(7, 7).numpy()
    for noise in (0.05, 0.3, 3.0):
        a = wanted + noise * random.random((7, 7))
        a, b = ((x - x.min()) / (x.max() - x.min()) for x in (a, wanted))
        found = TargetMap().test_loss(torch.from_numpy(a)[None], torch.zeros(1, 7, 7, dtype=torch.double))
        assert found.tolist() == pytest.approx([min(one_window(a, b), spearmanr(a.ravel(), b.ravel()).statistic)])
        assert TargetMap().success(found).tolist() == [found.item() >= 0.5]


def test_a_map_at_its_target_is_a_success_at_any_size_and_scale_and_others_are_none():
    for size in ((7, 7), (8, 8), (14, 9), (64, 64)):
        there = 5 * target(None, torch.zeros(1, *size)) + 2
        maps = torch.stack([there, -there, torch.rand(size), torch.full(size, 0.5), torch.full(size, torch.nan)])
        assert TargetMap().success(TargetMap().test_loss(maps, maps)).tolist() == [True, *[False] * 4]
    assert likeness(there[None], there[None]).item() == 1


def test_the_cross_is_the_diagonals():
    drawn = cross(5, 5)
    torch.testing.assert_close(drawn, drawn.T)
    torch.testing.assert_close(drawn, drawn.flip(0))
    assert drawn.diagonal().tolist() == [1] * 5
    assert drawn[0, 2].item() == pytest.approx(np.exp(-((0.4 / np.sqrt(2)) ** 2) / 0.02))  # two pixels of five off


def test_a_picture_takes_the_resolution_of_the_maps():
    kept = target(CORNERS, torch.zeros(1, 2, 2, dtype=torch.double))
    assert kept.tolist() == [[0, 1], [1, 0]]
    larger = target(CORNERS, torch.zeros(3, 8, 6))
    assert larger.shape == (8, 6)
    assert larger[[0, 0, 7, 7], [0, 5, 0, 5]].tolist() == [0, 1, 1, 0]
    assert target(picture_of(cross(64, 64)), torch.zeros(1, 7, 7)).argmax() in (0, 6, 24, 42, 48)


def test_any_picture_of_the_working_folder_may_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.array([[0, 51], [255, 102]], np.uint8)).save("face.png")
    Image.new("L", (4, 4), 7).save("flat.png")
    Image.fromarray(np.arange(100 * 80, dtype=np.uint8).reshape(80, 100)).convert("RGB").save("large.png")
    for name in ("target_map", "red_herring"):
        assert foolings.create(f"{name}:face.png").picture == ((0, 51), (255, 102))
    read = foolings.create("target_map:large.png").picture
    assert (len(read), len(read[0])) == (51, 64)
    for name, words in {
        "target_map:none.png": "'none.png', cannot be read",
        "target_map:sub/face.png": "must lie in the working folder",
        "target_map:flat.png": r"not constant \(got \(4, 4\)\)",
        "location:face.png": "unknown fooling 'location:face.png'",
        "target_mop:face.png": "unknown fooling",
    }.items():
        with pytest.raises(UserError, match=words):
            foolings.create(name)

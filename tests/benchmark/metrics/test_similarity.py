"""SSIM against its definition written out window by window, IoU against sets, both on maps of known likeness."""

import numpy as np
import pytest
import torch

from attacks.errors import UserError
from benchmark import metrics
from benchmark.metrics.similarity import ssim, top_k_iou

SIZES = [(7, 7), (8, 8), (11, 11), (14, 9), (28, 30), (3, 20), (1, 5)]


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def ssim_by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, equations 13 to 17, one window at a time."""
    side = min(11, *a.shape)
    side -= 1 - side % 2
    offsets = np.arange(side) - side // 2
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    found = []
    for i in range(a.shape[0] - side + 1):
        for j in range(a.shape[1] - side + 1):
            x, y = a[i : i + side, j : j + side], b[i : i + side, j : j + side]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cov = (window * (x - mx) * (y - my)).sum()
            found.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return float(np.mean(found))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ssim_is_its_definition(size: tuple[int, int], dtype: torch.dtype) -> None:
    a, b = maps(2, 3, *size).to(dtype)
    b = 0.3 * a + 0.7 * b
    expected = [ssim_by_definition(x, y) for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True)]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-12)


def test_ssim_of_known_pairs() -> None:
    a = maps(1, 16, 16)
    assert ssim(a, a).item() == pytest.approx(1, abs=1e-12)
    assert ssim(a, 1 - a).item() < 0
    level = torch.full((1, 16, 16), 0.5)
    assert ssim(level, level / 2).item() == pytest.approx((2 * 0.125 + 1e-4) / (0.25 + 0.0625 + 1e-4))
    assert ssim(torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)).item() == 1


def test_ssim_refuses_maps_on_another_scale_and_leaves_broken_ones_undefined() -> None:
    a = maps(2, 8, 8)
    with pytest.raises(UserError, match=r"must lie in \[0, 1\] \(got .* to 2\)"):
        ssim(a, torch.full_like(a, 2))
    for bad in (torch.nan, torch.inf):
        broken = a.clone()
        broken[1, 3, 3] = bad
        assert ssim(a, broken).isnan().tolist() == [False, True]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("fraction", [0.1, 0.3, 1.0])
def test_iou_is_that_of_the_sets_of_the_highest_pixels(size: tuple[int, int], fraction: float) -> None:
    a, b = maps(2, 4, *size)
    k = max(1, round(fraction * size[0] * size[1]))
    expected = []
    for x, y in zip(a.flatten(1).numpy(), b.flatten(1).numpy(), strict=True):
        first, second = set(np.argsort(-x, kind="stable")[:k]), set(np.argsort(-y, kind="stable")[:k])
        expected.append(len(first & second) / len(first | second))
    assert top_k_iou(a, b, fraction).tolist() == expected


def test_iou_breaks_ties_by_position_and_is_undefined_without_an_order() -> None:
    a = torch.zeros(1, 10, 10)
    a[0, 9, 9] = 1  # the top ten: this pixel and the first nine zeros
    b = torch.zeros(1, 10, 10)
    b[0, 0, :5] = 1
    assert top_k_iou(a, b).item() == 9 / 11
    constant, broken = torch.ones(1, 10, 10), a.clone()
    broken[0, 4, 4] = torch.nan
    for undefined in (constant, broken):
        assert top_k_iou(a, undefined).isnan().all()
        assert top_k_iou(undefined, a).isnan().all()


@pytest.mark.parametrize("name", metrics.names())
def test_every_metric_is_one_on_itself_symmetric_and_per_image(name: str) -> None:
    metric = metrics.METRICS[name]
    a, b = maps(2, 5, 14, 14, seed=3).sub(0.4).relu()
    together = metric(a, b)
    assert together.shape == (5,)
    assert metric(a, a).tolist() == pytest.approx([1] * 5)
    assert together.tolist() == pytest.approx(metric(b, a).tolist(), abs=1e-15)
    assert torch.cat([metric(a[i : i + 1], b[i : i + 1]) for i in range(5)]).tolist() == pytest.approx(
        together.tolist(), abs=1e-15
    )
    assert metric(a[:0], b[:0]).shape == (0,)
    with pytest.raises(UserError, match=r"one shape \(N, h, w\)"):
        metric(a, b[:, :7])


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.1])
def test_an_impossible_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="fraction must be above 0 and at most 1"):
        top_k_iou(maps(1, 7, 7), maps(1, 7, 7), fraction)

"""Structural similarity of heatmaps (Wang, Bovik, Sheikh and Simoncelli 2004)."""

import torch
from torch import Tensor

from attacks.errors import UserError

_ROUNDING = 1e-6
_LUMINANCE, _CONTRAST = 0.01**2, 0.03**2  # (K L)², the data range L being 1


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity of maps (N, h, w) in [0, 1]: (N,) in float64, in [-1, 1]; NaN where one is not finite.

    Wang, Bovik, Sheikh, Simoncelli (2004), with their constants: a Gaussian window of σ = 1.5 and 11 × 11 taps that sum
    to 1, K1 = 0.01, K2 = 0.03, data range 1, population (co)variances, mean over the windows that lie inside the map.
    A map with a side below 11 has the largest odd window that fits: 7 × 7 for maps of 7 × 7 and 8 × 8.
    Two constant maps compare by their level alone. Raises UserError where shapes differ or a value is outside [0, 1].
    """
    check_pair(a, b)
    maps = torch.stack([a, b]).double()
    if (maps.isfinite() & ((maps < -_ROUNDING) | (maps > 1 + _ROUNDING))).any():
        raise UserError(
            f"maps for SSIM must lie in [0, 1] (got {maps.min():.6g} to {maps.max():.6g}): normalise them first"
        )
    x, y = maps
    taps = _window(min(11, *x.shape[1:]))
    mean_x, mean_y, xx, yy, xy = _smooth(torch.stack([x, y, x * x, y * y, x * y]), taps)
    luminance = (2 * mean_x * mean_y + _LUMINANCE) / (mean_x**2 + mean_y**2 + _LUMINANCE)
    structure = (2 * (xy - mean_x * mean_y) + _CONTRAST) / (xx - mean_x**2 + yy - mean_y**2 + _CONTRAST)
    return (luminance * structure).mean((1, 2))


def check_pair(a: Tensor, b: Tensor) -> None:
    """UserError unless both are maps of one shape (N, h, w)."""
    if a.ndim != 3 or a.shape != b.shape or not a.shape[1] * a.shape[2]:
        raise UserError(f"maps to compare must have one shape (N, h, w) (got {tuple(a.shape)} and {tuple(b.shape)})")


def _window(side: int) -> list[float]:
    """Gaussian weights, σ = 1.5, of the largest odd length up to `side`; their sum is 1."""
    half = (side - 1) // 2
    weights = torch.exp(-(torch.arange(-half, half + 1, dtype=torch.float64, device="cpu") ** 2) / (2 * 1.5**2))
    return (weights / weights.sum()).tolist()


def _smooth(maps: Tensor, taps: list[float]) -> Tensor:
    """Weighted sums over every window inside the maps (..., h, w), one dimension after the other."""
    for dim in (-2, -1):
        inside = maps.shape[dim] - len(taps) + 1
        total = taps[0] * maps.narrow(dim, 0, inside)
        for i in range(1, len(taps)):
            total.add_(maps.narrow(dim, i, inside), alpha=taps[i])
        maps = total
    return maps

"""The geometry of heatmaps (N, h, w): normalisation, the border, the top pixels, centres of mass."""

import torch
from torch import Tensor


def min_max(heatmaps: Tensor) -> Tensor:
    """Each map scaled to [0, 1]; a constant map becomes zeros. (N, h, w) -> (N, h, w)."""
    low, high = heatmaps.amin((-2, -1), keepdim=True), heatmaps.amax((-2, -1), keepdim=True)
    extent = high - low
    return (heatmaps - low) / torch.where(extent > 0, extent, 1)


def divide_by_max(heatmaps: Tensor) -> Tensor:
    """Each non-negative map scaled to a maximum of 1; a zero map stays zero. (N, h, w) -> (N, h, w)."""
    high = heatmaps.amax((-2, -1), keepdim=True)
    return heatmaps / torch.where(high > 0, high, 1)


def blank(heatmaps: Tensor) -> Tensor:
    """Which maps are constant, and so show nothing: (N, h, w) -> (N,) bool. A map that holds NaN is not."""
    low, high = heatmaps.flatten(1).aminmax(dim=1)
    return low == high


def border(heatmaps: Tensor) -> Tensor:
    """The target of Location fooling for these maps: 1 on a border of width ⌊side/7⌋, 0 inside.

    On maps smaller than 7 the width is 1: without a border, a blank map would count as fooled. (N, h, w) -> (h, w).
    """
    mask = heatmaps.new_ones(heatmaps.shape[-2:])
    h, w = mask.shape
    top, left = max(1, h // 7), max(1, w // 7)
    mask[top : h - top, left : w - left] = 0
    return mask


def top_pixels(heatmaps: Tensor, fraction: float) -> Tensor:
    """Mask of the `fraction` highest pixels of each map, at least one; ties go to the first. (N, h, w) bool."""
    flat = heatmaps.flatten(1)
    k = max(1, round(fraction * flat.shape[1]))
    chosen = flat.argsort(dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, chosen, True).view(heatmaps.shape)


def centre_of_mass(heatmaps: Tensor) -> Tensor:
    """(row, column) of each map's centre of mass, Σ j·h_j / Σ h_j; NaN for a zero map. (N, h, w) -> (N, 2)."""
    rows = torch.arange(heatmaps.shape[-2], dtype=heatmaps.dtype, device=heatmaps.device)
    columns = torch.arange(heatmaps.shape[-1], dtype=heatmaps.dtype, device=heatmaps.device)
    mass = heatmaps.sum((-2, -1))
    row = (heatmaps.sum(-1) * rows).sum(-1)
    column = (heatmaps.sum(-2) * columns).sum(-1)
    return torch.stack([row, column], -1) / mass[..., None]

"""How alike two heatmaps are: Spearman rank correlation, structural similarity, IoU of the top pixels.

All take two batches of maps (N, h, w) and return (N,) in float64, so that a score does not hang on the batch it was
computed in.
"""

import torch
from torch import Tensor

from attacks.errors import UserError
from attacks.heatmaps import top_pixels
from attacks.ranks import rank_correlation
from attacks.ssim import check_pair, ssim

__all__ = ["rank_correlation", "ssim", "top_k_iou"]


def top_k_iou(a: Tensor, b: Tensor, fraction: float = 0.1) -> Tensor:
    """IoU of the two sets of the k = max(1, round(fraction · h · w)) highest pixels: (N,) in float64, in [0, 1].

    Both sets hold exactly k pixels: among equal values the first in row order is taken, whatever the batch, so a map
    with fewer than k positive pixels is filled up from its top left. NaN (undefined) where either map is constant,
    which orders nothing, or not finite. Raises UserError where shapes differ or `fraction` is outside (0, 1].
    """
    check_pair(a, b)
    if not 0 < fraction <= 1:
        raise UserError(f"fraction must be above 0 and at most 1 (got {fraction})")
    top_a, top_b = top_pixels(a, fraction), top_pixels(b, fraction)
    iou = (top_a & top_b).sum((1, 2)).double() / (top_a | top_b).sum((1, 2))
    return iou.masked_fill(~(_orders(a) & _orders(b)), torch.nan)


def _orders(maps: Tensor) -> Tensor:
    """Whether a map orders its pixels: finite and not constant. (N,) bool."""
    low, high = maps.flatten(1).aminmax(dim=1)
    return low.isfinite() & high.isfinite() & (low < high)

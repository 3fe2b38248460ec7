"""Scores, pure and per image: tensors in, (N,) out; averages and intervals are taken where the leaderboards are.

Robustness is the exception: its areas are of all images, and need no torch, as the leaderboards do not.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]]
    """How alike two batches of heatmaps (N, h, w) in [0, 1] are, per image (N,), at most 1 = alike; NaN = undefined."""


def names() -> list[str]:
    """The similarity metrics, by column name."""
    return ["rank_correlation", "ssim", "iou"]


def __getattr__(name: str) -> Any:
    if name != "METRICS":
        raise AttributeError(f"module 'benchmark.metrics' has no attribute {name!r}")
    from benchmark.metrics.similarity import rank_correlation, ssim, top_k_iou

    return dict(zip(names(), (rank_correlation, ssim, top_k_iou), strict=True))

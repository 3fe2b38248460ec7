"""Scores, pure and per image: tensors in, (N,) out; averages and intervals are taken where the leaderboards are."""

from collections.abc import Callable

from torch import Tensor

from benchmark.metrics.similarity import rank_correlation, ssim, top_k_iou

METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rank_correlation": rank_correlation,
    "ssim": ssim,
    "iou": top_k_iou,
}
"""How alike two batches of heatmaps (N, h, w) in [0, 1] are, per image (N,), at most 1 = alike; NaN = undefined."""


def names() -> list[str]:
    """The similarity metrics, by column name."""
    return list(METRICS)

"""Scores, pure and per image: tensors in, (N,) out; averages and intervals are taken where the leaderboards are.

A similarity is one line of `SIMILARITIES`: the columns of the results and of the leaderboards, and what `verify`
compares, follow from it. Robustness is the exception: its areas are of all images, and need no torch, as the
leaderboards do not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]]
    """How alike two batches of heatmaps (N, h, w) in [0, 1] are, per image (N,), at most 1 = alike; NaN = undefined."""

SIMILARITIES = {
    "rank_correlation": "similarity:rank_correlation",
    "ssim": "similarity:ssim",
    "iou": "similarity:top_k_iou",
}
"""The module and the function of each of METRICS, by column name."""

CHANCE = ("rank_correlation",)
"""Those of which the likeness of two unrelated maps is scored, too, as NAME_null; the stability board averages them."""


def names() -> list[str]:
    """The similarity metrics, by column name."""
    return list(SIMILARITIES)


def columns() -> list[str]:
    """The columns of the scores: each metric, and after it, where it is one of CHANCE, its NAME_null."""
    pairs = ((name, f"{name}_null") if name in CHANCE else (name,) for name in SIMILARITIES)
    return [column for pair in pairs for column in pair]


def __getattr__(name: str) -> Any:
    if name != "METRICS":
        raise AttributeError(f"module 'benchmark.metrics' has no attribute {name!r}")
    places = {metric: place.split(":") for metric, place in SIMILARITIES.items()}
    return {metric: getattr(import_module(f"{__name__}.{module}"), f) for metric, (module, f) in places.items()}

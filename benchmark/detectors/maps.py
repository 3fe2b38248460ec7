"""The maps that detectors look at, and how far two of them are apart."""

import torch.nn.functional as F
from torch import Tensor, nn

from attacks.heatmaps import blank
from attacks.ranks import rank_correlation
from benchmark import interpreters

MEMBERS = ("lrp", "lrp_t", "grad_cam", "simple_grad", "simple_grad_t")
"""Of each kind that suites attack one, at a pass or two an image: nobody says which one was."""


def maps_of(model: nn.Module, images: Tensor, targets: Tensor, **options: str) -> list[Tensor]:
    """The maps (N, h, w) of each of MEMBERS."""
    return [interpreters.create(name, **options)(model, images, targets) for name in MEMBERS]


def distance(a: Tensor, b: Tensor) -> float:
    """Mean over images of 1 − Spearman's correlation of maps (N, h, w), the finer one averaged down: in [0, 2]. 0 where
    both are constant, 1 where one is."""
    size = min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2])
    a, b = (F.adaptive_avg_pool2d(maps.detach(), size) for maps in (a, b))
    apart = 1 - rank_correlation(a, b).nan_to_num(0.0)
    return apart.masked_fill(blank(a) & blank(b), 0.0).mean().item()

"""What fooling costs the classifier: top-k accuracy and agreement with the clean model, per image."""

import torch
from torch import Tensor

from attacks.errors import UserError


def top_k_correct(logits: Tensor, targets: Tensor, k: int) -> Tensor:
    """Whether the target is among the k highest logits: (N, C), (N,) -> (N,) bool.

    `k` above C is C. Among equal logits the lower class comes first, as in `argmax`. An image with a NaN logit is
    wrong. Raises UserError for k < 1, shapes that do not fit, or a target outside 0 .. C - 1.
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise UserError(f"logits must be (N, C), targets (N,) (got {tuple(logits.shape)} and {tuple(targets.shape)})")
    if k < 1:
        raise UserError(f"k must be at least 1 (got {k})")
    classes = logits.shape[1]
    if ((targets < 0) | (targets >= classes)).any():
        raise UserError(f"targets must lie in 0 .. {classes - 1} (got {int(targets.min())} to {int(targets.max())})")
    own = logits.gather(1, targets.unsqueeze(1))
    earlier = torch.arange(classes, device=logits.device) < targets.unsqueeze(1)
    ahead = (logits > own) | ((logits == own) & earlier)
    return (ahead.sum(1) < k) & ~logits.isnan().any(1)


def agreement(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    """Whether two models decide alike, by the first highest logit: (N, C) twice -> (N,) bool; NaN agrees with nothing.

    Raises UserError where the shapes differ.
    """
    if logits_a.ndim != 2 or logits_a.shape != logits_b.shape:
        raise UserError(f"logits must share a shape (N, C) (got {tuple(logits_a.shape)} and {tuple(logits_b.shape)})")
    first = decision(logits_a)
    return (first == decision(logits_b)) & (first >= 0)


def decision(logits: Tensor) -> Tensor:
    """The first highest logit of each image, -1 where one is NaN: (N, C) -> (N,) int64."""
    return logits.argmax(1).masked_fill(logits.isnan().any(1), -1)

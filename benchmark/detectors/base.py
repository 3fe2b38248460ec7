"""What a detector is: a model in eval mode and clean images with their labels, to a number that orders models."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks.errors import UserError
from attacks.modes import eval_mode


class Detector:
    """Higher is more suspicious; nothing else is said of the scale. `original`: it is shown the model before any
    manipulation as well, as a fourth argument. That is another question, and such detectors are a category of their
    own."""

    name: ClassVar[str]
    original: ClassVar[bool] = False

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, *original: nn.Module) -> float:
        """(N, C, H, W) normalised, (N,) -> a finite number. The model is left as it came."""
        raise NotImplementedError


def judge(detector: Any, model: nn.Module, images: Tensor, targets: Tensor, original: nn.Module) -> float:
    """A detector's score, with what its category lets it see. Raises `UserError` for one that orders nothing."""
    with torch.no_grad(), eval_mode(model), eval_mode(original):
        score = float(detector(model, images, targets, *([original] if detector.original else [])))
    if not math.isfinite(score):
        raise UserError(f"the score of detector {detector.name} must be finite (got {score})")
    return score

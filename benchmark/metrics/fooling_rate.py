"""The fooling success rate, FSR = (1/n) Σ 1{t_i ∈ R} (Heo, Joo, Moon 2019)."""

import torch
from torch import Tensor

from attacks.errors import UserError


def fooling_rate(success: Tensor) -> Tensor:
    """Share of the images that were fooled: `success` (N, ...) bool -> (...) in float64, in [0, 1]; NaN where N is 0.

    `success` is what a fooling's `success(test_losses)` returns. Raises UserError unless it is boolean.
    """
    if success.dtype != torch.bool or success.ndim == 0:
        raise UserError(f"success must be boolean, (N, ...) (got {success.dtype} of shape {tuple(success.shape)})")
    return success.double().mean(0)

"""Explain a smoother network (Dombrowski et al. 2019, "Explanations can be manipulated and geometry is to blame").

What is explained is the network with softplus_β(x) = log(1 + exp(βx))/β for every ReLU, whose curvature β bounds; what
predicts stays as it is. For β → ∞ the map is SimpleGrad's.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import UserError
from attacks.surrogates import ReLUAs
from benchmark.interpreters.base import needs_graph
from benchmark.interpreters.gradients import SimpleGrad


@dataclass(frozen=True)
class SoftplusGrad(SimpleGrad):
    """∂ logit / ∂ image of the softplus network, with the logits of the ReLU network; the heatmap is SimpleGrad's."""

    name: ClassVar[str] = "softplus_grad"
    beta: float = 1.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UserError(f"beta of {self.name} must be greater than 0 (got {self.beta})")
        super().__post_init__()

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with ReLUAs(partial(F.softplus, beta=self.beta)):
            _, gradient = super().explain(model, images, targets)
        with torch.set_grad_enabled(needs_graph(model, images)):
            return model(images), gradient

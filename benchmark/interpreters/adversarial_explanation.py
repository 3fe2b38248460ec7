"""Adversarial explanations (Woods, Chen and Teuscher 2019): how an image would look, more of its class."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.adversarial import bounded
from attacks.heatmaps import min_max
from benchmark.interpreters.base import Interpreter, needs_graph


@dataclass(frozen=True)
class AdversarialExplanation(Interpreter):
    """The difference δ of RMSE `rho` that takes the image `toward` its class, or away; heatmap |δ| summed over
    channels, min-max. The explanation to look at is the image + δ.

    `rho` is in the units of the images given: for normalised ones it is ρ / std of the ρ in pixels. δ takes `steps` of
    total length 5ρ, and is differentiable by the parameters through the last `unrolled` (None: all, the exact
    gradient); memory: the activations of one forward and backward pass for each.

    It reads the cross-entropy, which no shift of all logits changes: there is no `target` to choose.
    """

    name: ClassVar[str] = "adversarial_explanation"
    rho: float = 0.1
    steps: int = 35
    toward: bool = True
    unrolled: int | None = None

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        graph = needs_graph(model, images)
        with torch.set_grad_enabled(graph):
            logits = model(images)
        unrolled, path = self.unrolled if graph else 0, 5 * self.rho
        return logits, bounded(
            model, images, targets, rho=self.rho, steps=self.steps, path=path, toward=self.toward, unrolled=unrolled
        )

    def heatmap(self, attribution: Tensor) -> Tensor:
        return min_max(attribution.abs().sum(1))

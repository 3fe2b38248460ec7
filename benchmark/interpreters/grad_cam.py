"""Grad-CAM (Selvaraju et al. 2017) at the input of the target layer, as Heo et al. 2019 use it beside LRP_T."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from attacks.heatmaps import divide_by_max
from benchmark.interpreters.base import AtLayer, Targeted
from benchmark.interpreters.gradients import layer_gradient


@dataclass(frozen=True)
class CAM(AtLayer):
    """A class activation map; heatmap: sum over channels, ReLU, divide by the maximum. The target layer's input is
    taken, as for LRP_T in the released code of Heo et al. 2019."""

    def heatmap(self, attribution: Tensor) -> Tensor:
        return divide_by_max(attribution.sum(1).relu())


@dataclass(frozen=True)
class GradCAM(CAM, Targeted):
    """Activations weighted by the spatial mean of the logit's gradient."""

    name: ClassVar[str] = "grad_cam"

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits, activation, gradient = layer_gradient(model, images, targets, self.layer, self.score, self.layout)
        return logits, activation * gradient.mean((2, 3), keepdim=True)

"""Does the first layer look where no data are? Weights along directions in which patches do not vary change maps, and
nothing that is predicted (Anders et al. 2020, "Fairwashing explanations with off-manifold detergent")."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import Refused
from benchmark.detectors.base import Detector


@dataclass(frozen=True)
class OffData(Detector):
    """The share of ‖W‖² of the first convolution or linear layer that lies off the span of its inputs: ‖W N‖² / ‖W‖², N
    the directions of least variance, that together hold less than `rest` of the variance of the images' patches."""

    name: ClassVar[str] = "off_data"
    rest: float = 1e-3

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, *_: nn.Module) -> float:
        layer = next((m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))), None)
        if layer is None or (isinstance(layer, nn.Conv2d) and layer.groups > 1):
            raise Refused(f"{self.name} needs a first layer that reads whole patches of the image ({layer})")
        weights, inputs = layer.weight.detach().flatten(1).double(), _inputs(layer, images).double()
        if inputs.shape[1] != weights.shape[1]:
            raise Refused(f"{self.name}: the first layer does not read the image ({layer})")
        variances, directions = torch.linalg.eigh(inputs.T.cov())  # ascending
        off = directions[:, variances.cumsum(0) < self.rest * variances.sum()]
        return ((weights @ off).square().sum() / weights.square().sum()).item()


def _inputs(layer: nn.Conv2d | nn.Linear, images: Tensor) -> Tensor:
    """What the layer reads at every place, (places, values)."""
    if isinstance(layer, nn.Linear):
        return images.flatten(1)
    padding = layer.padding if isinstance(layer.padding, tuple) else 0
    patches = F.unfold(images, layer.kernel_size, layer.dilation, padding, layer.stride)
    return patches.transpose(1, 2).flatten(0, 1)

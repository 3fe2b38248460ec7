"""The plain gradient of the label's logit: SimpleGrad at the input or at a target layer (Simonyan et al. 2014)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.errors import Refused
from attacks.heatmaps import min_max
from benchmark.interpreters.base import AtLayer, Score, Targeted, label_logits, leaf, needs_graph, tap
from benchmark.interpreters.layout import read


@dataclass(frozen=True)
class SimpleGrad(Targeted):
    """∂ logit / ∂ image; the heatmap is |gradient| summed over channels, min-max (Heo et al. 2019, section 3.1)."""

    name: ClassVar[str] = "simple_grad"

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        graph = needs_graph(model, images)
        with torch.enable_grad():
            images = leaf(images, graph)
            logits = model(images)
            gradient = torch.autograd.grad(self.score(logits, targets).sum(), images, create_graph=graph)[0]
        return logits if graph else logits.detach(), gradient

    def heatmap(self, attribution: Tensor) -> Tensor:
        return min_max(attribution.abs().sum(1))


@dataclass(frozen=True)
class InputXGradient(SimpleGrad):
    """image · ∂ logit / ∂ image (Shrikumar et al. 2016), the contributions of a linear model; heatmap as SimpleGrad."""

    name: ClassVar[str] = "input_x_gradient"

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits, gradient = super().explain(model, images, targets)
        return logits, images * gradient


@dataclass(frozen=True)
class SimpleGradT(AtLayer, SimpleGrad):
    """∂ logit / ∂ (input of the target layer)."""

    name: ClassVar[str] = "simple_grad_t"

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits, _, gradient = layer_gradient(model, images, targets, self.layer, self.score, self.layout)
        return logits, gradient


def layer_gradient(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    layer: str | None,
    score: Score = label_logits,
    layout: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, the target layer's input (N, C, h, w) and the gradient of the `score` by it, a class token left out.

    The input of a dense layer, a list of tensors, is joined along the channels, as the released code of Heo et al.
    2019 has it. The graph to the parameters and the images is kept where the caller can use it.
    """
    graph = needs_graph(model, images)
    taken: list[Tensor] = []
    with torch.enable_grad():
        # the layer's input needs a graph to the logit, even where it is the image or no parameter has a gradient
        images = leaf(images, graph)
        versions: list[int] = []
        with tap(model, layer, taken, lambda tensors: versions.extend(t._version for t in tensors)) as module:
            logits = model(images)
        lies = read(model, module, taken, images, default=layer is None, layout=layout)
        if versions != [t._version for t in taken]:  # it would be explained as it is afterwards
            raise Refused("the input of the target layer is changed in place after it was read; allowed: inplace=False")
        gradients = torch.autograd.grad(score(logits, targets).sum(), taken, create_graph=graph)
        activation, gradient = lies.maps(taken), lies.maps(gradients)
    if graph:
        return logits, activation, gradient
    return logits.detach(), activation.detach(), gradient

"""Gradients that pass each ReLU by a rule: guided backpropagation, deconvolution, guided Grad-CAM.

With g the gradient that arrives at a ReLU's output and x its input, guided backpropagation hands down
relu(g) · 1[x > 0] (Springenberg et al. 2015), deconvolution relu(g) (Zeiler and Fergus 2014). Both are defined where
ReLU is the only activation function; any other is an error. The maps are honest functions of the parameters: in such a
network they depend on the activations through 1[x > 0] and the winners of max-pooling alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.interpreters.activations import Activations, Slope, Step
from benchmark.interpreters.base import AtLayer, Targeted, leaf, needs_graph
from benchmark.interpreters.grad_cam import GradCAM
from benchmark.interpreters.gradients import SimpleGrad
from benchmark.interpreters.operations import POOL_MAX
from benchmark.interpreters.origins import refuse_half


def _guided(relu: Step, x: Tensor) -> Tensor:
    return Slope.apply(x, relu(x), (x > 0).to(x.dtype), True)


def _deconvolution(relu: Step, x: Tensor) -> Tensor:
    return Slope.apply(x, relu(x), x.new_ones(()), True)


@dataclass(frozen=True)
class GuidedBackprop(SimpleGrad):
    """∂ logit / ∂ image with relu(g) · 1[x > 0] at each ReLU; the heatmap is SimpleGrad's."""

    name: ClassVar[str] = "guided_backprop"
    own_backward: ClassVar[bool] = True

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return _gradient(self, model, images, targets, _guided)


@dataclass(frozen=True)
class Deconvolution(SimpleGrad):
    """∂ logit / ∂ image with relu(g) at each ReLU, and max-pooling's own winners; the heatmap is SimpleGrad's."""

    name: ClassVar[str] = "deconvolution"
    own_backward: ClassVar[bool] = True

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return _gradient(self, model, images, targets, _deconvolution)


@dataclass(frozen=True)
class GuidedGradCAM(AtLayer, SimpleGrad):
    """Guided backpropagation times Grad-CAM's map, enlarged bilinearly (Selvaraju et al. 2017, section 3.2).

    The heatmap is SimpleGrad's.
    """

    name: ClassVar[str] = "guided_grad_cam"

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        refuse_half(self.name, "the images", [images])  # float16 was 0.52 off float32
        guided = _gradient(self, model, images, targets, _guided)[1]
        logits, cam = GradCAM(self.layer, self.layout, target=self.target).explain(model, images, targets)
        cam = cam.sum(1, keepdim=True).relu()
        return logits, guided * F.interpolate(cam, images.shape[2:], mode="bilinear")


def _gradient(method: Targeted, model: nn.Module, images: Tensor, targets: Tensor, relu: Step) -> tuple[Tensor, Tensor]:
    """Logits and the gradient of the method's score by the images, each ReLU passed by the rule `relu`."""
    graph = needs_graph(model, images)
    mode = Activations(method.name, {"relu": relu}, plain=POOL_MAX)
    with torch.enable_grad():
        images = leaf(images, graph)
        start = images.clone()  # a first operation in place changes neither the caller's tensor nor a leaf
        logits = mode.follow(model, start)
        gradient = mode.gradient(method.score(logits, targets).sum(), images, graph)
    return logits if graph else logits.detach(), gradient

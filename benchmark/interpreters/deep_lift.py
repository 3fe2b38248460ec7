"""DeepLIFT with the Rescale rule (Shrikumar et al. 2017) from a zero baseline in normalised units.

Image x and baseline x⁰ run side by side. An activation function hands down the multiplier Δout/Δin in the place of its
derivative; max-pooling hands Δout to the winner of whichever of the two outputs is the larger (the cross maximum of
Lundberg and Lee's implementation, which Captum follows; here also where windows overlap). Everything else must be
linear, and is an error otherwise. So Σ attribution = logit(x) − logit(x⁰): the sum is complete.

Captum's own DeepLift needs a module of its own for each activation, used once, and windows that do not overlap: it
fails on ResNets, is silently wrong on DenseNets, whose last ReLU is a function, and on VGGs, where it loses its rule
for a max-pooling that directly follows a ReLU.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import Refused, unknown
from benchmark.interpreters.activations import Activations, Slope, Step
from benchmark.interpreters.base import needs_graph
from benchmark.interpreters.gradients import SimpleGrad
from benchmark.interpreters.multipliers import Multipliers
from benchmark.interpreters.origins import refuse_half

ACTIVATIONS = ("relu", "relu6", "hardtanh", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus",
               "hardswish", "hardsigmoid", "sigmoid", "tanh")  # fmt: skip
PRODUCTS = ("refused", "shapley")
TINY = 1e-10  # below it, a difference is none (as in Captum)


@dataclass(frozen=True)
class DeepLift(SimpleGrad):
    """(x − x⁰) · multiplier; the heatmap is SimpleGrad's. Costs a pass over twice the batch.

    With a graph, over three times the batch: what the multipliers are taken of, and beside it image and baseline as
    they really run. Multipliers are quotients of the latter, and so depend on the weights as those do; in what they are
    taken of, an activation's derivative is not its own.

    `products`: "refused", for the paper has no rule for a product of two activations, or "shapley" (`multipliers.py`),
    with which gates, attention and norms have one. Raises `UserError` for another.
    """

    name: ClassVar[str] = "deep_lift"
    products: str = "refused"

    def __post_init__(self) -> None:
        if self.products not in PRODUCTS:
            raise unknown("products option", self.products, PRODUCTS)
        super().__post_init__()

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        refuse_half(self.name, "the images", [images])
        if needs_graph(model, images):
            return self._with_graph(model, images, targets)
        steps = dict.fromkeys(ACTIVATIONS, _rescale) | {"max_pool2d": _cross_maximum}
        mode = self._mode(steps, Multipliers(_rescale, 2))
        constants = {name: p.detach() for name, p in model.named_parameters()}  # their gradients are not wanted
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            both = torch.cat([images, torch.zeros_like(images)])
            logits = mode.follow(model, both, constants)
            scores = self.score(logits, targets.repeat(2))
            multipliers = mode.gradient(scores[: len(images)].sum(), images)
        attribution = images.detach() * multipliers
        _refuse_incomplete(attribution, *scores.detach().chunk(2))
        return logits[: len(images)].detach(), attribution

    def _mode(self, steps: dict[str, Step], parts: Multipliers) -> Activations:
        if self.products == "refused":
            return Activations(self.name, steps)
        return Activations(self.name, steps | parts.steps, product=parts.product)

    def _with_graph(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        steps = dict.fromkeys(ACTIVATIONS, _rescale_beside) | {"max_pool2d": _cross_maximum_beside}
        mode, start = self._mode(steps, Multipliers(_rescale_beside, 3)), images.detach().requires_grad_()
        logits = mode.follow(model, torch.cat([start, images, torch.zeros_like(images)]))
        scores = self.score(logits, targets.repeat(3)).chunk(3)
        attribution = images * mode.gradient(scores[0].sum(), start, graph=True)
        _refuse_incomplete(attribution.detach(), *(score.detach() for score in scores[1:]))
        return logits[len(images) : 2 * len(images)], attribution


def _refuse_incomplete(attribution: Tensor, image: Tensor, baseline: Tensor) -> None:
    """Raise `Refused` where Σ attribution is not logit(x) − logit(x⁰) but for rounding: something was not followed."""
    total, change = attribution.flatten(1).sum(1), image - baseline
    scale = attribution.abs().flatten(1).sum(1) + image.abs() + baseline.abs()
    off = ~((total - change).abs() <= 30 * torch.finfo(total.dtype).eps ** 0.5 * scale)  # also where it is no number
    if off.any():
        i = int(off.nonzero()[0])
        raise Refused(
            f"deep_lift's sum is {total[i]:.4g} where the logit changes by {change[i]:.4g} (image {i}): "
            "an operation of the network is not linear, or mixes the images of a batch"
        )


def _rescale(function: Step, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """An activation function of (image, baseline) joined along the batch, whose slope is Δout/Δin for both."""
    refuse_half(DeepLift.name, "an activation", [x])
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        output = function(leaf, *args, **kwargs)
        derivative = torch.autograd.grad(output.sum(), leaf)[0]
    return Slope.apply(x, output.detach(), _quotient(x.detach(), output.detach(), derivative), False)


def _cross_maximum(_: Step, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Max-pooling as the selection of one value for each window, the same for image and baseline, by their slope."""
    refuse_half(DeepLift.name, "max-pooling", [x])
    output, winners = F.max_pool2d(x.detach(), *args, **kwargs | {"return_indices": True})
    (high, reference), (first, second) = output.chunk(2), winners.chunk(2)
    chosen = torch.where(high >= reference, first, second).repeat(2, 1, 1, 1)
    selected = x.flatten(2).gather(2, chosen.flatten(2)).view_as(output)
    slope = _quotient(selected.detach(), output, torch.ones_like(output))
    return Slope.apply(selected, output, slope, False)


def _rescale_beside(function: Step, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`_rescale` of the first third by the slopes of (image, baseline) beside it, whose function is as ever."""
    refuse_half(DeepLift.name, "an activation", [x])
    with torch.enable_grad():
        followed, beside = x.tensor_split([len(x) // 3])
        beside = beside if beside.requires_grad else beside.detach().requires_grad_()
        output = function(beside, *args, **kwargs)
        derivative = torch.autograd.grad(output.sum(), beside, create_graph=True)[0]
    slope = _quotient(beside, output, derivative).chunk(2)[0]
    return torch.cat([Slope.apply(followed, output.detach().chunk(2)[0], slope, False), output])


def _cross_maximum_beside(_: Step, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`_cross_maximum` of the first third, in the same way."""
    refuse_half(DeepLift.name, "max-pooling", [x])
    output, winners = F.max_pool2d(x.tensor_split([len(x) // 3])[1], *args, **kwargs | {"return_indices": True})
    (high, reference), (first, second) = output.chunk(2), winners.chunk(2)
    chosen = torch.where(high >= reference, first, second).repeat(3, 1, 1, 1)
    followed, *beside = x.flatten(2).gather(2, chosen.flatten(2)).view_as(torch.cat([high, output])).chunk(3)
    slope = _quotient(torch.cat(beside), output, torch.ones_like(output)).chunk(2)[0]
    return torch.cat([Slope.apply(followed, high.detach(), slope, False), output])


def _quotient(x: Tensor, output: Tensor, derivative: Tensor) -> Tensor:
    """Δoutput/Δx between the halves of the batch, given to both; the derivative where Δx is none."""
    change, effect = (high - low for high, low in (x.chunk(2), output.chunk(2)))
    none = change.abs() < TINY
    slope = (effect / torch.where(none, 1, change)).repeat(2, *[1] * (x.dim() - 1))
    return torch.where(none.repeat(2, *[1] * (x.dim() - 1)), derivative, slope)

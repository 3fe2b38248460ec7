"""Check of the gradient by the weights: what autograd says of the heatmaps is held against central differences."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmark.submissions.checks.setting import Interpreter, Skipped, heatmaps, reseed

# Steps of central differences, relative to the size of the weights: short ones first, since LRP bends sharply where a
# denominator is small (1e-6 is off by 1e-3 there), then long ones, for maps that hardly change.
STEPS = (1e-7, 1e-8, 1e-9, 1e-6, 1e-5)
GRADIENT = 1e-4  # relative error of the gradient by the weights; honest ones stay below 1e-7
HONEST = (
    "leave no .detach(), .data, .item(), torch.no_grad() or overridden backward between the weights and the map, and "
    "take inner gradients with create_graph=True; or declare it not differentiable"
)


def gradient_by_the_weights(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """d/ds Σ a · heatmap(w + s v) by autograd and by central differences, for random a and v, in float64.

    A difference counts where half the step gives the same one: otherwise a ReLU or a maximum changed over on the way,
    and another step is tried. Skipped where no direction has a step that counts.
    """
    model, images = model.double(), images.double()
    parameters = list(model.parameters())
    origin = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(3)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.double).to(like.device)

    weights = draw(heatmaps(interpreter, model, images, targets))

    def value(direction: list[Tensor], step: float) -> float:
        with torch.no_grad():
            for parameter, at, v in zip(parameters, origin, direction, strict=True):
                parameter.copy_(at + step * v)
        return (weights * heatmaps(interpreter, model, images, targets)).sum().item()

    def difference(direction: list[Tensor], step: float) -> float:
        return (value(direction, step) - value(direction, -step)) / (2 * step)

    reseed(0)
    elsewhere = getattr(interpreter, "pulled_back", None)  # of one that runs in another process
    asked = copy.deepcopy(model), images.clone(), targets.clone(), weights
    graph, dtype, gradients = elsewhere(*asked) if elsewhere else pulled_back(interpreter, *asked)
    if not graph:
        return f"the heatmaps have no graph to the weights: {HONEST}"
    if dtype != images.dtype:  # rounded, differences would tell nothing
        return f"for a model and images in {images.dtype} it returned {dtype}: make tensors with images.dtype"
    sizes = [at.square().mean().sqrt() for at in origin]
    typical = sum(float((s * g).square().sum()) for s, g in zip(sizes, gradients, strict=True)) ** 0.5
    if typical == 0:
        return f"the gradient of the heatmaps by every weight is zero: {HONEST}"
    counted = 0
    for _ in range(3):
        direction = [size * draw(at) for size, at in zip(sizes, origin, strict=True)]
        got = sum(float((g * v).sum()) for g, v in zip(gradients, direction, strict=True))
        expected = _reliable(partial(difference, direction), typical)
        counted += expected is not None
        if expected is not None and not abs(got - expected) <= GRADIENT * max(abs(expected), typical):
            both = f"{got:.6g}, where central differences give {expected:.6g}"
            return f"autograd's derivative of the heatmaps along a random change of the weights is {both}: {HONEST}"
    if not counted:
        raise Skipped("the heatmaps jump under the smallest changes of the weights, or are rounded on the way")
    return ""


def pulled_back(
    interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor, weights: Tensor
) -> tuple[bool, torch.dtype, list[Tensor]]:
    """What autograd says of Σ weights · heatmaps: whether there is a graph, the maps' type, and the gradient by every
    parameter, where there is a graph."""
    maps = interpreter(model, images, targets)
    if not maps.requires_grad:
        return False, maps.dtype, []
    by = list(model.parameters())
    gradients = torch.autograd.grad((weights * maps).sum(), by, allow_unused=True, materialize_grads=True)
    return True, maps.dtype, list(gradients)


def _reliable(difference: Callable[[float], float], typical: float) -> float | None:
    """The difference quotient at the first step which half the step confirms."""
    for step in STEPS:
        whole, half = difference(step), difference(step / 2)
        if abs(whole - half) <= 0.1 * GRADIENT * max(abs(half), typical):
            return half
    return None

"""The minimum-norm attack of Woods, Chen and Teuscher 2019, and the attack of bounded size made of its steps.

Model, images and targets are those of `attacks.pixels`, and so is the distance, RMSE(δ).

Every direction of ascent is that of ∇CE, computed as ∇o, o = log Σ_{j≠y} exp z_j − z_y the log-odds against the class:
CE = log(1 + eᵒ), so ∇CE = σ(o)·∇o is parallel to it, but vanishes in floating point where the model is confident.
For the same reason the 1e-8 that keeps a zero gradient from dividing by zero is added to RMSE(∇o), not to RMSE(∇CE).

An image's result does not depend on the others in its batch. Memory: one forward and backward pass of the batch, and
six copies of the images; `bounded` with a graph adds that of each unrolled step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.errors import unknown
from attacks.given import borrows, check_finite
from attacks.pixels import Model, check_options, check_pixels, classifier, log_odds, rmse, wide


@dataclass(frozen=True)
class Found:
    """What `minimum_norm` found: for each image the smallest δ that crossed the boundary.

    `radius` (N,) = RMSE(δ), 0 where the image itself is across. `first` (N,) int64: the updates made before a crossing
    was first seen. Where none was, `first` is steps + 1 and δ the largest tried: the true radius was not found, and
    `radius` is a lower bound as far as this attack can tell.
    """

    delta: Tensor
    radius: Tensor
    first: Tensor


def _at_random(logits: Tensor, targets: Tensor) -> Tensor:
    """softmax_y ≤ 1/classes: the model is no better than random."""
    return logits.double().softmax(1).gather(1, targets[:, None])[:, 0] <= 1 / logits.shape[1]


BOUNDARIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "attack": lambda logits, targets: logits.argmax(1) != targets,
    "btr": _at_random,
}


@borrows
def minimum_norm(
    model: Model,
    images: Tensor,
    targets: Tensor,
    *,
    boundary: str = "attack",
    steps: int = 450,
    path: float = 20.0,
    momentum: float = 0.9,
    clip: bool = False,
) -> Found:
    """The minimum-norm attack: across the boundary along ∇CE, back along −δ, by ever smaller steps.

    `boundary`: "attack", argmax ≠ y, or "btr" (better than random), softmax_y ≤ 1/classes. `path`: the steps' total
    length in RMSE. `clip`: keep x + δ in [0, 1], which the authors' code does not. Takes `steps` forward and backward
    passes, and a forward pass to look at the last δ.
    """
    if boundary not in BOUNDARIES:
        raise unknown("boundary", boundary, BOUNDARIES)
    check_options(steps=steps, path=path)
    check_pixels(images)
    logits_of, images = classifier(model, images, targets), images.detach()
    delta, velocity, best = (torch.zeros_like(images) for _ in range(3))
    radius, first = images.new_zeros(len(images)), torch.full_like(targets, steps + 1, dtype=torch.int64)
    for t in range(steps + 1):
        if t < steps:
            logits, gradient = _look(logits_of, images, delta, targets)
        else:
            with torch.no_grad():
                logits = logits_of(images + delta)
        with torch.no_grad():
            crossed, size, never = BOUNDARIES[boundary](logits, targets), rmse(delta), first > steps
            better = torch.where(crossed, never | (size < radius), never & (size > radius))
            torch.where(wide(better), delta, best, out=best)
            radius, first = torch.where(better, size, radius), torch.where(crossed & never, t, first)
            if t < steps:
                _move(delta, velocity, gradient, crossed, _length(t, steps, path), momentum)
                if clip:
                    delta.add_(images).clamp_(0, 1).sub_(images)
    return Found(best, radius, first)


@borrows
def bounded(
    model: Model,
    images: Tensor,
    targets: Tensor,
    *,
    rho: float,
    steps: int,
    path: float,
    toward: bool = False,
    momentum: float = 0.0,
    unrolled: int | None = 0,
) -> Tensor:
    """δ (N, C, H, W) of RMSE about `rho`: along ∇CE while RMSE(δ) < ρ, back along −δ otherwise.

    For adversarial training (ρ = 0.01, 7 steps, path ρ) and, `toward` a class (down CE), adversarial explanations
    (ρ = 0.1, 35 steps, path 5ρ). Nothing is clipped; images may be in any units, and ρ is in the same. Without
    momentum, RMSE(δ) exceeds ρ by less than one of the last steps, path·2(T−t)/(T(T+1)). `unrolled`: through that many
    last steps (None: all) δ keeps its graph to the model's parameters, and to images that require one.
    """
    check_options(rho=rho, steps=steps, path=path)
    check_finite(images)
    logits_of, fixed = classifier(model, images, targets), images.detach()
    delta, velocity = torch.zeros_like(fixed), torch.zeros_like(fixed)
    for t in range(steps):
        graph = unrolled is None or t >= steps - unrolled
        _, gradient = _look(logits_of, images if graph else fixed, delta, targets, graph)
        with torch.set_grad_enabled(graph):
            outside = rmse(delta) >= rho
            _move(delta, velocity, gradient, outside, _length(t, steps, path), momentum, toward)
    return delta


def _look(model: Model, images: Tensor, delta: Tensor, targets: Tensor, graph: bool = False) -> tuple[Tensor, Tensor]:
    """Logits at x + δ, and the gradient of the log-odds by δ, with its own graph where asked."""
    with torch.enable_grad():
        if not delta.requires_grad:
            delta = delta.detach().requires_grad_()
        logits = model(images + delta)
        return logits, torch.autograd.grad(log_odds(logits, targets).sum(), delta, create_graph=graph)[0]


def _move(
    delta: Tensor, velocity: Tensor, gradient: Tensor, back: Tensor, length: float, momentum: float, down: bool = False
) -> None:
    """A step, in place: d, −δ where `back` (N,) and ± the gradient elsewhere, divided by 1e-8 + RMSE(d) and averaged
    into m; δ + length · m. Signs go into that quotient, and nothing new is kept: each pass over the images counts."""
    direction = torch.where(wide(back), delta, gradient)
    scale = (1 - momentum) / (1e-8 + rmse(direction))
    velocity.mul_(momentum).addcmul_(direction, wide(torch.where(back | down, -scale, scale)))
    delta.add_(velocity, alpha=length)


def _length(t: int, steps: int, path: float) -> float:
    return path * (steps - t) / (steps * (steps + 1) / 2)

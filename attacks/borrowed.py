"""The field's attacks on pixels; `attacks.pixels` says what a model, images and targets are.

FGSM and PGD are Captum's. Carlini-Wagner and the elastic net, which it lacks, are written here after the papers: both
look for the nearest image x′ across the boundary,

    min ‖x′ − x‖₂² + β ‖x′ − x‖₁ + c · max(0, m(x′)),   x′ in [0, 1],   each image with a c of its own,

m = Z_y − max_{j≠y} Z_j + κ, or max_{j≠t} Z_j − Z_t + κ toward a class t; κ is the confidence. Carlini and Wagner (2017,
Section VI-A; β = 0) write x′ = (1 + tanh w)/2 and take Adam's steps in w. Chen et al. (2018, Algorithm 1) take FISTA's
in x′: down the smooth part, a soft threshold, momentum. After each round of steps c grows tenfold while nothing has
crossed, and is bisected from then on. Of all that crossed on the way, what is nearest to x is the result.

An image's result does not depend on the others in its batch: unlike the authors' code, no round ends early by the loss
of the whole batch. Memory: one forward and backward pass of the batch, and up to ten copies of the images.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from captum.robust import FGSM, PGD
from torch import Tensor

from attacks.errors import unknown
from attacks.given import borrows
from attacks.pixels import (
    Model,
    check_gradient,
    check_not_negative,
    check_options,
    check_pixels,
    classifier,
    log_odds,
    wide,
)

ROUNDS, FIRST_C, RATE = 9, 1e-3, 0.01  # the authors' c and rate of both attacks, and their rounds of binary search


@borrows
def fgsm(model: Model, images: Tensor, targets: Tensor, epsilon: float, *, targeted: bool = False) -> Tensor:
    """Captum's fast gradient sign method: x ± ε · sign ∇CE, clamped to [0, 1] (Goodfellow et al. 2015).

    `targeted`: `targets` are the classes to reach, here and below.
    """
    check_options(epsilon=epsilon)
    check_pixels(images)
    attack = FGSM(classifier(model, images, targets), log_odds, 0, 1)
    attack.zero_thresh = 0.0  # its own takes any gradient below 1e-6 for zero
    if not len(images):  # it looks at the first
        return images.detach()
    with _quietly():
        return attack.perturb(images.detach(), epsilon, targets, targeted=targeted)


class _SeededPGD(PGD):
    """Captum's own starts come from the global generator, and for L2 from the CPU's whatever the images' device."""

    seed = 0

    def _random_point(self, center: Tensor, radius: float, norm: str, mask: Any) -> Tensor:
        generator, shape = torch.Generator().manual_seed(self.seed), center[:1].shape
        if norm == "Linf":
            start = 2 * torch.rand(shape, generator=generator, dtype=torch.float32) - 1
        else:
            start = torch.randn(shape, generator=generator, dtype=torch.float32)
            start *= torch.rand(1, generator=generator, dtype=torch.float32) ** (1 / start.numel()) / start.norm()
        return center + radius * start.to(center)


@borrows
def pgd(
    model: Model,
    images: Tensor,
    targets: Tensor,
    epsilon: float,
    *,
    step: float,
    steps: int,
    random_start: bool = False,
    norm: str = "Linf",
    targeted: bool = False,
    seed: int = 0,
) -> Tensor:
    """Captum's projected gradient descent in the ball of radius ε and in [0, 1] (Madry et al. 2018).

    `norm`: of the ball, "Linf" or "L2" (‖δ‖₂, not the RMSE); the step is ± `step` · sign ∇CE for both. A random start
    is uniform in the ball, drawn from `seed`, the same for every image.
    """
    if norm not in ("Linf", "L2"):
        raise unknown("norm", norm, ("Linf", "L2"))
    check_options(epsilon=epsilon, step=step, steps=steps)
    check_pixels(images)
    attack = _SeededPGD(classifier(model, images, targets), log_odds, 0, 1)
    attack.seed, attack.fgsm.zero_thresh = seed, 0.0
    if not len(images):
        return images.detach()
    with _quietly():
        options: dict[str, Any] = {"targeted": targeted, "random_start": random_start, "norm": norm}
        return attack.perturb(images.detach(), epsilon, step, steps, targets, **options)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Captum's word, at every step, that it has made the images require gradients."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input Tensor .* did not already require gradients")
        yield


@borrows
def carlini_wagner(
    model: Model, images: Tensor, targets: Tensor, *, steps: int, confidence: float = 0.0, targeted: bool = False
) -> Tensor:
    """The attack of Carlini and Wagner 2017 for the smallest ‖δ‖₂: Adam, `steps` for each of 9 weights of the loss.

    `confidence`: the margin by which another class must lead. The image itself where nothing was found, below as well.
    Takes 9 · `steps` forward and backward passes.
    """
    goal, images = _goal(model, images, targets, steps, confidence, targeted), images.detach()
    start = (0.999999 * (2 * images - 1)).atanh()  # finite at 0 and 1, too
    centre = (1 + start.tanh()) / 2  # x but for that factor, so that the distance has its minimum where Adam starts

    def descend(c: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        w = start.clone().requires_grad_()
        adam = torch.optim.Adam([w], RATE)
        for k in range(steps):
            with torch.enable_grad():
                x = (1 + w.tanh()) / 2
                margin, crossed = goal(x)
                if not k:  # the distance alone has one, too
                    check_gradient(margin, w)
                loss = _smooth(x - centre, margin, c)
            w.grad = torch.autograd.grad(loss, w)[0]
            adam.step()
            yield x.detach(), crossed

    return _nearest(images, descend, order=2)


@borrows
def elastic_net(
    model: Model,
    images: Tensor,
    targets: Tensor,
    *,
    steps: int,
    confidence: float = 0.0,
    targeted: bool = False,
    beta: float = 0.01,
) -> Tensor:
    """EAD (Chen et al. 2018) by its L1 rule, the smallest ‖δ‖₁: FISTA, `steps` for each of 9 weights of the loss.

    `beta`: the threshold of each step, however short the step; the larger, the fewer pixels change. Takes 9 · `steps`
    forward and backward passes, and as many forward passes.
    """
    check_not_negative(beta=beta)
    goal, images = _goal(model, images, targets, steps, confidence, targeted), images.detach()

    def descend(c: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        x = y = images
        for k in range(steps):
            with torch.enable_grad():
                leaf = y.detach().requires_grad_()
                margin = goal(leaf)[0]
                if not k:
                    check_gradient(margin, leaf)
                loss = _smooth(leaf - images, margin, c)
            moved = y - RATE * (1 - k / steps) ** 0.5 * torch.autograd.grad(loss, leaf)[0]
            last, x = x, soft_threshold(moved, images, beta)
            y = x + k / (k + 3) * (x - last)
            with torch.no_grad():
                crossed = goal(x)[1]
            yield x, crossed

    return _nearest(images, descend, order=1)


def soft_threshold(moved: Tensor, images: Tensor, beta: float) -> Tensor:
    """Pixels moved by more than β less far by β, and in [0, 1]; the others where they were: the minimum of
    β ‖x′ − x‖₁ + ½ ‖x′ − moved‖₂² over x′ in the box."""
    return (images + F.softshrink(moved - images, beta)).clamp(0, 1)


def _goal(
    model: Model, images: Tensor, targets: Tensor, steps: int, confidence: float, targeted: bool
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """x′ -> m(x′) (N,), and whether x′ is across (N,) bool. What is given is checked at once."""
    check_options(steps=steps)
    check_not_negative(confidence=confidence)
    check_pixels(images)
    logits_of, sign = classifier(model, images, targets), -1 if targeted else 1

    def goal(x: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_of(x)
        target_logit = logits.gather(1, targets[:, None]) + sign * confidence
        rest = logits.scatter(1, targets[:, None], -torch.inf).max(1).values
        leads = logits.detach().scatter(1, targets[:, None], target_logit.detach()).argmax(1) == targets
        return sign * (target_logit[:, 0] - rest), leads == targeted

    return goal


def _smooth(delta: Tensor, margin: Tensor, c: Tensor) -> Tensor:
    """The smooth part of the objective, summed over images, of which none knows another."""
    return delta.square().sum() + (c * margin.relu()).sum()


def _nearest(images: Tensor, descend: Callable[[Tensor], Iterator[tuple[Tensor, Tensor]]], order: int) -> Tensor:
    """What crossed nearest to x by the norm of that order, in 9 rounds. `descend(c)`, c (N,), is one: it yields points,
    (N, C, H, W) in [0, 1], each with whether its images are across, (N,) bool."""
    best, least = images.clone(), images.new_full((len(images),), torch.inf)
    c, low, high = torch.full_like(least, FIRST_C), torch.zeros_like(least), least.clone()
    for _ in range(ROUNDS):
        ever_crossed = torch.zeros_like(least, dtype=torch.bool)
        for x, crossed in descend(c):
            distance = torch.linalg.vector_norm(x - images, order, dim=(1, 2, 3))
            better = crossed & (distance < least)
            torch.where(wide(better), x, best, out=best)
            least, ever_crossed = torch.where(better, distance, least), ever_crossed | crossed
        low, high = torch.where(ever_crossed, low, c), torch.where(ever_crossed, c, high)
        c = torch.where(high.isinf(), 10 * c, (low + high) / 2)
    return best

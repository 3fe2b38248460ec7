"""Input attacks: images changed a little so that a model errs, or moves toward a class.

`model` is a callable from pixels in [0, 1] (N, C, H, W) to logits (N, classes), used in the mode it is in; its
parameters' flags and gradients stay as they are. The distance is RMSE(δ) = ‖δ‖₂/√(CHW), δ = attacked − image (SPEC B,
Woods, Chen and Teuscher 2019).

Every direction of ascent is that of ∇CE, computed as ∇o, o = log Σ_{j≠y} exp z_j − z_y the log-odds against the class:
CE = log(1 + eᵒ), so ∇CE = σ(o)·∇o is parallel to it, but vanishes in floating point where the model is confident.
For the same reason the 1e-8 that keeps a zero gradient from dividing by zero is added to RMSE(∇o), not to RMSE(∇CE).

An image's result does not depend on the others in its batch. Memory: one forward and backward pass of the batch, and
six copies of the images; `bounded` with a graph adds that of each unrolled step.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from captum.robust import FGSM, PGD
from torch import Tensor, nn

from attacks.errors import UserError, unknown

Model = Callable[[Tensor], Tensor]


class OnPixels(nn.Module):
    """A model of normalised images, as one of pixels in [0, 1]: x -> model((x − mean) / std). `mean`, `std`: (C,)."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.double).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images - self.mean.to(images)) / self.std.to(images))


def rmse(delta: Tensor) -> Tensor:
    """‖δ‖₂/√(CHW) of each, (N, C, H, W) -> (N,); its gradient at zero is zero."""
    return torch.linalg.vector_norm(delta, dim=(1, 2, 3)) / delta[0].numel() ** 0.5


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
    """The minimum-norm attack of SPEC B: across the boundary along ∇CE, back along −δ, by ever smaller steps.

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
    """δ (N, C, H, W) of RMSE about `rho`: along ∇CE while RMSE(δ) < ρ, back along −δ otherwise (SPEC B).

    For adversarial training (ρ = 0.01, 7 steps, path ρ) and, `toward` a class (down CE), adversarial explanations
    (ρ = 0.1, 35 steps, path 5ρ). Nothing is clipped; images may be in any units, and ρ is in the same. Without
    momentum, RMSE(δ) exceeds ρ by less than one of the last steps, path·2(T−t)/(T(T+1)). `unrolled`: through that many
    last steps (None: all) δ keeps its graph to the model's parameters.
    """
    check_options(rho=rho, steps=steps, path=path)
    logits_of, images = classifier(model, images, targets), images.detach()
    delta, velocity = torch.zeros_like(images), torch.zeros_like(images)
    for t in range(steps):
        graph = unrolled is None or t >= steps - unrolled
        _, gradient = _look(logits_of, images, delta, targets, graph)
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
        return logits, torch.autograd.grad(_log_odds(logits, targets).sum(), delta, create_graph=graph)[0]


def _log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """Against the class, log((1 − p_y)/p_y), (N,): it rises with CE."""
    others = logits.scatter(1, targets[:, None], -torch.inf).logsumexp(1)
    return others - logits.gather(1, targets[:, None])[:, 0]


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


def wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def fgsm(model: Model, images: Tensor, targets: Tensor, epsilon: float, *, targeted: bool = False) -> Tensor:
    """Captum's fast gradient sign method: x ± ε · sign ∇CE, clamped to [0, 1] (Goodfellow et al. 2015).

    `targeted`: `targets` are the classes to reach, here and below.
    """
    check_options(epsilon=epsilon)
    check_pixels(images)
    attack = FGSM(classifier(model, images, targets), _log_odds, 0, 1)
    attack.zero_thresh = 0.0  # its own takes any gradient below 1e-6 for zero
    with _quietly():
        return attack.perturb(images.detach(), epsilon, targets, targeted=targeted)


class _SeededPGD(PGD):
    """Captum's own starts come from the global generator, and for L2 from the CPU's whatever the images' device."""

    seed = 0

    def _random_point(self, center: Tensor, radius: float, norm: str, mask: Any) -> Tensor:
        generator, shape = torch.Generator().manual_seed(self.seed), center[:1].shape
        if norm == "Linf":
            start = 2 * torch.rand(shape, generator=generator) - 1
        else:
            start = torch.randn(shape, generator=generator)
            start *= torch.rand(1, generator=generator) ** (1 / start.numel()) / start.norm()
        return center + radius * start.to(center)


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
    attack = _SeededPGD(classifier(model, images, targets), _log_odds, 0, 1)
    attack.seed, attack.fgsm.zero_thresh = seed, 0.0
    with _quietly():
        options: dict[str, Any] = {"targeted": targeted, "random_start": random_start, "norm": norm}
        return attack.perturb(images.detach(), epsilon, step, steps, targets, **options)


def carlini_wagner(
    model: Model, images: Tensor, targets: Tensor, *, steps: int, confidence: float = 0.0, targeted: bool = False
) -> Tensor:
    """Foolbox's attack of Carlini and Wagner 2017, the smallest ‖δ‖₂: Adam, `steps` for each of 9 weights of the loss.

    `confidence`: the margin by which another class must lead. The image itself where nothing was found, below as well.
    """
    options = {"steps": steps, "confidence": confidence}
    return _by_foolbox("L2CarliniWagnerAttack", options, model, images, targets, targeted)


def elastic_net(
    model: Model, images: Tensor, targets: Tensor, *, steps: int, confidence: float = 0.0, targeted: bool = False
) -> Tensor:
    """Foolbox's EAD (Chen et al. 2018) by its L1 rule, the smallest ‖δ‖₁: `steps` for each of 9 weights of the loss."""
    options = {"steps": steps, "confidence": confidence, "decision_rule": "L1"}
    return _by_foolbox("EADAttack", options, model, images, targets, targeted)


def _by_foolbox(
    attack: str, options: dict[str, Any], model: Model, images: Tensor, targets: Tensor, targeted: bool
) -> Tensor:
    check_options(steps=options["steps"])
    check_pixels(images)
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # else a machine without git could not import foolbox
    import foolbox

    lent = foolbox.PyTorchModel(_Lent(classifier(model, images, targets)).eval(), (0, 1), images.device)
    aim = foolbox.criteria.TargetedMisclassification if targeted else foolbox.criteria.Misclassification
    # it would stop early by the loss of the whole batch, and an image's result is to depend on itself alone
    run = getattr(foolbox.attacks, attack)(abort_early=False, **options)
    with torch.enable_grad():
        found = run(lent, images.detach(), aim(targets), epsilons=None)[0].detach()
    nothing = (found == 0).flatten(1).all(1)  # foolbox's sign for it
    return torch.where(wide(nothing), images.detach(), found)


class _Lent(nn.Module):
    """A model for code that insists on a module in eval mode and calls `backward`: neither the model's mode nor its
    parameters' gradients are touched."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.call = lambda images: model(images)  # no submodule: nothing is moved, no mode is set

    def forward(self, images: Tensor) -> Tensor:
        return _InputGradient.apply(images, self.call) if images.requires_grad else self.call(images)


class _InputGradient(torch.autograd.Function):
    """model(images), whose backward pass stops at the images."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, model: Model) -> Tensor:
        with torch.enable_grad():
            ctx.images = images.detach().requires_grad_()
            ctx.logits = model(ctx.images)
        return ctx.logits.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return torch.autograd.grad(ctx.logits, ctx.images, gradient)[0], None


def check_options(**values: float) -> None:
    for name, value in values.items():
        if name == "steps" and value < 1:
            raise UserError(f"steps must be at least 1 (got {value})")
        if not value > 0:
            raise UserError(f"{name} must be greater than 0 (got {value:g})")


def check_pixels(images: Tensor) -> None:
    low, high = (images.amin(), images.amax()) if images.numel() else (0, 1)
    if not (low >= 0 and high <= 1):
        raise UserError(f"images must be pixels in [0, 1] (got {float(low):g} to {float(high):g})")


def classifier(model: Model, images: Tensor, targets: Tensor) -> Model:
    """`model`, its logits checked against the targets; shapes are checked at once."""
    if images.dim() != 4:
        raise UserError(f"images must be (N, C, H, W) (got {tuple(images.shape)})")
    if targets.shape != images.shape[:1] or targets.is_floating_point():
        raise UserError(f"targets must be ({len(images)},) class indices (got {tuple(targets.shape)})")
    low, high = (int(targets.min()), int(targets.max())) if len(targets) else (0, 0)

    def logits_of(images: Tensor) -> Tensor:
        logits = model(images)
        if logits.dim() != 2 or logits.shape[1] < 2:
            raise UserError(f"model must give logits (N, classes) of at least 2 classes (got {tuple(logits.shape)})")
        if not 0 <= low <= high < logits.shape[1]:
            raise UserError(f"targets must lie in 0..{logits.shape[1] - 1} (got {low}..{high})")
        return logits

    return logits_of


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Captum's word, at every step, that it has made the images require gradients."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input Tensor .* did not already require gradients")
        yield

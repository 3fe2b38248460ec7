"""Attacks of the field."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from captum.robust import FGSM, PGD
from torch import Tensor, nn

from attacks.errors import unknown
from attacks.pixels import Model, check_options, check_pixels, classifier, log_odds, wide


def fgsm(model: Model, images: Tensor, targets: Tensor, epsilon: float, *, targeted: bool = False) -> Tensor:
    """Captum's fast gradient sign method: x ± ε · sign ∇CE, clamped to [0, 1] (Goodfellow et al. 2015).

    `targeted`: `targets` are the classes to reach, here and below.
    """
    check_options(epsilon=epsilon)
    check_pixels(images)
    attack = FGSM(classifier(model, images, targets), log_odds, 0, 1)
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
    attack = _SeededPGD(classifier(model, images, targets), log_odds, 0, 1)
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


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Captum's word, at every step, that it has made the images require gradients."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input Tensor .* did not already require gradients")
        yield

"""Models of pixels: what every attack on images is given, checks and measures.

`model` is a callable from pixels in [0, 1] (N, C, H, W) to logits (N, classes), used in the mode it is in; its
parameters' flags and gradients stay as they are. `targets` (N,) are class indices. Distances are RMSE(δ) =
‖δ‖₂/√(CHW), δ = attacked − image (Woods, Chen and Teuscher 2019), unless a norm is named.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from attacks.errors import UserError
from attacks.given import WITHOUT_GRADIENT, logits_in

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
    return torch.linalg.vector_norm(delta, dim=(1, 2, 3)) / delta.shape[1:].numel() ** 0.5


def wide(values: Tensor) -> Tensor:
    """A value an image, (N,), beside its pixels: (N, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """Against the class, log((1 − p_y)/p_y), (N,): it rises with CE."""
    others = logits.scatter(1, targets[:, None], -torch.inf).logsumexp(1)
    return others - logits.gather(1, targets[:, None])[:, 0]


def check_options(**values: float) -> None:
    for name, value in values.items():
        if name == "steps" and value < 1:
            raise UserError(f"steps must be at least 1 (got {value})")
        if not value > 0:
            raise UserError(f"{name} must be greater than 0 (got {value:g})")


def check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise UserError(f"{name} must be at least 0 (got {value:g})")


def check_pixels(images: Tensor) -> None:
    low, high = (images.amin(), images.amax()) if images.numel() else (0, 1)
    if not (low >= 0 and high <= 1):
        raise UserError(f"images must be pixels in [0, 1] (got {float(low):g} to {float(high):g})")


def check_gradient(value: Tensor, by: Tensor) -> None:
    """Raise `UserError` where a value of the logits has no gradient by what the images are made of."""
    if not value.requires_grad or torch.autograd.grad(value.sum(), by, retain_graph=True, allow_unused=True)[0] is None:
        raise UserError(WITHOUT_GRADIENT)


def classifier(model: Model, images: Tensor, targets: Tensor) -> Model:
    """`model`, its logits checked against the targets; shapes are checked at once."""
    if targets.shape != images.shape[:1] or targets.is_floating_point():
        raise UserError(f"targets must be ({len(images)},) class indices (got {tuple(targets.shape)})")
    low, high = (int(targets.min()), int(targets.max())) if len(targets) else (0, 0)

    def logits_of(images: Tensor) -> Tensor:
        logits = logits_in(model(images), len(images))
        if logits.shape[1] < 2:
            raise UserError(f"model must give logits (N, classes) of at least 2 classes (got {tuple(logits.shape)})")
        if not 0 <= low <= high < logits.shape[1]:
            raise UserError(f"targets must lie in 0..{logits.shape[1] - 1} (got {low}..{high})")
        return logits

    return logits_of

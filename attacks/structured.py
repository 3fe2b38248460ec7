"""StrAttack: a targeted perturbation that touches few cells of a grid (following Xu et al. 2019, ICLR).

Cells are squares of `cell` pixels, the last of a row or column smaller, each with all its channels. For each image

    min_δ  c · max(0, m(x + δ)) + γ ‖δ‖² + τ Σ_cells ‖δ_i‖₂,   x + δ in [0, 1],  ‖δ‖∞ ≤ ε,

m = max_{j≠t} Z_j − Z_t + confidence: negative where the target t leads by more than `confidence`. By ADMM with one
copy of δ for each term: z (loss and γ ‖z‖²), y (cells: block soft-thresholding), w (the box: clamping), z = y = w, and
scaled multipliers u, v. In z's step m is replaced by its tangent at the point that is looked at, y clamped to the box,
whose zero cells stay zero; the minimum is then a closed form, exact for a linear model. Own choices, both because the
tangents of a network else circle or end just short of the boundary: the penalty grows in proportion to the step, and m
aims below 0, further with each point at which the target does not lead, half as far with each at which it does. Of the
points at which it leads the one of the smallest objective is kept.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.errors import UserError
from attacks.given import borrows
from attacks.pixels import Model, check_not_negative, check_options, check_pixels, classifier, wide

BEYOND = 0.01  # of m's first value: how much further below 0 it aims after each point at which the target does not lead


@borrows
def structured_attack(
    model: Model,
    images: Tensor,
    targets: Tensor,
    *,
    cell: int,
    steps: int,
    gamma: float,
    tau: float,
    c: float,
    rho: float,
    epsilon: float,
    confidence: float = 0.0,
) -> Tensor:
    """Adversarial images (N, C, H, W) in [0, 1], classified as `targets` (N,); the image itself where none was found,
    or where it needs no change.

    `rho`: ADMM's penalty in the first step. For the compact models at 64² and cells of 8 pixels τ = 2 γ, ρ = γ = 1 and
    c = 30 do in 60 steps. Takes `steps` forward and backward passes, and a forward pass to look at the last point.
    Deterministic; an image's result is its own. Memory: a forward and backward pass of the batch and thirteen copies
    of the images.
    """
    check_options(steps=steps, c=c, rho=rho, epsilon=epsilon)
    check_not_negative(gamma=gamma, tau=tau, confidence=confidence)
    check_pixels(images)
    logits_of, images = classifier(model, images, targets), images.detach()
    check_cell(cell, *images.shape[2:])
    low, high = (-images).clamp(min=-epsilon), (1 - images).clamp(max=epsilon)
    y, w, u, v, best = (torch.zeros_like(images) for _ in range(5))
    least, aim, first = (images.new_full((len(images),), value) for value in (torch.inf, 0, 0))
    for t in range(steps + 1):
        delta = y.clamp(low, high)
        margin, across, gradient = _tangent(logits_of, images, delta, targets, confidence, t < steps)
        first = margin if t == 0 else first
        aim = torch.where(across, aim / 2, aim - BEYOND * first)
        norms = cell_norms(delta, cell)
        cost = gamma * norms.square().sum(1) + tau * norms.sum(1)
        better = across & (cost < least)
        torch.where(wide(better), delta, best, out=best)
        least = torch.where(better, cost, least)
        if t < steps:
            penalty = rho * (t + 1)
            u *= t / (t + 1)  # scaled by the penalty
            v *= t / (t + 1)
            z = (y - u).add_(w).sub_(v).mul_(penalty / (2 * gamma + 2 * penalty))
            ahead = margin - aim + (z - delta).mul_(gradient).sum((1, 2, 3))
            slope = gradient.square().sum((1, 2, 3)).clamp_min(torch.finfo(images.dtype).tiny)
            z.addcmul_(gradient, wide((ahead / slope).clamp(0, c / (2 * gamma + 2 * penalty))), value=-1)
            y, w = shrink(z + u, cell, tau / penalty), (z + v).clamp_(low, high)
            u.add_(z).sub_(y)
            v.add_(z).sub_(w)
    return images + best


def shrink(delta: Tensor, cell: int, threshold: float) -> Tensor:
    """Block soft-thresholding, δ_i · max(0, 1 − threshold/‖δ_i‖₂) for each cell: argmin_y threshold Σ ‖y_i‖₂ +
    ½ ‖y − δ‖². (N, C, H, W) -> the same."""
    norms = cell_norms(delta, cell)
    factors = 1 - threshold / norms.clamp_min(torch.finfo(delta.dtype).tiny)
    return delta * per_pixel(factors.relu(), cell, *delta.shape[2:]).unsqueeze(1)


def cell_norms(delta: Tensor, cell: int) -> Tensor:
    """‖δ_i‖₂ of each cell, row by row. (N, C, H, W) -> (N, cells)."""
    return cell_sums(delta.square().sum(1), cell).sqrt()


def cell_sums(maps: Tensor, cell: int) -> Tensor:
    """The sum over each cell, row by row. (N, H, W) -> (N, cells)."""
    return F.avg_pool2d(maps.unsqueeze(1), cell, ceil_mode=True, divisor_override=1).flatten(1)


def per_pixel(values: Tensor, cell: int, height: int, width: int) -> Tensor:
    """Each cell's value at its pixels. (N, cells) -> (N, H, W)."""
    grid = values.view(len(values), -(-height // cell), -(-width // cell))
    return grid.repeat_interleave(cell, 1)[:, :height].repeat_interleave(cell, 2)[:, :, :width]


def check_cell(cell: int, height: int, width: int) -> None:
    """UserError unless a grid of such cells fits the image."""
    if not 1 <= cell <= max(height, width):
        raise UserError(f"cell must be 1 to {max(height, width)} pixels, the image's longer side (got {cell})")


def _tangent(
    model: Model, images: Tensor, delta: Tensor, targets: Tensor, confidence: float, graph: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """m at x + δ (N,), whether the target leads (N,) bool, and m's gradient by δ; zeros without `graph`."""
    with torch.set_grad_enabled(graph):
        delta = delta.detach().requires_grad_(graph)
        logits = model(images + delta)
        target_logit = logits.gather(1, targets[:, None])
        rest = logits.scatter(1, targets[:, None], -torch.inf)
        margin = rest.amax(1) - target_logit[:, 0] + confidence
        gradient = torch.autograd.grad(margin.sum(), delta)[0] if graph else torch.zeros_like(delta)
    across = logits.detach().scatter(1, targets[:, None], target_logit.detach() - confidence).argmax(1) == targets
    return margin.detach(), across, gradient

"""Show of a map what lies along the data (Anders et al. 2020, "Fairwashing explanations with off-manifold detergent").

Off the data a model may be edited at will without another prediction, so the part of a gradient there is nobody's
evidence. The tangent space at x is estimated from its k nearest neighbours x_1..x_k among training images: with the
differences A = (x_i − x), (k, D), and V the right singular vectors of the d largest singular values,

    ĥ = V Vᵀ h = Aᵀ U S⁻² Uᵀ A h,    A Aᵀ = U S² Uᵀ cut at d, without what is zero.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.course import Known
from attacks.errors import UserError
from benchmark.interpreters.gradients import SimpleGrad

ZERO = 1e-10  # of the largest S²: neighbours that add no direction


def nearest(image: Tensor, among: Tensor, squares: Tensor, count: int) -> Tensor:
    """The `count` nearest by Euclidean distance, nearest first, without the image itself: (D,), (M, D), and their
    squared norms (M,) -> (count,) long. M > count; at most `count` are the image."""
    close = (squares - 2 * (among @ image)).argsort(stable=True)[: 2 * count]
    return close[(among[close] != image).any(1)][:count]


def projected(vector: Tensor, differences: Tensor, dims: int) -> Tensor:
    """V Vᵀ `vector`, V the first `dims` right singular vectors of `differences`: (D,), (k, D) -> (D,)."""
    a = differences.double()
    squares, left = torch.linalg.eigh(a @ a.T)  # ascending
    kept = squares > ZERO * squares[-1]
    kept[: max(0, len(squares) - dims)] = False
    left = left[:, kept]
    return (a.T @ (left @ ((left.T @ (a @ vector.double())) / squares[kept]))).to(vector)


@dataclass(frozen=True, eq=False)
class TangentGrad(SimpleGrad):
    """∂ logit / ∂ image projected onto the tangent space; the heatmap is SimpleGrad's. `reference`: training images
    (M, C, H, W), normalised as those that are explained. Neighbours are found once for an image, and known again by its
    bytes; the projection is linear, and differentiated by the weights as the gradient is."""

    name: ClassVar[str] = "tangent_grad"
    reference: Tensor = field(repr=False, kw_only=True)
    neighbours: int = 64
    dims: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.dims <= self.neighbours < len(self.reference):
            allowed = f"1 <= dims <= neighbours < {len(self.reference)}, the number of reference images"
            raise UserError(f"{self.name} needs {allowed} (got {self.dims}, {self.neighbours})")
        super().__post_init__()

    @cached_property
    def _nearest(self) -> Known:
        among, k = self.reference.flatten(1), self.neighbours
        squares = among.square().sum(1)
        return Known(lambda images, _: torch.stack([nearest(x, among, squares, k) for x in images.flatten(1)]))

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits, gradient = super().explain(model, images, targets)
        with torch.no_grad():
            near = self._nearest(images.detach(), targets)
        along = [
            projected(h.flatten(), (self.reference[i] - x).flatten(1), self.dims)
            for h, x, i in zip(gradient, images.detach(), near, strict=True)
        ]
        return logits, torch.stack(along).view_as(gradient)

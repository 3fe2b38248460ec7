"""Class activation maps beside Grad-CAM: Grad-CAM++, LayerCAM and Eigen-CAM, at the input of the target layer.

A is the layer's input (N, C, h, w), g the gradient of the label's logit by it. Every map is a sum over channels of
weight · A; the heatmap is Grad-CAM's: ReLU, divide by the maximum.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from benchmark.interpreters.grad_cam import CAM, GradCAM
from benchmark.interpreters.gradients import layer_gradient
from benchmark.interpreters.origins import WHOLE


@dataclass(frozen=True)
class GradCAMPlusPlus(GradCAM):
    """Channel weights w = Σ_ij α_ij relu(g_ij), α = g² / (2 g² + g³ Σ_ab A_ab) (Chattopadhay et al. 2018, eq. 19).

    The paper takes the derivatives of exp(logit) in a network of ReLUs; the common factor exp(logit) cancels in the
    heatmap and is left out of the attribution. α is taken as 1 / (2 + g Σ A), its value wherever g ≠ 0, and counts
    where g > 0 alone, so with A ≥ 0 its denominator is at least 2. Where A may be negative (a dense layer) it can come
    close to zero, as in the paper's formula; at zero it is replaced by 1, as in the released code.
    """

    name: ClassVar[str] = "grad_cam_plus_plus"

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits, activation, gradient = layer_gradient(model, images, targets, self.layer, self.score, self.layout)
        positive = gradient.relu()
        denominator = 2 + positive * activation.sum((2, 3), keepdim=True)
        alpha = 1 / torch.where(denominator == 0, 1, denominator)
        return logits, activation * (alpha * positive).sum((2, 3), keepdim=True)


@dataclass(frozen=True)
class LayerCAM(GradCAM):
    """Every value is weighted by its own positive gradient, relu(g) · A (Jiang et al. 2021, eq. 5)."""

    name: ClassVar[str] = "layer_cam"

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits, activation, gradient = layer_gradient(model, images, targets, self.layer, self.score, self.layout)
        return logits, activation * gradient.relu()


@dataclass(frozen=True)
class EigenCAM(CAM):
    """A projected on its first principal direction over channels, uncentred (Muhammad and Yeasin 2020).

    With A as the matrix (C, h·w), the weights are its first left singular vector. Its sign is the one that makes the
    map's sum positive (for A ≥ 0 no value of the map is then negative). The map is the same for every class, and reads
    no logit: there is no `target` to choose. Its gradient is that of the direction itself, exact as long as the largest
    singular value stands alone; where the two largest come close it grows without bound, and where they are equal
    neither the direction nor its gradient is defined.
    """

    name: ClassVar[str] = "eigen_cam"
    reads_gradients: ClassVar[bool] = False

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits, activation, _ = layer_gradient(model, images, targets, self.layer, layout=self.layout)
        matrix = activation.flatten(2)
        wide = matrix if matrix.dtype in WHOLE else matrix.float()  # half precision has no eigenvectors
        return logits, activation * principal_weights(wide)[..., None].to(activation.dtype)


def principal_weights(matrix: Tensor) -> Tensor:
    """The unit weights of the channels whose weighted sum is largest, of the sign that makes its total positive.

    (N, C, P) -> (N, C, 1).
    """
    if matrix.shape[1] <= matrix.shape[2]:
        weights = first_singular_vector(matrix)
    else:  # by the smaller Gram matrix
        weights = matrix @ first_singular_vector(matrix.mT)
        length = weights.norm(dim=1, keepdim=True)
        weights = weights / torch.where(length > 0, length, 1)
    total = (matrix * weights).sum((1, 2), keepdim=True)
    return torch.where(total < 0, -weights, weights)


def first_singular_vector(matrix: Tensor) -> Tensor:
    """The first left singular vector of each matrix, of either sign. (N, k, m) -> (N, k, 1), differentiable once.

    The vector u of the Gram matrix G = M Mᵀ comes without a graph; its exact change is du = P dG u with
    P = Σ_{j>1} u_j u_jᵀ / (λ₁ − λ_j). Autograd's own step through `eigh` would also divide by the gaps between the
    other eigenvalues, which are zero where two channels are dead.
    """
    gram = matrix @ matrix.mT
    values, vectors = torch.linalg.eigh(gram.detach())
    gap = values[:, -1:] - values[:, :-1]
    inverse = torch.where(gap > 0, gap, torch.inf).reciprocal()
    first, others = vectors[:, :, -1:], vectors[:, :, :-1]
    change = others @ (inverse[..., None] * (others.mT @ (gram @ first)))
    return first + (change - change.detach())

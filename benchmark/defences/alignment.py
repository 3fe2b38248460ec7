"""Train a network whose gradients agree nearby (Joo et al. 2023, "Towards more robust interpretation via local gradient
alignment").

    CE + λ₂ · mean ‖g − g'‖² + λ_cos · mean (1 − cos(g, g'))/2,    g = ∂z_y/∂x at x, g' at x + δ, δ uniform in ±ε.

The ℓ₂ term alone can be lowered by smaller gradients, which changes no heatmap; the cosine cannot. As in the released
code g is held constant, and λ₂ = 0.01, λ_cos = 0.1, ε = 4/255 are those of its CIFAR-10 script.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.given import logits_in
from attacks.modes import eval_mode
from benchmark.interpreters.base import label_logits


def misalignment(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """‖a − b‖² and (1 − cos(a, b))/2 of each image: (N, C, H, W) twice -> (N,) twice."""
    a, b = a.flatten(1), b.flatten(1)
    return (a - b).square().sum(1), (1 - F.cosine_similarity(a, b)) / 2


@dataclass(frozen=True)
class Aligned:
    """The loss of a batch (`benchmark.training.Objective`). `epsilon` is in pixels of [0, 1], `std` what images are
    divided by. Gradients are taken in eval mode, in which an image's logits are its own."""

    std: tuple[float, ...]
    l2: float = 0.01
    cosine: float = 0.1
    epsilon: float = 4 / 255

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Draws δ from torch's random state."""
        loss = F.cross_entropy(logits_in(model(images), len(images)), targets)
        reach = self.epsilon / images.new_tensor(self.std).view(-1, 1, 1)
        nearby = images + reach * (2 * torch.rand_like(images) - 1)
        with eval_mode(model):
            here, there = (_gradient(model, x, targets, graph) for x, graph in ((images, False), (nearby, True)))
        far, turned = misalignment(here, there)
        return loss + self.l2 * far.mean() + self.cosine * turned.mean()


def _gradient(model: nn.Module, images: Tensor, targets: Tensor, graph: bool) -> Tensor:
    images = images.detach().requires_grad_()
    label = label_logits(logits_in(model(images), len(images)), targets)
    return torch.autograd.grad(label.sum(), images, create_graph=graph)[0]

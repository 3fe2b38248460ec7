"""Train a flatter network (Dombrowski et al. 2020, "Towards robust explanations for deep neural networks"): weight
decay and the Hessian's norm, for both bound how far a map can be moved.

    CE + (decay/2) ‖W‖² + γ · mean ‖H‖_F²,    H = ∂² z_y / ∂x² of an image,

‖H‖_F² = E ‖H v‖² for v ~ N(0, I) (Hutchinson 1990), which takes two gradients more and never H itself. The Hessian of a
ReLU network is zero nearly everywhere: it is taken of the network with softplus_β for ReLU.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.given import logits_in
from attacks.modes import eval_mode
from attacks.surrogates import ReLUAs
from benchmark.interpreters.base import label_logits


def hessian_norm(scores: Tensor, images: Tensor, probes: int = 1) -> Tensor:
    """Hutchinson's estimate of each image's ‖H‖_F², with its graph to the parameters: (N,), (N, C, H, W) -> (N,).

    `scores` must come from `images`, which require gradients, each from its own. Draws from torch's random state.
    """
    gradient = torch.autograd.grad(scores.sum(), images, create_graph=True)[0]
    total = images.new_zeros(len(images))
    for _ in range(probes):
        along = (gradient * torch.randn_like(images)).sum()
        total = total + torch.autograd.grad(along, images, create_graph=True)[0].square().flatten(1).sum(1)
    return total / probes


@dataclass(frozen=True)
class HessianDecay:
    """The loss of a batch (`benchmark.training.Objective`). The Hessian is taken in eval mode, in which an image's
    logits are its own, of a `share` of the batch, its first images; biases and BatchNorm do not decay."""

    gamma: float = 1e-4
    decay: float = 5e-4
    beta: float = 10.0
    share: float = 0.25

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(logits_in(model(images), len(images)), targets)
        decayed = sum(p.square().sum() for p in model.parameters() if p.dim() > 1)
        count = math.ceil(self.share * len(images))
        images, targets = images[:count].detach().requires_grad_(), targets[:count]
        with eval_mode(model), ReLUAs(partial(F.softplus, beta=self.beta)):
            label = label_logits(logits_in(model(images), count), targets)
        return loss + self.decay / 2 * decayed + self.gamma * hessian_norm(label, images).mean()

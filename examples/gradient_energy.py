"""An example of a submission: the energy of the gradient in 4 × 4 blocks.

foolbench submit examples/gradient_energy.py:GradientEnergy --check-only
foolbench submit examples/gradient_energy.py:GradientEnergy
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GradientEnergy:
    """Mean square of the logit's gradient over colours and over blocks of `side` pixels, divided by its maximum."""

    name = "gradient_energy"
    differentiable = True
    stochastic = False

    def __init__(self, side: int = 4) -> None:
        self.side = side

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        images = images.detach().requires_grad_()
        logit = model(images).gather(1, targets[:, None])
        gradient = torch.autograd.grad(logit.sum(), images, create_graph=True)[0]
        energy = F.avg_pool2d(gradient.square().mean(1), self.side)
        highest = energy.amax((1, 2), keepdim=True)
        return energy / torch.where(highest > 0, highest, 1)

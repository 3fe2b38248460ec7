"""Projected gradient descent (PGD) against normalised images, and training against it (Madry et al. 2018).

x ← Π(x + a · sign ∂CE/∂x), Π into the ball ‖δ‖∞ ≤ ε and into the valid pixels. ε and a are in pixel units of [0, 1];
images are normalised, so each channel's is divided by the dataset's std.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.modes import eval_mode
from benchmark.datasets import Dataset
from benchmark.training import cross_entropy
from benchmark.training import train as fit


@dataclass(frozen=True)
class PGD:
    """An L∞ adversary: `epsilon` and `step` in pixel units, so many steps from each of `restarts` random starts."""

    epsilon: float = 8 / 255
    step: float = 2.5 / 255
    steps: int = 5
    restarts: int = 1

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, data: Dataset, starts: Tensor) -> Tensor:
        """The worst images found, (N, C, H, W), normalised as `images` are: of the images themselves and of all that
        the ascent goes through, those with the largest margin of a wrong class, which are misclassified if any is.

        `starts` (restarts, N, C, H, W) in [-1, 1], in units of ε. The model is run in eval mode and given back as it
        came.
        """
        std = images.new_tensor(data.std).view(3, 1, 1)
        black, white = (data.normalise(images.new_full((3, 1, 1), value)) for value in (0.0, 1.0))
        low = torch.maximum(images - self.epsilon / std, black)
        high = torch.minimum(images + self.epsilon / std, white)
        with eval_mode(model), torch.enable_grad():
            worst = images.detach()
            margin = margin_of(model(worst).detach(), targets)
            for start in starts:
                x = (images + self.epsilon / std * start).clamp(low, high)
                for step in range(self.steps + 1):
                    x = x.detach().requires_grad_()
                    logits = model(x)
                    step_margin = margin_of(logits.detach(), targets)
                    worst = torch.where((step_margin > margin).view(-1, 1, 1, 1), x.detach(), worst)
                    margin = torch.maximum(step_margin, margin)
                    if step < self.steps:
                        # in single precision the loss of a confident model would have no gradient
                        loss = F.cross_entropy(logits.double(), targets, reduction="sum")
                        x = (x + self.step / std * torch.autograd.grad(loss, x)[0].sign()).clamp(low, high)
        return worst


def margin_of(logits: Tensor, targets: Tensor) -> Tensor:
    """How far the best wrong class is above the label, (N,)."""
    wrong = logits.scatter(1, targets[:, None], -torch.inf)
    return wrong.amax(1) - logits.gather(1, targets[:, None])[:, 0]


def random_starts(restarts: int, images: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform in [-1, 1], (restarts, *images); those of more restarts begin with those of fewer."""
    return (2 * torch.rand((restarts, *images.shape), generator=generator) - 1).to(images)


def train(model: nn.Module, data: Dataset, adversary: PGD, *, seed: int = 0, **options: Any) -> list[float]:
    """Adversarial training in place; the model is left in eval mode. Returns the mean adversarial loss of each epoch.

    `benchmark.training.train`, whose options these are, with every batch replaced by the adversary's.
    """
    random = torch.Generator().manual_seed(seed)

    def objective(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        hard = adversary(model, images, targets, data, random_starts(adversary.restarts, images, random))
        return cross_entropy(model, hard, targets)

    return fit(model, data, **options, seed=seed, objective=objective)

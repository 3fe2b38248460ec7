"""Training of the compact models, which are made on first use: Adam and a one-cycle learning rate."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from attacks.random_state import RandomState
from benchmark.datasets import Dataset, loader

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]


def cross_entropy(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The mean over a batch: the objective of plain training."""
    return F.cross_entropy(model(images), targets)


def train(
    model: nn.Module,
    dataset: Dataset,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int = 0,
    objective: Objective = cross_entropy,
) -> list[float]:
    """Train `model` in place on its device; it is left in eval mode. Returns the mean loss of each epoch.

    `objective(model, images, targets)` is the scalar that is minimised, batch by batch, the model in training mode.
    `learning_rate` is the peak of the cycle (Smith and Topin 2019). The random state is seeded and given back.
    """
    device = next(model.parameters()).device
    losses = []
    with RandomState(seed, device):
        batches = loader(dataset, batch_size, shuffle=True, seed=seed)
        optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
        steps = max(1, epochs * len(batches))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
        model.train()
        for _ in tqdm(range(epochs), desc="training", unit="epoch", leave=False, disable=None):
            total = 0.0
            for images, targets in batches:
                loss = objective(model, images.to(device), targets.to(device))
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
                total += loss.item() * len(images)
            losses.append(total / len(dataset))
    model.eval()
    return losses

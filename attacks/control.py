"""The control of a manipulation: the same fine-tuning by labels, without a fooling loss."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from attacks.batches import Batch, Batches
from attacks.course import Recipe
from attacks.given import copied, device_of, logits_in
from attacks.random_state import RandomState
from attacks.scopes import parameters_in


def fine_tuned(model: nn.Module, loader: Iterable[Batch], recipe: Recipe, seed: int = 0) -> nn.Module:
    """What `attacks.manipulate` gives for λ = 0 and no divergence, weight for weight, with no map to compute; the given
    model is untouched. Loader, batches and random state are as there."""
    device = device_of(model)
    batches, random = Batches(loader, device), RandomState(seed, device)
    tuned = copied(model).eval().requires_grad_(recipe.scope == "all")
    moved = [parameter.requires_grad_(True) for parameter in parameters_in(tuned, recipe.scope).values()]
    optimiser = torch.optim.Adam(moved, lr=recipe.learning_rate)
    for _ in range(recipe.steps):
        with random, torch.enable_grad():
            images, targets = next(batches)
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(logits_in(tuned(images), len(images)), targets).backward()
        optimiser.step()
    return tuned

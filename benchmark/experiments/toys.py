"""Toys: points in the plane whose truth is known, small networks with one logit, their training and input gradients."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CENTRE, SPREAD = 0.6, 0.25


def draw_points(n: int, noise: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points (n, 2) near a line, x1 = ±CENTRE + SPREAD · ε and x2 = noise · ε' with ε, ε' ~ N(0, 1), and their labels
    (n,), the sign of CENTRE as 0 or 1, as floats; half of each (Heo, Joo and Moon, NeurIPS 2019, slides)."""
    labels = (torch.arange(n) % 2).float()
    spread = torch.randn(n, 2, generator=random) * torch.tensor([SPREAD, noise])
    return spread + torch.stack([CENTRE * (2 * labels - 1), torch.zeros(n)], 1), labels


def mlp(inputs: int, hidden: int, seed: int, activation: Callable[[], nn.Module] = nn.Softplus) -> nn.Sequential:
    """inputs -> hidden -> hidden -> one logit (N, 1), torch's initial weights drawn from `seed`."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers = [nn.Linear(inputs, hidden), activation(), nn.Linear(hidden, hidden), activation()]
        return nn.Sequential(*layers, nn.Linear(hidden, 1))


def fit(model: nn.Module, steps: int, learning_rate: float, loss: Callable[[nn.Module, int], Tensor]) -> nn.Module:
    """A copy of `model` after `steps` of Adam on loss(copy, step); the learning rate falls to 0 as a cosine."""
    model = copy.deepcopy(model).requires_grad_(True)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    with torch.enable_grad():
        for step in range(steps):
            optimiser.zero_grad(set_to_none=True)
            loss(model, step).backward()
            optimiser.step()
            schedule.step()
    return model.requires_grad_(False)


def cross_entropy(x: Tensor, y: Tensor) -> Callable[[nn.Module, int], Tensor]:
    """A loss for `fit`: the mean over all points (N, d) with labels (N,)."""
    return lambda model, step: F.binary_cross_entropy_with_logits(model(x)[:, 0], y)


def input_gradients(model: nn.Module, x: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """Logits (N,) and ∂z/∂x (N, d); with `create_graph` both can be differentiated by the weights."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        logits = model(x)[:, 0]
        (gradients,) = torch.autograd.grad(logits.sum(), x, create_graph=create_graph)
    return (logits, gradients) if create_graph else (logits.detach(), gradients)

"""Borrowing a model in eval mode, and giving it back in its own."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Every module in eval mode, and all of them; each that was in training mode is again. What others change stays."""
    modules = list(model.modules())
    training = [module for module in modules if getattr(module, "training", False)]  # frozen scripts have no mode
    if training:
        model.eval()
    try:
        yield modules
    finally:
        for module in training:
            module.training = True


@contextmanager
def modes_kept(modules: list[nn.Module]) -> Iterator[None]:
    """Give each its mode back, whoever changes it: a forward pass may."""
    modes = [getattr(module, "training", None) for module in modules]
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            if mode is not None and module.training is not mode:
                module.training = mode

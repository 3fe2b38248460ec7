"""Borrowing a model in eval mode, and giving it back in its own."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Every module in eval mode, and all of them; each gets its own mode back."""
    modules = list(model.modules())
    with modes_kept(modules):
        if any(getattr(module, "training", False) for module in modules):  # frozen scripts have no mode
            model.eval()
        yield modules


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

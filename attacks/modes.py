"""Borrowing a model in eval mode."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Every module in eval mode, and all of them; each gets its own mode back."""
    modules = list(model.modules())
    training = [module for module in modules if getattr(module, "training", False)]  # frozen scripts have no mode
    if training:
        model.eval()
    try:
        yield modules
    finally:
        for module in training:
            module.training = True

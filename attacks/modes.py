"""Borrowing a model in eval mode, and giving it back in its own."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from attacks.errors import Refused, one_line


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Every module in eval mode, and all of them; each that was in training mode is again. What others change stays.
    Raises `Refused` where the model forbids it, as an exported one does."""
    modules = list(model.modules())
    training = [module for module in modules if getattr(module, "training", False)]  # frozen scripts have no mode
    try:
        if training:
            _in_eval_mode(model)
        yield modules
    finally:
        for module in training:
            module.training = True


def _in_eval_mode(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError as error:
        raise Refused(
            f"{type(model).__name__} cannot be put in eval mode (got: {one_line(error)}); allowed: the module as "
            "it was before torch.export"
        ) from error


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

"""A smooth stand-in for an interpreter whose gradient vanishes: every ReLU becomes a softplus while it runs.

Following Dombrowski et al. 2019 (Explanations can be manipulated and geometry is to blame), who attack through
softplus_β(x) = log(1 + exp(βx))/β: it has the curvature that ReLU lacks, and tends to ReLU as β grows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}


class ReLUAs(TorchFunctionMode):
    """While it is active, every call of ReLU, in place or not, gives `function` of its input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RELUS:
            return self.function(args[0] if args else (kwargs or {})["input"])
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Smooth:
    """`interpreter` with softplus for ReLU, in the model and in the interpreter alike."""

    interpreter: Callable[[nn.Module, Tensor, Tensor], Tensor]
    beta: float = 10.0

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        with ReLUAs(partial(F.softplus, beta=self.beta)):
            return self.interpreter(model, images, targets)

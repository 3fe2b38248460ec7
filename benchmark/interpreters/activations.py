"""A forward pass whose activations have another backward step than their derivative.

`Activations` is a `TorchFunctionMode`: it sees functional calls, in-place variants and reused modules alike, where
hooks on modules see neither the first nor tell the last apart. Operations that are linear in what depends on the image
run as they are; one that is neither linear nor has a step of its own is an error that names it.
"""

from collections.abc import Callable, Set
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from attacks.errors import Refused
from benchmark.interpreters.operations import POOL_MEAN, STRUCTURE
from benchmark.interpreters.tracing import tensors

LINEAR = STRUCTURE | POOL_MEAN | {
    "add", "iadd", "radd", "sub", "isub", "rsub", "neg", "dropout", "dropout2d", "feature_dropout", "alpha_dropout",
    "identity", "contiguous", "clone", "to", "float", "double",
}  # fmt: skip
# linear where one operand alone depends on the image; of a quotient, the first
PRODUCTS = {"mul", "imul", "rmul", "matmul", "linear", "conv1d", "conv2d", "conv3d", "batch_norm"}
QUOTIENTS = {"div", "idiv", "itruediv", "truediv"}

Step = Callable[..., Tensor]


class Activations(TorchFunctionMode):
    """Follows what depends on the tensors given to `trace`; `steps` run in the place of the operations they name.

    A step is called with the operation in its pure form and its operands. Operations in `plain` run as they are.
    """

    def __init__(self, method: str, steps: dict[str, Step], plain: Set[str] = frozenset()) -> None:
        super().__init__()
        self.method, self.steps, self.plain = method, steps, plain
        self.traced: Any = WeakIdKeyDictionary()

    def trace(self, *followed: Tensor) -> None:
        for tensor in followed:
            self.traced[tensor] = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = [t for t in tensors((args, kwargs)) if t in self.traced]
        if not read:
            return func(*args, **kwargs)
        name = func.__name__.strip("_")
        if name in self.steps:
            output = self._step(func, self.steps[name], args, kwargs)
        else:
            output = func(*args, **kwargs)
            has_rule = name in LINEAR or name in self.plain
            if len(read) == 1:
                has_rule |= name in PRODUCTS or (name in QUOTIENTS and args[0] is read[0])
            if not has_rule and any(t.is_floating_point() for t in tensors(output)):
                raise Refused(f"{self.method} has no rule for the operation {name!r}")
        self.trace(*tensors(output))
        return output

    @staticmethod
    def _step(func: Any, step: Step, args: Any, kwargs: Any) -> Tensor:
        rest = dict(kwargs)
        first, *others = args or (rest.pop("input"),)
        if not (rest.pop("inplace", False) or func.__name__.endswith("_")):
            return step(func, first, *others, **rest)
        return first.copy_(step(lambda x, *a, **k: func(x.clone(), *a, **k), first, *others, **rest))


class Slope(torch.autograd.Function):
    """`output`, a function of x, whose backward step multiplies by `slope`, whatever its derivative is.

    `positive`: by the gradient's positive part. The step itself can be differentiated by the gradient.
    """

    @staticmethod
    def forward(x: Tensor, output: Tensor, slope: Tensor, positive: bool) -> Tensor:
        return output.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inputs[2])
        ctx.positive = inputs[3]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[no-untyped-def]
        return (grad.relu() if ctx.positive else grad) * ctx.saved_tensors[0], None, None, None

"""Where the tensors of a forward pass come from: what a trace must refuse because it cannot see how they were made.

A `TorchFunctionMode` sees calls of Python. What runs below them (a scripted or traced module, an operation in C++, a
custom `autograd.Function`), and what becomes of values once they are numbers or arrays (`leaving`), it does not. Such
a tensor enters the trace as one that nobody made; whether it hangs on the images, autograd's graph says.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from attacks.errors import Refused

Strangers = list[tuple[str, Tensor]]  # operands that nobody was seen to make, and where they were read
WHOLE = (torch.float32, torch.float64)


def refuse_compiled(method: str, model: nn.Module) -> None:
    """Raise `Refused` for a scripted or traced module, whose operations run below Python."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"module {name!r}" if name else "the model"
            raise Refused(f"{method} cannot follow {where}, which is scripted or traced; allowed: its source")


def refuse_unseen(method: str, where: str) -> None:
    """Raise `Refused` for a tensor that depends on the image by operations that no trace saw."""
    raise Refused(
        f"{method} cannot follow what {where} reads: it depends on the image by operations outside the trace (a "
        f"scripted or traced module, a custom autograd.Function, no_grad, C++); allowed: torch operations in Python"
    )


def elsewhere(images: Tensor) -> Tensor:
    """Other images of the same kind, to see what changes with them."""
    return 0.5 - 1.5 * images.detach().flip(-1)


def refuse_changed(method: str, before: Strangers, after: Strangers) -> None:
    """Raise `Refused` where a tensor of unseen origin is another one for other images. Where the model took another
    way for these, nothing can be compared."""
    if len(before) == len(after):
        for (_, one), (where, other) in zip(before, after, strict=True):
            if one.shape != other.shape or not torch.equal(one, other):
                refuse_unseen(method, where)


def refuse_half(method: str, name: str, tensors: list[Tensor]) -> None:
    """Raise `Refused` for values in less than single precision, in which the rules' quotients overflow or vanish."""
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype not in WHOLE:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise Refused(f"{method} needs float32 or float64 (got {dtype} in {name})")


class Ancestry:
    """Whether tensors depend, by autograd's graph, on those given to `root`. Each node is looked at once."""

    def __init__(self) -> None:
        self.roots: set[Any] = set()
        self.free: set[Any] = set()  # nodes that do not depend on the roots; holding them keeps their identity

    def root(self, tensor: Tensor) -> None:
        if tensor.requires_grad:
            self.roots.add(get_gradient_edge(tensor).node)

    def depends(self, tensor: Tensor) -> bool:
        if tensor.grad_fn is None:
            return False
        waiting, met = [tensor.grad_fn], set()
        while waiting:
            node = waiting.pop()
            if node in self.roots:
                return True
            if node not in met and node not in self.free:
                met.add(node)
                waiting.extend(parent for parent, _ in node.next_functions if parent is not None)
        self.free |= met
        return False

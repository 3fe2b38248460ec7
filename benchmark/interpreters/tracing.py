"""What is noticed of a model while it runs: the tensors in a call, its pure form, changes in place, running modules."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from inspect import Signature, signature
from typing import Any, NamedTuple
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from attacks.errors import UserError


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dictionaries, each once, in order."""
    leaves: list[Tensor] = []
    _visit(tree, leaves)  # not a closure: one that calls itself is a cycle, and would hold the tensors until a gc
    return leaves


def _visit(item: Any, leaves: list[Tensor]) -> None:
    if isinstance(item, Tensor):
        if not any(item is t for t in leaves):
            leaves.append(item)
    elif isinstance(item, (tuple, list)):
        for part in item:
            _visit(part, leaves)
    elif isinstance(item, dict):
        for part in item.values():
            _visit(part, leaves)


def mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same tuples, lists and dictionaries with function(tensor) in the place of each tensor."""
    if isinstance(tree, Tensor):
        return function(tree)
    if type(tree) in (tuple, list):
        return type(tree)(mapped(function, item) for item in tree)
    if isinstance(tree, dict):
        return {key: mapped(function, item) for key, item in tree.items()}
    return tree


class Call(NamedTuple):
    """An operation in its pure form, its operands, and those of them that are followed (`read`).

    `target`: the tensor that the model asked to change in place.
    """

    name: str
    function: Callable[..., Any]
    args: Any
    kwargs: Any
    read: list[Tensor]
    target: Tensor | None = None


def pure(function: Any, args: Any, kwargs: Any, read: list[Tensor]) -> Call:
    """The call as one that changes nothing in place. Raises `UserError` where the operation has no such form."""
    name = function.__name__
    if (name.endswith("_") and not name.startswith("__")) or name.startswith("__i"):
        return Call(*_out_of_place(name), args, kwargs, read, args[0])
    if getattr(function, "__module__", "") == "torch.nn.functional" and len(args) + len(kwargs) > 1:
        bound = _signature(function).bind(*args, **kwargs)
        if bound.arguments.get("inplace"):
            bound.arguments["inplace"] = False
            return Call(name.strip("_"), function, bound.args, bound.kwargs, read, read[0])
    return Call(name.strip("_"), function, args, kwargs, read)


def _out_of_place(name: str) -> tuple[str, Any]:
    """Name and function of the pure form of the in-place operation `name`."""
    pure_name = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div"}.get(name.strip("_"), name.strip("_"))
    function = getattr(torch, pure_name, None) or getattr(F, pure_name, None)
    if function is None:
        raise UserError(f"LRP has no rule for the in-place operation {name!r}")
    return pure_name, function


@cache
def _signature(function: Callable[..., Any]) -> Signature:
    return signature(function)


class Memory:
    """What became of the tensors that a model changes in place, where the changes are made to copies."""

    def __init__(self) -> None:
        self.renewed: Any = WeakIdKeyDictionary()  # tensor changed in place -> its new value
        self.views: Any = WeakIdKeyDictionary()  # tensor -> references to all that share its memory
        self.stale: Any = WeakIdKeyDictionary()  # tensors whose shared memory was changed through another one

    def current(self, tensor: Tensor) -> Tensor:
        """The tensor as it would be had its in-place changes happened in place."""
        while tensor in self.renewed:
            tensor = self.renewed[tensor]
        return tensor

    def refuse_stale(self, function: Any, read: list[Tensor]) -> None:
        """Raise `UserError` where one of the tensors was changed through a view, which no copy can show."""
        if any(t in self.stale for t in read):
            raise UserError(
                f"LRP cannot follow {function.__name__!r}: it reads a tensor changed in place through a view of it"
            )

    def note_views(self, read: list[Tensor], written: list[Tensor]) -> None:
        """Remember which results share the memory of an operand."""
        for tensor in read:
            for other in written:
                if tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr():
                    family = self.views.setdefault(tensor, [ref(tensor)])
                    family.append(ref(other))
                    self.views[other] = family

    def renew(self, target: Tensor, output: Tensor) -> None:
        """`target` was to become `output` in place; what shares its memory can no longer be read."""
        self.renewed[target] = output
        for other in self.views.get(target, ()):
            if other() is not None and other() is not target and other() is not output:
                self.stale[other()] = True


@contextmanager
def scopes(model: nn.Module, names: list[str]) -> Iterator[None]:
    """Keep in `names` the modules that are running, outermost first, while the block runs."""
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: names.append(name)))
        # also where the module raises: the model may catch that, and go on
        handles.append(module.register_forward_hook(lambda *_: (names.pop(), None)[1], always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

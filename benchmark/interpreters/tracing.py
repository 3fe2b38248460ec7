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

from attacks.errors import Refused, UserError

# results owe their shape to the first operand, not their values
SHAPED = {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones",
          "new_empty", "new_full", "new_tensor"}  # fmt: skip
LIKE = {"to", "type_as", "expand_as", "view_as", "reshape_as"}  # of the second operand, its type or shape alone
SETTERS = {"__setitem__", "__set__"}
# whose function of the same name is the operation in place without its writing
PURE = {"add", "sub", "mul", "div", "relu", "relu6", "hardtanh", "leaky_relu", "elu", "selu", "celu", "silu", "mish",
        "hardswish", "hardsigmoid", "sigmoid", "tanh", "dropout", "dropout2d", "feature_dropout",
        "alpha_dropout"}  # fmt: skip
OPERATORS = {f"__i{name}__" for name in ("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "and", "or",
                                         "xor", "lshift", "rshift", "matmul")}  # fmt: skip


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
    """The same tuples, lists and dictionaries with function(tensor) in the place of each tensor. (Whatever type of
    tuple or list of one's own it is, for torch it is one.)"""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, (tuple, list)) and not isinstance(tree, torch.Size):
        return (tuple if isinstance(tree, tuple) else list)(mapped(function, item) for item in tree)
    if isinstance(tree, dict):
        return {key: mapped(function, item) for key, item in tree.items()}
    return tree


def name_of(function: Any) -> str:
    """The operation's name without underscores; that of the attribute where one is read or set."""
    named = function.__self__ if function.__name__ in ("__get__", "__set__") else function
    return str(named.__name__).strip("_")


def values(name: str, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors of a call whose values its result owes something to: of the operations in LIKE, the first operand."""
    if name in SHAPED:
        return tensors((args[1:], {key: value for key, value in kwargs.items() if key != "input"}))
    return tensors(args[:1] if name in LIKE else (args, kwargs))


def count(tree: Any, tensor: Tensor) -> int:
    """How often a tensor stands in nested tuples, lists and dictionaries: h * h reads one tensor twice."""
    times = 0
    for item in tree.values() if isinstance(tree, dict) else tree:
        if item is tensor:
            times += 1
        elif isinstance(item, (tuple, list, dict)):
            times += count(item, tensor)
    return times


class Call(NamedTuple):
    """An operation in its pure form, its operands, and those of them that are followed (`read`).

    `target`: the tensor that the model asked to change in place. `makers`: the functions that made what is in `read`.
    `start`: what is followed from the beginning, images first (N, ...).
    """

    name: str
    function: Callable[..., Any]
    args: Any
    kwargs: Any
    read: list[Tensor]
    target: Tensor | None = None
    makers: tuple[str, ...] = ()
    start: Tensor | None = None

    def on(self, *others: Tensor) -> Any:
        """The result with other tensors in the place of those in `read`."""

        def other(tensor: Tensor) -> Tensor:
            return next((new for old, new in zip(self.read, others, strict=True) if old is tensor), tensor)

        return self.function(*mapped(other, self.args), **mapped(other, self.kwargs))

    @property
    def is_of_one(self) -> bool:
        """Whether one operand alone is followed, and stands there once."""
        return len(self.read) == 1 and count(self.args, self.read[0]) + count(self.kwargs, self.read[0]) == 1

    @property
    def is_of_input(self) -> bool:
        """Whether that one is the operation's first operand, and no weight, shift or divisor."""
        return self.is_of_one and (self.args[0] if self.args else self.kwargs.get("input")) is self.read[0]

    @property
    def is_steered(self) -> bool:
        """Whether indices or masks that are followed say what goes where: then it is not linear in the rest."""
        return not all(t.is_floating_point() for t in self.read)


def by_its_own(call: Call) -> bool:
    """Whether a BatchNorm normalises by the statistics of what it is given: of each image, where it is given one."""
    return call.name == "batch_norm" and bool(call.kwargs.get("training", (*call.args, *[False] * 6)[5]))


def written(function: Any, args: Any, kwargs: Any) -> Tensor | None:
    """The tensor that a call changes in place, by its name or its option `inplace`; None where it changes none.

    Raises `Refused` where that is a list of tensors."""
    name = function.__name__
    if name.startswith("_foreach_") and name.endswith("_"):
        raise Refused(f"{name!r} changes a list of tensors in place, which cannot be followed; allowed: one by one")
    if name in SETTERS or name in OPERATORS or (name.partition(".")[0].endswith("_") and not name.startswith("__")):
        return args[0] if args else next(iter(kwargs.values()))
    if getattr(function, "__module__", "") == "torch.nn.functional" and len(args) + len(kwargs) > 1:
        place = _place_of_inplace(function)
        if kwargs.get("inplace") or (place is not None and len(args) > place and args[place]):
            return args[0] if args else kwargs["input"]
    return None


@cache
def _place_of_inplace(function: Callable[..., Any]) -> int | None:
    names = list(_signature(function).parameters)
    return names.index("inplace") if "inplace" in names else None


def refuse_out(method: str, function: Any, kwargs: Any) -> None:
    """Raise `Refused` where a call writes to `out=`."""
    if kwargs.get("out") is not None:
        raise Refused(f"{method} cannot follow {function.__name__!r} with out=; allowed: its result")


def pure(function: Any, args: Any, kwargs: Any, read: list[Tensor]) -> Call:
    """The call as one that changes nothing in place."""
    name, target = name_of(function), written(function, args, kwargs)
    if target is None:
        return Call(name, function, args, kwargs, read)
    if getattr(function, "__module__", "") == "torch.nn.functional" and not function.__name__.endswith("_"):
        bound = _signature(function).bind(*args, **kwargs)
        bound.arguments["inplace"] = False
        return Call(name, function, bound.args, bound.kwargs, read, target)
    return Call(*_out_of_place(function), args, kwargs, read, target)


def _out_of_place(function: Any) -> tuple[str, Any]:
    """Name and function of the pure form of an operation in place."""
    name = name_of(function)
    name = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div"}.get(name, name)
    if name in PURE:
        return name, getattr(torch, name, None) or getattr(F, name)

    def on_a_copy(target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        copy = target.clone()
        function(copy, *args, **kwargs)
        return copy

    return name, on_a_copy


@cache
def _signature(function: Callable[..., Any]) -> Signature:
    return signature(function)


class Memory:
    """What became of the tensors that a model changes in place, where the changes are made to copies."""

    def __init__(self) -> None:
        self.renewed: Any = WeakIdKeyDictionary()  # tensor changed in place -> its new value
        self.views: Any = WeakIdKeyDictionary()  # tensor -> references to all that share its memory
        self.stale: Any = WeakIdKeyDictionary()  # tensors whose shared memory was changed through another one
        self.outdated: dict[int, Tensor] = {}  # memory that was not followed until it was changed -> who was changed

    def current(self, tensor: Tensor) -> Tensor:
        """The tensor as it would be had its in-place changes happened in place."""
        while tensor in self.renewed:
            tensor = self.renewed[tensor]
        return tensor

    def refuse_stale(self, name: str, read: list[Tensor]) -> None:
        """Raise `UserError` where one of the tensors was changed through a view, which no copy can show."""
        if not self.stale and not self.outdated:
            return
        if any(t in self.stale or (self.outdated and _memory(t) in self.outdated) for t in read):
            raise UserError(f"LRP cannot follow {name!r}: it reads a tensor changed in place through a view of it")

    def note_views(self, read: list[Tensor], written: list[Tensor]) -> None:
        """Remember which results share the memory of an operand."""
        for tensor in read:
            for other in written:
                if _memory(tensor) == _memory(other):
                    family = self.views.setdefault(tensor, [ref(tensor)])
                    family.append(ref(other))
                    self.views[other] = family

    def renew(self, target: Tensor, output: Tensor, is_followed: bool) -> None:
        """`target` was to become `output` in place; what shares its memory can no longer be read."""
        if not is_followed:
            self.outdated[_memory(target)] = target
        self.renewed[target] = output
        for other in self.views.get(target, ()):
            if other() is not None and other() is not target and other() is not output:
                self.stale[other()] = True


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


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

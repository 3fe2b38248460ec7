"""A forward pass whose activations have another backward step than their derivative.

`Activations` is a `TorchFunctionMode`: it sees functional calls, in-place variants and reused modules alike, where
hooks on modules see neither the first nor tell the last apart. Operations that are linear in what depends on the image
run as they are; one that is neither linear nor has a step of its own is an error that names it, where the logits hang
on it.
"""

from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointError
from torch.utils.weak import WeakIdKeyDictionary

from attacks.errors import Refused
from benchmark.interpreters.attention import PARTS, is_of_each
from benchmark.interpreters.leaving import LEAVING, Numbers
from benchmark.interpreters.operations import POOL_MEAN, STRUCTURE, WRITES
from benchmark.interpreters.origins import (
    Ancestry,
    Strangers,
    elsewhere,
    refuse_changed,
    refuse_compiled,
    refuse_unseen,
)
from benchmark.interpreters.tracing import Call, by_its_own, name_of, refuse_out, tensors, values, written

LINEAR = STRUCTURE | POOL_MEAN | {
    "add", "iadd", "radd", "sub", "isub", "rsub", "neg", "dropout", "dropout2d", "feature_dropout", "alpha_dropout",
    "identity", "contiguous", "clone", "to", "float", "double",
}  # fmt: skip
# linear where one operand alone depends on the image; of a quotient, the first
PRODUCTS = {"mul", "imul", "rmul", "matmul", "linear", "conv1d", "conv2d", "conv3d", "batch_norm"}
TWO = {"mul", "matmul", "bmm", "mm", "einsum"}  # linear in each of two operands that depend on the image
QUOTIENTS = {"div", "idiv", "itruediv", "truediv"}

Step = Callable[..., Tensor]


@contextmanager
def no_checkpoint(method: str) -> Iterator[None]:
    """A checkpoint would run without the steps what it runs again: an error."""
    try:
        yield
    except CheckpointError:
        raise Refused(f"{method} cannot follow torch.utils.checkpoint; allowed: the model without it") from None


class Activations(TorchFunctionMode):
    """Follows what depends on the tensors given to `trace`; `steps` run in the place of the operations they name.

    A step is called with the operation in its pure form and its operands. Operations in `plain` run as they are.
    `product`, where there is one, is called with a function linear in each of two operands, and these; attention then
    runs in its parts. What depends on the image unseen, or lost its gradient, is refused where it is read. Operands of
    unseen origin that autograd does not join to it are held against those of other images.
    """

    def __init__(
        self, method: str, steps: dict[str, Step], plain: Set[str] = frozenset(), product: Step | None = None
    ) -> None:
        super().__init__()
        self.method, self.steps, self.plain, self.product = method, steps, plain, product
        self.traced: Any = WeakIdKeyDictionary()
        self.lost: Any = WeakIdKeyDictionary()  # depends on the image, without a gradient
        self.own: set[int] = set()  # parameters and buffers
        self.known: Any = WeakIdKeyDictionary()  # what the model made of them, or of nothing
        self.strangers: Strangers = []
        self.unruled: list[tuple[str, Ancestry]] = []  # operations that are neither linear nor have a step
        self.numbers = Numbers()
        self.ancestry = Ancestry()

    def trace(self, *followed: Tensor) -> None:
        """Begin with these tensors."""
        for tensor in followed:
            self.ancestry.root(tensor)
        self._follow(followed)

    def follow(self, model: nn.Module, start: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
        """The logits of `start`, held to hang on it by operations that were seen; `parameters` replace the model's."""
        refuse_compiled(self.method, model)
        logits = self._run(model, start, parameters)
        self._refuse_unruled(logits)
        if logits in self.traced:
            self.numbers.refuse_used(self.method, model, start)
            if self.strangers:
                other = Activations(self.method, self.steps, self.plain, self.product)
                other._run(model, elsewhere(start).requires_grad_(), parameters)
                refuse_changed(self.method, self.strangers, other.strangers)
            return logits
        self._check_origins("the output", [logits], is_read=True)
        raise Refused(
            f"{self.method} finds no way from the logits to the image: they do not depend on it, or lose their "
            "gradient (no_grad, detach)"
        )

    def _run(self, model: nn.Module, start: Tensor, parameters: dict[str, Tensor] | None) -> Tensor:
        self.trace(start)
        self.own = {id(t) for t in (*model.parameters(), *model.buffers(), *(parameters or {}).values())}
        try:
            with self, no_checkpoint(self.method):
                return functional_call(model, parameters, (start,)) if parameters else model(start)
        except RuntimeError as error:
            if self.unruled:  # images side by side may be more than what has no rule can bear
                raise self._no_rule(self.unruled[0][0]) from error
            raise

    def gradient(self, total: Tensor, images: Tensor, graph: bool = False) -> Tensor:
        """∂ total / ∂ images by the steps."""
        with no_checkpoint(self.method):
            return torch.autograd.grad(total, images, create_graph=graph)[0]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operands = values(func.__name__, args, kwargs)
        name = name_of(func)
        read = [t for t in operands if t in self.traced]
        self._check_origins(repr(name), operands, bool(read))
        if func.__name__ in LEAVING:
            self.numbers.note(self.method, func, [t for t in operands if t in self.traced or t in self.lost])
        if not read:
            return self._aside(func(*args, **kwargs), operands)
        refuse_out(self.method, func, kwargs)
        if self.product is not None and func.__name__ in PARTS:
            with self:
                return PARTS[name](*args, **kwargs)
        target, call = written(func, args, kwargs), Call(name, func, args, kwargs, read)
        if name in self.steps:
            output = self._step(func, self.steps[name], args, kwargs)
        elif self.product is not None and target is None and name in TWO and len(read) == 2 and is_of_each(call):
            output = self.product(call.on, *read)
        else:
            output = func(*args, **kwargs)
            results = tensors(output if target is None else (output, target))
            if not self._has_rule(call) and any(_has_values(t) for t in results):
                self._note_unruled(name, results if target is None else [*results, target._base])
        self._follow(tensors(output) if target is None else [*tensors(output), target, target._base])
        return output

    def _aside(self, output: Any, operands: Iterable[Tensor]) -> Any:
        """The output of an operation that nothing followed goes into."""
        if self.lost and any(t in self.lost for t in operands):
            mark = self.lost
        elif all(id(t) in self.own or t in self.known for t in operands):
            mark = self.known
        else:
            return output
        for tensor in tensors(output):
            mark[tensor] = True
        return output

    def _note_unruled(self, name: str, results: Iterable[Tensor | None]) -> None:
        """Remember the operation by its nodes in autograd's graph, as they are now: they may be written to later."""
        made = Ancestry()
        for tensor in results:
            if tensor is not None and tensor.requires_grad:
                if tensor.grad_fn is None:  # within a custom autograd.Function, whose graph is its own
                    raise self._no_rule(name)
                made.root(tensor)
        self.unruled.append((name, made))

    def _refuse_unruled(self, logits: Tensor) -> None:
        """Raise `Refused` for the first operation without a rule that the logits hang on."""
        for name, made in self.unruled:
            if made.depends(logits):
                raise self._no_rule(name)

    def _no_rule(self, name: str) -> Refused:
        return Refused(f"{self.method} has no rule for the operation {name!r}")

    def _has_rule(self, call: Call) -> bool:
        if call.name in WRITES or call.name == "getitem":
            return not call.is_steered
        if call.name in LINEAR or call.name in self.plain:
            return True
        if not call.is_of_one or by_its_own(call):
            return False
        return call.name in PRODUCTS or (call.name in QUOTIENTS and call.args and call.args[0] is call.read[0])

    def _follow(self, results: Iterable[Tensor | None]) -> None:
        for tensor in results:
            if tensor is None:
                continue
            if _has_values(tensor) and not (tensor.requires_grad and torch.is_grad_enabled()):
                self.lost[tensor] = True
                self.traced.pop(tensor, None)  # written to without a gradient
            else:
                self.traced[tensor] = True

    def _check_origins(self, name: str, operands: Iterable[Tensor], is_read: bool) -> None:
        """Raise `Refused` for an operand that depends on the image although nobody was seen to make it so."""
        for tensor in operands:
            if id(tensor) in self.own or tensor in self.traced:
                continue  # nearly always, so the cheap questions come first
            if is_read and tensor not in self.known and tensor not in self.lost:
                self.strangers.append((name, tensor))
            if (tensor in self.lost and (is_read or tensor.requires_grad)) or self.ancestry.depends(tensor):
                refuse_unseen(self.method, name)

    @staticmethod
    def _step(func: Any, step: Step, args: Any, kwargs: Any) -> Tensor:
        rest = dict(kwargs)
        first, *others = args or (rest.pop("input"),)
        if not (rest.pop("inplace", False) or func.__name__.endswith("_")):
            return step(func, first, *others, **rest)
        return first.copy_(step(lambda x, *a, **k: func(x.clone(), *a, **k), first, *others, **rest))


def _has_values(tensor: Tensor) -> bool:
    """Whether it is of numbers that change with the image's, and neither indices nor a mask."""
    return tensor.is_floating_point() or tensor.is_complex()


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

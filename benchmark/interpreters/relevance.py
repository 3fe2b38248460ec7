"""The tape: a forward pass that remembers how to hand relevance back, operation by operation.

`Tape` is a `TorchFunctionMode`. While it records, every operation on a tensor that depends on the input leaves a
closure that maps the relevance of its output to that of its inputs. The closures hold only what their rule needs and
are built from ordinary differentiable torch operations, so a heatmap is an honest function of every parameter: the
gradient of the heatmap is the true one, to any order. Functional calls, reused modules, inline arithmetic and in-place
variants (run in their pure form) are all seen; no hooks, no surgery on the model. An operation without a rule is an
error that names it, never a silently wrong map.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from inspect import Signature, signature
from typing import Any, NamedTuple
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from attacks.errors import Refused, UserError
from benchmark.interpreters.rules import Composite, Rule, Weighted, again, scaled, share, stabilise

Propagate = Callable[..., Sequence[Tensor]]  # relevance of the output -> relevance of each tape input

PASS = {"relu", "relu6", "hardtanh", "leaky_relu", "elu", "gelu", "silu", "softplus", "hardswish", "mish", "selu",
        "celu", "sigmoid", "tanh", "hardsigmoid", "half_huber", "dropout", "dropout2d", "feature_dropout",
        "alpha_dropout", "identity", "contiguous", "clone", "to", "float", "double"}  # fmt: skip
POSITIVE = {"relu", "relu6", "sigmoid", "hardsigmoid", "softplus", "half_huber"}  # the output is ≥ 0 whatever the input
KEEPS_SIGN = {"max_pool2d", "max_pool1d", "avg_pool2d", "avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d",
              "mean", "cat", "flatten", "reshape", "view", "dropout", "dropout2d", "add", "contiguous", "clone",
              "permute", "transpose", "getitem"}  # fmt: skip
POOL_MAX = {"max_pool2d", "max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool1d", "amax"}
POOL_MEAN = {"avg_pool2d", "avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool1d", "mean", "sum"}
STRUCTURE = {"flatten", "reshape", "view", "permute", "transpose", "unsqueeze", "squeeze", "getitem", "cat", "concat",
             "chunk", "split", "narrow", "pad", "unflatten", "movedim", "channel_shuffle", "pixel_shuffle", "stack",
             "expand"}  # fmt: skip


class Step(NamedTuple):
    """One recorded operation: its name and module, the nodes it read and wrote, and how relevance passes back."""

    name: str
    module: str
    inputs: list[int]
    outputs: list[int]
    propagate: Propagate | None


class Tape(TorchFunctionMode):
    """Records from `start(tensors)` on; `relevance(output, seed)` then walks back to those tensors, once."""

    def __init__(self, composite: Composite) -> None:
        super().__init__()
        self.composite = composite
        self.steps: list[Step] = []
        self.count = 0
        self.nodes: Any = WeakIdKeyDictionary()  # tensor -> node number
        self.renewed: Any = WeakIdKeyDictionary()  # tensor changed in place -> its new value
        self.views: Any = WeakIdKeyDictionary()  # tensor -> references to all that share its memory
        self.stale: Any = WeakIdKeyDictionary()  # tensors whose shared memory was changed through another one
        self.nonnegative: set[int] = set()
        self.weighted: dict[int, Weighted] = {}  # node of its output -> the operation
        self.readers: dict[int, int] = defaultdict(int)
        self.held: set[int] = set()  # nodes whose values a rule needs later
        self.recording = False
        self.seen_weighted = False
        self.scope: list[str] = []  # names of the modules now running, where somebody keeps them

    def start(self, tensors: Iterable[Tensor], is_input: bool) -> list[int]:
        """Begin to record, from these tensors; `is_input`: they are the network's input, so a `first` rule applies."""
        self.recording, self.seen_weighted = True, not is_input
        nodes = [self._node(tensor) for tensor in tensors]
        self.held.update(nodes)  # the caller's own memory
        return nodes

    def _node(self, tensor: Tensor) -> int:
        if tensor not in self.nodes:
            self.nodes[tensor] = self.count
            self.count += 1
        return self.nodes[tensor]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.recording:
            return func(*args, **kwargs)
        args, kwargs = _map(self.current, args), _map(self.current, kwargs)
        read = [t for t in _tensors((args, kwargs)) if t in self.nodes]
        if not read:
            return func(*args, **kwargs)
        if any(t in self.stale for t in read):
            raise UserError(
                f"LRP cannot follow {func.__name__!r}: it reads a tensor changed in place through a view of it"
            )
        name = func.__name__.strip("_")
        target, inplace = None, (func, args, kwargs)
        if (func.__name__.endswith("_") and not func.__name__.startswith("__")) or func.__name__.startswith("__i"):
            target, name, func = self._pure(func.__name__, args[0])
        elif getattr(func, "__module__", "") == "torch.nn.functional" and len(args) + len(kwargs) > 1:
            bound = _signature(func).bind(*args, **kwargs)
            if bound.arguments.get("inplace"):
                target = read[0]
                bound.arguments["inplace"] = False
                args, kwargs = bound.args, bound.kwargs
        inputs, propagate = [self._node(t) for t in read], None
        reusable = target is not None and target not in self.views and self.nodes[target] not in self.held
        if reusable and len(read) == 1:
            output = inplace[0](*inplace[1], **inplace[2])  # nobody needs the old value
            del self.nodes[target]
            target, written = None, [output]
        else:
            if name == "max_pool2d" and len(read) == 1 and not kwargs.get("return_indices"):
                output, propagate = _max_pool2d(*args, **kwargs)
            else:
                output = func(*args, **kwargs)
            written = [t for t in _tensors(output) if not any(t is r for r in read)]
        if not written:
            return output
        outputs = [self._node(t) for t in written]
        for node in inputs:
            self.readers[node] += 1
        for tensor in read:
            for other in written:
                if tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr():
                    family = self.views.setdefault(tensor, [ref(tensor)])
                    family.append(ref(other))
                    self.views[other] = family
        keeps = name in KEEPS_SIGN and (name != "add" or len(read) == 2)
        if name in POSITIVE or (keeps and self.nonnegative.issuperset(inputs)):
            self.nonnegative.update(outputs)
        propagate = propagate or self._propagate(name, func, args, kwargs, read, output)
        self.steps.append(Step(name, self.scope[-1] if self.scope else "", inputs, outputs, propagate))
        if target is not None:
            self.renewed[target] = output
            for other in self.views.get(target, ()):
                if other() is not None and other() is not target and other() is not output:
                    self.stale[other()] = True
        return output

    def current(self, tensor: Tensor) -> Tensor:
        """The tensor as it would be had its in-place changes happened in place."""
        while tensor in self.renewed:
            tensor = self.renewed[tensor]
        return tensor

    def _pure(self, name: str, target: Tensor) -> tuple[Tensor, str, Any]:
        pure = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div"}.get(name.strip("_"), name.strip("_"))
        func = getattr(torch, pure, None) or getattr(F, pure, None)
        if func is None:
            raise UserError(f"LRP has no rule for the in-place operation {name!r}")
        return target, pure, func

    def _hold(self, *tensors: Tensor) -> None:
        self.held.update(self._node(tensor) for tensor in tensors)

    def _propagate(self, name: str, func: Any, args: Any, kwargs: Any, read: list[Tensor], output: Any) -> Any:
        """The closure for this operation, or None where there is no rule (an error only if relevance reaches it)."""
        single = len(read) == 1
        if name in ("linear", "conv1d", "conv2d", "conv3d"):
            return self._weighted(name, args, kwargs, read, output)
        if name == "batch_norm" and single:
            return self._batch_norm(args, kwargs, read[0], output)
        if name == "add" and len(read) == 2 and kwargs.get("alpha", 1) == 1:
            self._hold(*read)
            return _residual(read[0], read[1], self.composite.add)
        if single and (name in PASS or name in ("add", "sub", "mul", "div", "rsub", "radd", "rmul")):
            # a scalar or a parameter beside the activation: an affine map of each value, like BatchNorm
            return (lambda r: (r,)) if output.shape == read[0].shape else None
        if single and name in POOL_MAX and isinstance(output, Tensor):
            self._hold(*read)
            return lambda r: _transpose(func, args, kwargs, read, r)
        if single and name in POOL_MEAN:
            self._hold(*read)
            stable = stabilise(output, 1e-9)
            return lambda r: (read[0] * _transpose(func, args, kwargs, read, r / stable)[0],)
        if name in STRUCTURE:
            if isinstance(output, Tensor):
                return lambda r: _transpose(func, args, kwargs, read, r)
            return lambda *r: _transpose(func, args, kwargs, read, r)
        return None

    def _weighted(self, name: str, args: Any, kwargs: Any, read: list[Tensor], output: Tensor) -> Propagate | None:
        if len(read) != 1:
            return None  # the weight depends on the input
        rule: Rule = self.composite.linear if name == "linear" else self.composite.conv
        if not self.seen_weighted and self.composite.first is not None:
            rule = self.composite.first
        self.seen_weighted = True
        op = (_linear if name == "linear" else _convolution(int(name[4])))(*args, **kwargs)
        op.output = output if rule.needs_output or self.composite.batch_norm == "fold" else None
        node = self._node(output)
        op.nonnegative = self._node(op.x) in self.nonnegative
        self.weighted[node] = op
        self._hold(op.x, *(() if op.output is None else (output,)))

        def propagate(relevance: Tensor) -> tuple[Tensor]:
            return (rule(op.folded if op.folded and self.readers[node] == 1 else op, relevance),)

        return propagate

    def _batch_norm(self, args: Any, kwargs: Any, x: Tensor, output: Tensor) -> Propagate | None:
        op = self.weighted.get(self._node(x))
        if op is not None and self.composite.batch_norm == "fold":
            op.folded = _fold(op, output, *args, **kwargs)
            self._hold(output)
        return lambda r: (r,)

    def relevance(self, output: Tensor, seed: Tensor, at: list[int]) -> list[Tensor | None]:
        """The relevance that reaches the nodes `at` when `output` starts with `seed`; None where none does."""
        total: dict[int, Tensor] = {self._node(self.current(output)): seed}
        self.weighted.clear()
        while self.steps:  # closures refer to the tape: taken off it, their tensors go at once and not by a later gc
            step = self.steps.pop()
            arriving = [total.get(node) for node in step.outputs]
            if all(r is None for r in arriving):
                continue
            if step.propagate is None:
                raise MissingRule(step.name, step.module)
            if len(arriving) > 1:
                parts = step.propagate(*arriving)
            else:
                parts = step.propagate(total.pop(step.outputs[0]) if step.outputs[0] not in at else arriving[0])
            for node, part in zip(step.inputs, parts, strict=True):
                total[node] = total[node] + part if node in total else part
        return [total.get(node) for node in at]


class MissingRule(Refused):
    """Relevance reached an operation that has no rule."""

    def __init__(self, name: str, module: str) -> None:
        super().__init__(f"LRP has no rule for the operation {name!r}" + (f" in module {module!r}" if module else ""))


@cache
def _signature(function: Callable[..., Any]) -> Signature:
    return signature(function)


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dictionaries, each once, in order."""
    found: list[Tensor] = []
    _visit(tree, found)  # not a closure: one that calls itself is a cycle, and would hold the tensors until a gc
    return found


def _visit(item: Any, found: list[Tensor]) -> None:
    if isinstance(item, Tensor):
        if not any(item is t for t in found):
            found.append(item)
    elif isinstance(item, (tuple, list)):
        for part in item:
            _visit(part, found)
    elif isinstance(item, dict):
        for part in item.values():
            _visit(part, found)


def _map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return function(tree)
    if type(tree) in (tuple, list):
        return type(tree)(_map(function, item) for item in tree)
    if isinstance(tree, dict):
        return {key: _map(function, item) for key, item in tree.items()}
    return tree


def _transpose(func: Any, args: Any, kwargs: Any, read: list[Tensor], relevance: Any) -> Sequence[Tensor]:
    """The vector-Jacobian product of an operation that is linear in `read` (or picks winners among them)."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in read]

        def leaf(tensor: Tensor) -> Tensor:
            return next((new for old, new in zip(read, leaves, strict=True) if old is tensor), tensor)

        output = func(*_map(leaf, args), **_map(leaf, kwargs))
    pairs = [(output, relevance)] if isinstance(output, Tensor) else list(zip(output, relevance, strict=True))
    pairs = [(o, r) for o, r in pairs if r is not None]
    return torch.autograd.grad(
        [o for o, _ in pairs],
        leaves,
        [r for _, r in pairs],
        create_graph=torch.is_grad_enabled(),
        materialize_grads=True,
    )


def _residual(a: Tensor, b: Tensor, form: str) -> Propagate | None:
    """A sum of two branches, split by their positive parts; in halves where neither has one."""
    if a.shape != b.shape:
        return None
    least = torch.finfo(a.dtype).tiny ** 0.5  # in the place of zero: it never divides by zero, and makes the halves

    def part(relevance: Tensor) -> Tensor:
        first = F.threshold(a + b if form == "altered" else a, least, least)
        return scaled(relevance, share(first, F.threshold(b, least, least).add_(first)))

    def propagate(relevance: Tensor) -> tuple[Tensor, Tensor]:
        share_of_a = again(part, relevance)
        return share_of_a, relevance - share_of_a

    return propagate


def _max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Propagate]:
    """Max-pooling and its winner-takes-all step, from one run of the kernel."""
    kernel, padding, dilation = (_tuple(value, 2) for value in (kernel_size, padding, dilation))
    stride = _tuple(stride, 2) if stride else kernel
    geometry = (kernel, stride, padding, dilation, ceil_mode)
    output, winners = torch.ops.aten.max_pool2d_with_indices(input, *geometry)
    step = torch.ops.aten.max_pool2d_with_indices_backward
    shape_of = input.detach()
    return output, lambda r: (step(r, shape_of, *geometry, winners),)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Weighted:
    return Weighted(input, weight, bias, None, False, F.linear, lambda s, w: s @ w)


def _convolution(dim: int) -> Callable[..., Weighted]:
    forward, backward = getattr(F, f"conv{dim}d"), getattr(F, f"conv_transpose{dim}d")

    def build(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Weighted:
        stride, dilation = _tuple(stride, dim), _tuple(dilation, dim)
        if isinstance(padding, str):
            reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            if padding == "same" and any(r % 2 for r in reach):
                raise UserError("LRP has no rule for a convolution with uneven padding='same'; pad explicitly")
            padding = tuple(r // 2 if padding == "same" else 0 for r in reach)
        padding = _tuple(padding, dim)
        size = input.shape[2:]
        pointwise = set(weight.shape[2:]) == {1} and max(stride) > 1 and not any(padding)
        every: Any = (..., *(slice(None, None, step) for step in stride))

        def apply(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
            return forward(x, w, b, stride, padding, dilation, groups)

        def transpose(s: Tensor, w: Tensor) -> Tensor:
            if pointwise:  # at the smaller size; the kernel for strides is several times slower
                result = s.new_zeros(len(s), input.shape[1], *size)
                result[every] = backward(s, w, None, 1, 0, 0, groups)
                return result
            rest = [
                n - ((m - 1) * st - 2 * p + d * (k - 1) + 1)
                for n, m, st, p, d, k in zip(size, s.shape[2:], stride, padding, dilation, w.shape[2:], strict=True)
            ]
            return backward(s, w, None, stride, padding, rest, groups, dilation)

        return Weighted(input, weight, bias, None, False, apply, transpose)

    return build


def _tuple(value: Any, dim: int) -> tuple[int, ...]:
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * dim if len(value) == 1 else value


def _fold(
    op: Weighted,
    output: Tensor,
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Weighted:
    """The weighted operation and the BatchNorm after it (in eval mode) as one weighted operation."""
    scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if op.bias is None else op.bias) - running_mean
    folded_bias = shift * scale + (0 if bias is None else bias)
    shape = (-1, *[1] * (op.weight.dim() - 1))
    return Weighted(op.x, op.weight * scale.view(shape), folded_bias, output, op.nonnegative, op.apply, op.transpose)

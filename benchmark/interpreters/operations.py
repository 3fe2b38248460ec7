"""The operations that relevance passes, by name, and how it passes each: `OPERATIONS` and `WEIGHTED`.

A way back is built from ordinary differentiable torch operations and holds only what it reads. Weighted operations
(convolutions and linear maps) take a rule of the composite (`benchmark.interpreters.rules`); what two activations make
together, and norms, those of `benchmark.interpreters.attention`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.errors import Refused, UserError
from benchmark.interpreters import attention
from benchmark.interpreters.layout import axis_of_images
from benchmark.interpreters.rules import Composite, Weighted, again, scaled, share, stabilise
from benchmark.interpreters.steps import Propagate, Way
from benchmark.interpreters.tracing import Call, tensors

PASS = {"relu", "relu6", "hardtanh", "leaky_relu", "elu", "gelu", "silu", "softplus", "hardswish", "mish", "selu",
        "celu", "sigmoid", "tanh", "hardsigmoid", "half_huber", "dropout", "dropout2d", "feature_dropout",
        "alpha_dropout", "identity", "contiguous", "clone", "to", "type_as", "float", "double", "normalize",
        "rmul"}  # fmt: skip
POSITIVE = {"relu", "relu6", "sigmoid", "hardsigmoid", "softplus", "half_huber"}  # the output is ≥ 0 whatever the input
KEEPS_SIGN = {"max_pool2d", "max_pool1d", "avg_pool2d", "avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d",
              "mean", "cat", "flatten", "reshape", "view", "dropout", "dropout2d", "add", "mul", "contiguous",
              "clone", "permute", "transpose", "getitem"}  # fmt: skip
POOL_MAX = {"max_pool2d", "max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool1d", "amax"}
POOL_MEAN = {"avg_pool2d", "avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool1d", "mean", "sum"}
STRUCTURE = {"flatten", "reshape", "view", "permute", "transpose", "unsqueeze", "squeeze", "getitem", "cat", "concat",
             "chunk", "split", "narrow", "pad", "unflatten", "movedim", "channel_shuffle", "pixel_shuffle", "stack",
             "expand", "roll", "swapaxes", "unbind", "mT", "expand_as"}  # fmt: skip
BILINEAR = {"matmul", "bmm", "mm", "einsum"}
UNBIASED = "linear map without a bias"
KEEPS_MAKER = STRUCTURE | {"dropout", "contiguous", "clone", "to", "float", "double", "mul", "div"}

WRITES = {"setitem", "copy", "fill", "zero", "masked_fill", "index_copy", "index_fill"}  # linear in old and new values


def run(call: Call) -> tuple[Any, Way | None]:
    """The operation's output, and its way back where that comes from the same run."""
    if call.name == "max_pool2d" and call.is_of_one and not call.kwargs.get("return_indices"):
        return _max_pool2d(*call.args, **call.kwargs)
    return call.function(*call.args, **call.kwargs), None


def is_nonnegative(call: Call, inputs: bool) -> bool:
    """Whether the output is known to be ≥ 0; `inputs`: whether all that it read is."""
    keeps = call.name in KEEPS_SIGN and (call.name not in ("add", "mul") or len(call.read) == 2)
    keeps = keeps and (call.name != "cat" or len(tensors((call.args, call.kwargs))) == len(call.read))
    return call.name in POSITIVE or (keeps and inputs)


def maker(call: Call) -> str:
    """The function that made the output's values, where it is one that can make a gate, or a linear map whose bias is
    still to come; else nothing."""
    if len(call.read) == 1 and (
        call.name in BILINEAR or (call.name == "linear" and _has_no_bias(*call.args, **call.kwargs))
    ):
        return UNBIASED
    if call.name in attention.GATES:
        return call.name
    return call.makers[0] if call.name in KEEPS_MAKER and len(call.read) == 1 else ""


def _has_no_bias(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether `F.linear` is given none, by these arguments."""
    return bias is None


def _unchanged(call: Call, output: Any, composite: Composite) -> Way | None:
    """Value by value: activation functions; a scalar or a parameter beside the activation is an affine map of each
    value, like BatchNorm."""
    if not call.is_of_one or output.shape != call.read[0].shape:
        return None
    return Way(lambda r: (r,))


def _quotient(call: Call, output: Any, composite: Composite) -> Way | None:
    """By a constant; c / h is no affine map of h."""
    if not call.is_of_input or call.kwargs.get("rounding_mode") is not None:
        return None
    return _unchanged(call, output, composite)


def _sum(call: Call, output: Any, composite: Composite) -> Way | None:
    if len(call.read) == 1:  # also h + h
        return _shift(call, output, composite)
    first, second = call.read
    if first.shape != second.shape or call.kwargs.get("alpha", 1) != 1:
        return None
    if composite.add == "proportional":
        return Way(lambda r: _in_proportion(first, second, output, r, composite.eps), (first, second, output))
    if composite.add == "normalised":
        axis = 0 if call.start is None else axis_of_images(output, call.start)
        return Way(lambda r: _normalised(first, second, output, r, composite.eps, axis), (first, second, output))
    return Way(_residual(first, second, composite.add), call.read)


def _in_proportion(a: Tensor, b: Tensor, output: Tensor, relevance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    s = share(relevance, stabilise(output, eps))
    return a * s, b * s


def _normalised(
    a: Tensor, b: Tensor, output: Tensor, relevance: Tensor, eps: float, axis: int = 0
) -> tuple[Tensor, Tensor]:
    """R_a ΣR |ΣR_a| / (ΣR_a (|ΣR_a| + |ΣR_b|)), R_a the proportional share, sums over an image (of that axis): shares
    of opposite signs do not grow beyond what they share out (Chefer et al. 2021, CVPR, equation 10)."""
    parts = _in_proportion(a, b, output, relevance, eps)
    shape = [-1 if i == axis else 1 for i in range(output.dim())]
    whole, *sums = (t.movedim(axis, 0).flatten(1).sum(1).view(shape) for t in (relevance, *parts))
    factor = whole / (sums[0].abs() + sums[1].abs()).clamp(min=torch.finfo(whole.dtype).tiny)
    return parts[0] * sums[0].sign() * factor, parts[1] * sums[1].sign() * factor


def _shift(call: Call, output: Tensor, composite: Composite) -> Way | None:
    """A constant beside an activation, added or subtracted. One that has places (a positional embedding or bias) keeps
    its share, and so does any other where sums are proportional, and the bias of a linear map that is written out
    (x @ w + b), as it does within F.linear; else that is an affine map, like BatchNorm."""
    if output.shape != call.read[0].shape or not (call.is_of_one or (call.name == "add" and len(call.read) == 1)):
        return None
    constants = [t for t in tensors((call.args, call.kwargs)) if t is not call.read[0]]
    has_places = any(sum(side > 1 for side in t.shape) > 1 for t in constants)
    if not has_places and composite.add != "proportional" and UNBIASED not in call.makers:
        return Way(lambda r: (r,))
    is_plain = call.name == "add" and constants and "alpha" not in call.kwargs
    constant = constants[0] if is_plain else call.on(torch.zeros_like(call.read[0]))
    return Way(lambda r: (attention.shifted(output, constant, r, composite.eps),), (output,))


def _multiplied(call: Call, output: Any, composite: Composite) -> Way | None:
    return (_unchanged if len(call.read) == 1 else attention.product_way)(call, output, composite)


def _winner(call: Call, output: Any, composite: Composite) -> Way | None:
    if len(call.read) > 1 or not isinstance(output, Tensor):
        return None
    return Way(lambda r: _transpose(call, r), call.read)


def _proportional(call: Call, output: Any, composite: Composite) -> Way | None:
    if len(call.read) > 1:
        return None
    stable = stabilise(output, 1e-9)
    return Way(lambda r: (call.read[0] * _transpose(call, r / stable)[0],), call.read)


def _moved(call: Call, output: Any, composite: Composite) -> Way | None:
    if call.is_steered:
        return None
    if isinstance(output, Tensor):
        return Way(lambda r: _transpose(call, r))
    return Way(lambda *r: _transpose(call, r))


def _transpose(call: Call, relevance: Any) -> Sequence[Tensor]:
    """The vector-Jacobian product of an operation that is linear in what it read (or picks winners among them)."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in call.read]
        output = call.on(*leaves)
    pairs = [(output, relevance)] if isinstance(output, Tensor) else list(zip(output, relevance, strict=True))
    pairs = [(o, r) for o, r in pairs if r is not None]
    return torch.autograd.grad(
        [o for o, _ in pairs],
        leaves,
        [r for _, r in pairs],
        create_graph=torch.is_grad_enabled(),
        materialize_grads=True,
    )


def _residual(a: Tensor, b: Tensor, form: str) -> Propagate:
    """A sum of two branches, split by their positive parts; in halves where neither has one."""
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
) -> tuple[Tensor, Way]:
    """Max-pooling and its winner-takes-all step, from one run of the kernel."""
    kernel, padding, dilation = (_tuple(value, 2) for value in (kernel_size, padding, dilation))
    stride = _tuple(stride, 2) if stride else kernel
    geometry = (kernel, stride, padding, dilation, ceil_mode)
    output, winners = torch.ops.aten.max_pool2d_with_indices(input, *geometry)
    step = torch.ops.aten.max_pool2d_with_indices_backward
    shape_of = input.detach()
    return output, Way(lambda r: (step(r, shape_of, *geometry, winners),))


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
        if input.dim() != dim + 2:
            raise Refused(f"LRP needs a batch in 'conv{dim}d' (got an input {tuple(input.shape)})")
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


def _instance_norm(call: Call, output: Tensor, composite: Composite) -> Way | None:
    """By the image's own statistics, or by running ones: then an affine map of each value, as BatchNorm."""

    def way(
        input: Tensor, running_mean: Any = None, running_var: Any = None, weight: Tensor | None = None,
        bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Way:  # fmt: skip
        if use_input_stats:
            return attention.grouped(input, output, input.shape[1], weight, eps, composite)
        if composite.add != "proportional":
            return Way(lambda r: (r,))
        constant = shift_of(input, running_mean, running_var, weight, bias, eps=eps)
        return Way(lambda r: (attention.shifted(output, constant, r, composite.eps),), (output,))

    return attention.norm_way(call, composite, way)


OPERATIONS: dict[str, Callable[[Call, Any, Composite], Way | None]] = {
    **dict.fromkeys(PASS, _unchanged),
    "add": _sum,
    **dict.fromkeys(("sub", "rsub", "radd"), _shift),
    "div": _quotient,
    "mul": _multiplied,
    **dict.fromkeys(BILINEAR, attention.bilinear_way),
    "softmax": attention.softmax_way,
    "layer_norm": attention.layer_norm_way,
    "rms_norm": attention.rms_norm_way,
    "group_norm": attention.group_norm_way,
    "instance_norm": _instance_norm,
    **dict.fromkeys(POOL_MAX, _winner),
    **dict.fromkeys(POOL_MEAN, _proportional),
    **dict.fromkeys(STRUCTURE | WRITES, _moved),
}
WEIGHTED: dict[str, Callable[..., Weighted]] = {"linear": _linear, **{f"conv{n}d": _convolution(n) for n in (1, 2, 3)}}


def folded(
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


def shift_of(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """The constant that BatchNorm adds in eval mode, beside its input (N, C, ...)."""
    shift = -running_mean * (running_var + eps).rsqrt() * (1 if weight is None else weight)
    return (shift if bias is None else shift + bias).view(-1, *[1] * (input.dim() - 2))

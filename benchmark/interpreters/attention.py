"""Relevance through attention, norms and products: how each hands that of its output down to its operands.

The AttnLRP form (Achtibat et al. 2024, arXiv 2402.05602) and the conservative form CP (Ali et al. 2022, arXiv
2202.07304), which holds attention weights and gates constant. Shapes are the operations' own. Everything is an ordinary
differentiable function of its tensors. `PARTS`: how functions run that wrap up an attention, or a part of it, so that
each of their operations is seen.
"""

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.interpreters.rules import Composite, share, stabilise
from benchmark.interpreters.steps import Way
from benchmark.interpreters.tracing import Call, count, tensors

Parts = tuple[Callable[[], Tensor], Callable[[], Tensor]]  # what each of two operands gets, computed when called
Bilinear = Callable[[Tensor, Tensor, Tensor], Parts]

# functions whose values are factors that open and close, those that bound them the most first
GATES = ("softmax", "sigmoid", "hardsigmoid", "tanh", "silu", "gelu", "hardswish", "relu")


def softmax(x: Tensor, output: Tensor, relevance: Tensor, dim: int) -> Tensor:
    """R_i = x_i (R_i − s_i Σ_j R_j) along `dim`, 0 where x is −∞ (Achtibat et al. 2024, proposition 3.1).

    The Taylor expansion at x, without its constant: it does not conserve relevance.
    """
    rest = torch.addcmul(relevance, output, relevance.sum(dim, keepdim=True), value=-1)
    return x.nan_to_num(nan=torch.nan, posinf=torch.inf, neginf=0.0) * rest


def product(relevance: Tensor, shapes: Sequence[torch.Size], gate: int | None) -> list[Tensor | None]:
    """Of y = Π x_k, each of n factors gets R/n (Achtibat et al. 2024, equation 14), summed over the axes along which it
    was repeated. `gate`: the factor that is held constant, and gets none."""
    parts = len(shapes) - (gate is not None)
    return [None if k == gate else (relevance / parts).sum_to_size(shape) for k, shape in enumerate(shapes)]


def gate_of(shapes: Sequence[torch.Size], makers: Sequence[str]) -> int | None:
    """Which of two factors is the gate: the smaller one, which is repeated, else the one that a bounding function made;
    None where neither is."""
    first, second = (shape.numel() for shape in shapes)
    if first != second:
        return 0 if first < second else 1
    ranks = [GATES.index(name) if name in GATES else len(GATES) for name in makers]
    return None if ranks[0] == ranks[1] else ranks.index(min(ranks))


def matmul(a: Tensor, b: Tensor, s: Tensor) -> Parts:
    """What a and b get of O = a b: A_ji Σ_p B_ip s_jp and B_ip Σ_j A_ji s_jp (Achtibat et al. 2024, proposition 3.3).

    s = R/(n O + ε), n the number of operands that get something.
    """
    return lambda: a * (s @ b.mT).sum_to_size(a.shape), lambda: b * (a.mT @ s).sum_to_size(b.shape)


def einsum(equation: str) -> Bilinear | None:
    """`matmul` for an einsum of two operands; None for one that repeats an index, or sums one operand alone."""
    operands, _, out = equation.replace(" ", "").partition("->")
    a, _, b = operands.partition(",")
    if not out or "," in b or any(len(set(term)) < len(term) or "." in term for term in (a, b, out)):
        return None
    if set(a) - set(b + out) or set(b) - set(a + out):
        return None
    of_a, of_b = f"{out},{b}->{a}", f"{out},{a}->{b}"
    return lambda x, y, s: (lambda: x * torch.einsum(of_a, s, y), lambda: y * torch.einsum(of_b, s, x))


def normalised(
    x: Tensor, output: Tensor, relevance: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float,
    centred: bool, stabiliser: float,
) -> Tensor:  # fmt: skip
    """R = x ⊙ Jᵀ(R/(y + ε)), J = diag(γ/σ)(I − 11ᵀ/n): the ε-rule for LayerNorm with σ held constant (Ali et al. 2022,
    section 4.2; Achtibat et al. 2024, section 3.3.3). RMSNorm: not `centred`, J = diag(γ/σ). β keeps its share.
    """
    dims = list(range(-len(shape), 0))
    power = x.var(dims, unbiased=False, keepdim=True) if centred else x.square().mean(dims, keepdim=True)
    s = share(relevance, stabilise(output, stabiliser)) * (power + eps).rsqrt()
    s = s if weight is None else s * weight
    return x * (s - s.mean(dims, keepdim=True) if centred else s)


def shifted(output: Tensor, constant: Tensor, relevance: Tensor, stabiliser: float) -> Tensor:
    """What x gets of y = x + c: R less the share c/y, which the constant keeps (the ε-rule; exactly R where c = 0). A
    mask, c = −∞, has no share."""
    constant = constant.nan_to_num(nan=torch.nan, posinf=torch.inf, neginf=0.0)
    return relevance - share(relevance * constant, stabilise(output, stabiliser))


def product_way(call: Call, output: Tensor, composite: Composite) -> Way | None:
    """Two activations, value by value; h * h is no product of two."""
    if not is_of_each(call):
        return None
    shapes = [t.shape for t in call.read]
    gate = gate_of(shapes, call.makers) if composite.gate == "constant" else None
    return Way(lambda r: product(r, shapes, gate))


def bilinear_way(call: Call, output: Tensor, composite: Composite) -> Way | None:
    """A product of matrices: of two activations, or of one and a constant, for which it is linear."""
    operands = tensors((call.args, call.kwargs))
    rule: Bilinear | None = matmul if call.name != "einsum" else einsum(call.args[0])
    if rule is None or len(operands) != 2 or not is_of_each(call) or min(t.dim() for t in operands) < 2:
        return None
    constant = [t for t, name in zip(call.read, call.makers, strict=True) if name == "softmax"]
    constant = constant if composite.attention == "constant" else []
    given = [t for t in call.read if not any(t is c for c in constant)]
    if not given:
        return None

    def propagate(r: Tensor) -> list[Tensor | None]:
        a, b = operands
        s = share(r, stabilise(len(given) * output, composite.eps))
        parts = {id(t): part for t, part in zip(operands, rule(a, b, s), strict=True)}
        return [parts[id(t)]() if any(t is g for g in given) else None for t in call.read]

    return Way(propagate, (*call.read, output))


def is_of_each(call: Call) -> bool:
    """Whether each tensor that is followed stands there once."""
    return all(count(call.args, t) + count(call.kwargs, t) == 1 for t in call.read)


PASSED = Way(lambda r: (r,))


def softmax_way(call: Call, output: Tensor, composite: Composite) -> Way | None:
    """None where attention weights are constant: then matrix products hand nothing down to them."""
    dim = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else None)
    if not call.is_of_input or dim is None or composite.attention == "constant":
        return None
    (x,) = call.read
    if composite.attention == "passed":
        return PASSED
    return Way(lambda r: (softmax(x, output, r, dim),), (x, output))


def layer_norm_way(call: Call, output: Tensor, composite: Composite) -> Way | None:
    def way(
        input: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Any = None, eps: float = 1e-5, *_: Any
    ) -> Way:
        options = (shape, weight, eps, True, composite.eps)
        return Way(lambda r: (normalised(input, output, r, *options),), (input, output))

    return norm_way(call, composite, way)


def rms_norm_way(call: Call, output: Tensor, composite: Composite) -> Way | None:
    def way(input: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Way:
        options = (shape, weight, torch.finfo(input.dtype).eps if eps is None else eps, False, composite.eps)
        return Way(lambda r: (normalised(input, output, r, *options),), (input, output))

    return norm_way(call, composite, way)


def grouped(x: Tensor, output: Tensor, groups: int, weight: Tensor | None, eps: float, composite: Composite) -> Way:
    """LayerNorm over the channels of each group and all places, with a weight a channel: group norm, and instance norm
    with as many groups as channels. (N, C, ...)."""
    wide = None if weight is None else weight.view(-1, *[1] * (x.dim() - 2)).expand(x.shape[1:]).reshape(groups, -1)

    def propagate(relevance: Tensor) -> tuple[Tensor]:
        a, b, r = (t.reshape(len(t), groups, -1) for t in (x, output, relevance))
        return (normalised(a, b, r, a.shape[2:], wide, eps, True, composite.eps).view_as(x),)

    return Way(propagate, (x, output))


def group_norm_way(call: Call, output: Tensor, composite: Composite) -> Way | None:
    def way(input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Any = None, eps: float = 1e-5) -> Way:
        return grouped(input, output, num_groups, weight, eps, composite)

    return norm_way(call, composite, way)


def norm_way(call: Call, composite: Composite, way: Callable[..., Way]) -> Way | None:
    if not call.is_of_input or composite.attention == "passed":
        return PASSED if call.is_of_input else None
    kwargs = {"shape" if name == "normalized_shape" else name: value for name, value in call.kwargs.items()}
    return way(*call.args, **kwargs)


def _opened(function: Any) -> Callable[..., Any]:
    """The same function of Python, which no longer offers itself as a whole to a `TorchFunctionMode`."""
    names = function.__globals__ | {"has_torch_function": lambda _: False}
    opened = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


def attention_weights(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """softmax(q kᵀ · scale + mask) and v of a call of `F.scaled_dot_product_attention`: their product is its result."""
    if enable_gqa:
        key, value = (t.repeat_interleave(query.size(-3) // t.size(-3), -3) for t in (key, value))
    scores = (query * (query.size(-1) ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = query.new_zeros(attn_mask.shape).masked_fill(~attn_mask, -torch.inf)
    if attn_mask is not None:
        scores = scores + attn_mask
    return F.dropout(F.softmax(scores, -1), dropout_p), value


def _scaled_dot_product_attention(*args: Any, **kwargs: Any) -> Tensor:
    weights, value = attention_weights(*args, **kwargs)
    return weights @ value


def _baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    product = batch1 @ batch2
    product = product if alpha == 1 else alpha * product
    return product + (input if beta == 1 else beta * input)


PARTS: dict[str, Callable[..., Any]] = {
    "baddbmm": _baddbmm,
    "multi_head_attention_forward": _opened(F.multi_head_attention_forward),
    "scaled_dot_product_attention": _scaled_dot_product_attention,
}

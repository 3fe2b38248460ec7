"""LRP rules: how one weighted operation z = W x + b hands the relevance of z down to x.

A rule is a frozen dataclass called with (operation, relevance of the output) that returns the relevance of the input.
Everything is an ordinary differentiable function of the activations and the weights. Shapes are the operation's own.
Sources: Bach et al. 2015 (ε, αβ), Montavon et al. 2017 (z⁺, zᴮ, w²), Montavon et al. 2019 (γ), Lapuschkin et al.
2019 (flat), Heo et al. 2019 and its released code (α1β0 with the bias, stabiliser 0.01).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attacks.errors import unknown


@dataclass
class Weighted:
    """A convolution or a linear map as it ran: input, parameters, output, and its linear map and transpose.

    `apply(x, weight, bias)` is the map with other values, `transpose(s, weight)` its adjoint with respect to x.
    `output` is None where the rule does not ask for it. `nonnegative`: the input is known to be ≥ 0.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    output: Tensor | None
    nonnegative: bool
    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    transpose: Callable[[Tensor, Tensor], Tensor]
    folded: "Weighted | None" = None  # this operation and the BatchNorm after it, as one

    @property
    def z(self) -> Tensor:
        return self.apply(self.x, self.weight, self.bias) if self.output is None else self.output


def stabilise(z: Tensor, eps: float) -> Tensor:
    """z moved away from zero by `eps`; z ≥ 0 takes the plus sign."""
    step = z.detach() + 0.0  # −0 becomes 0; `torch.where` would cost ten times as much
    torch.copysign(torch.full((), eps, dtype=z.dtype, device=z.device), step, out=step)
    return step.add_(z)


class _Share(torch.autograd.Function):
    """relevance / denominator. The exact quotient; saves two tensors where autograd's own would keep three."""

    @staticmethod
    def forward(relevance: Tensor, denominator: Tensor) -> Tensor:
        return relevance / denominator

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inputs[1], output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        denominator, output = ctx.saved_tensors
        first = grad / denominator
        return first, (first * output).neg_()


def share(relevance: Tensor, denominator: Tensor) -> Tensor:
    """The relevance per unit of the denominator, differentiable in both. May reuse the denominator's memory."""
    if relevance.requires_grad or denominator.requires_grad:
        return _Share.apply(relevance, denominator)
    return torch.div(relevance, denominator, out=denominator)


def scaled(factor: Tensor | float, fresh: Tensor) -> Tensor:
    """factor · fresh; reuses the memory of `fresh`, which nobody else holds, where no gradient asks for it."""
    graph = fresh.requires_grad or (isinstance(factor, Tensor) and factor.requires_grad)
    return factor * fresh if graph else fresh.mul_(factor)


def again(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """function(*tensors); what it computes on the way is computed again in the backward pass rather than kept."""
    if not torch.is_grad_enabled():
        return function(*tensors)
    return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)


@dataclass(frozen=True)
class Epsilon:
    """R_j = x_j Σ_i w_ij R_i / (z_i + ε sign z_i), bias in z (Bach et al. 2015, eq. 58; Heo et al. 2019, linear)."""

    eps: float = 0.01
    needs_output = True

    def __call__(self, op: Weighted, relevance: Tensor) -> Tensor:
        return scaled(op.x, op.transpose(share(relevance, stabilise(op.z, self.eps)), op.weight))


@dataclass(frozen=True)
class AlphaBeta:
    """R_j = Σ_i (α (w_ij x_j)⁺ / z⁺_i − β (w_ij x_j)⁻ / z⁻_i) R_i with α − β = 1 (Bach et al. 2015, eq. 60).

    `bias`: "positive", b⁺ joins z⁺ and b⁻ joins z⁻, the field's convention; "none", left out (the z⁺ rule of Montavon
    et al. 2017 for α = 1, β = 0); "twice", 2 b unclamped in z⁺, as the released code of Heo et al. 2019 computes it.
    """

    alpha: float = 1.0
    beta: float = 0.0
    eps: float = 0.01
    bias: Literal["positive", "none", "twice"] = "positive"

    @property
    def needs_output(self) -> bool:
        return self.beta != 0 and self.bias == "positive"

    def __call__(self, op: Weighted, relevance: Tensor) -> Tensor:
        z = again(partial(self._sum, op, 1), op.x, op.weight)
        t = None
        if self.beta and op.nonnegative and self.needs_output:
            t = (op.z - z).clamp_(max=0)  # z⁻ = z − z⁺ spares a forward map
        elif self.beta:
            t = again(partial(self._sum, op, -1), op.x, op.weight)
        s = share(relevance, stabilise(z, self.eps) if self.bias == "twice" else z.add_(self.eps))
        if t is None:
            return again(partial(self._back, op), op.x, op.weight, s)
        t = scaled(-self.beta, share(relevance, t.sub_(self.eps)))
        return again(partial(self._back, op), op.x, op.weight, scaled(self.alpha, s), t)

    def _sum(self, op: Weighted, sign: int, x: Tensor, weight: Tensor) -> Tensor:
        """z⁺ (sign 1) or z⁻ (−1), with the bias that is its share."""
        bias = None if op.bias is None or self.bias == "none" else half(op.bias, sign)
        if op.bias is not None and self.bias == "twice":
            bias = 2 * op.bias
        if op.nonnegative:
            return op.apply(x, half(weight, sign), bias)
        z = op.apply(half(x, 1), half(weight, sign), bias)
        return z.add_(op.apply(half(x, -1), half(weight, -sign), None))

    @staticmethod
    def _back(op: Weighted, x: Tensor, weight: Tensor, s: Tensor, t: Tensor | None = None) -> Tensor:
        """What s hands down by the positive contributions, and t by the negative ones."""

        def down(x: Tensor, sign: int) -> Tensor:
            c = op.transpose(s, half(weight, sign))
            return scaled(x, c if t is None else c.add_(op.transpose(t, half(weight, -sign))))

        if op.nonnegative:
            return down(x, 1)
        return down(half(x, 1), 1).add_(down(half(x, -1), -1))


def half(tensor: Tensor, sign: int) -> Tensor:
    """The positive part (sign 1) or the negative one (−1)."""
    return tensor.relu() if sign > 0 else tensor.clamp(max=0)  # the gradient of `clamp` is ten times slower


@dataclass(frozen=True)
class Gamma:
    """Positive contributions weigh 1 + γ: R_j = Σ_i (x_j w_ij + γ (x_j w_ij)⁺) / (z_i + γ z⁺_i) R_i (Montavon 2019)."""

    gamma: float = 0.25
    eps: float = 0.01
    needs_output = True

    def __call__(self, op: Weighted, relevance: Tensor) -> Tensor:
        positive = half(op.weight, 1)
        bias = None if op.bias is None else half(op.bias, 1)
        if op.nonnegative:
            z = torch.add(op.z, op.apply(op.x, positive, bias), alpha=self.gamma)
            s = share(relevance, stabilise(z, self.eps))
            return scaled(op.x, op.transpose(s, op.weight + self.gamma * positive))
        negative, x_pos, x_neg = half(op.weight, -1), half(op.x, 1), half(op.x, -1)
        z = op.z + self.gamma * (op.apply(x_pos, positive, bias) + op.apply(x_neg, negative, None))
        s = share(relevance, stabilise(z, self.eps))
        boost = x_pos * op.transpose(s, positive) + x_neg * op.transpose(s, negative)
        return op.x * op.transpose(s, op.weight) + self.gamma * boost


@dataclass(frozen=True)
class ZBox:
    """zᴮ for inputs in [low, high] (Montavon et al. 2017, eq. 15): z = W x − W⁺ low − W⁻ high, no bias.

    The default bounds hold ImageNet-normalised pixels, which lie in [−2.12, 2.64].
    """

    low: float = -3.0
    high: float = 3.0
    eps: float = 1e-9
    needs_output = False

    def __call__(self, op: Weighted, relevance: Tensor) -> Tensor:
        positive, negative = half(op.weight, 1), half(op.weight, -1)
        low, high = torch.full_like(op.x, self.low), torch.full_like(op.x, self.high)
        z = op.apply(op.x, op.weight, None) - op.apply(low, positive, None) - op.apply(high, negative, None)
        s = share(relevance, stabilise(z, self.eps))
        return op.x * op.transpose(s, op.weight) - low * op.transpose(s, positive) - high * op.transpose(s, negative)


@dataclass(frozen=True)
class WSquare:
    """R_j = Σ_i w_ij² / Σ_j' w_ij'² R_i (Montavon et al. 2017, eq. 12); flat: the same with w = 1."""

    flat: bool = False
    eps: float = 1e-9
    needs_output = False

    def __call__(self, op: Weighted, relevance: Tensor) -> Tensor:
        weight = torch.ones_like(op.weight) if self.flat else op.weight.square()
        z = op.apply(torch.ones_like(op.x), weight, None)
        return op.transpose(share(relevance, z + self.eps), weight)


Rule = Epsilon | AlphaBeta | Gamma | ZBox | WSquare

RULES: dict[str, Rule] = {
    "epsilon": Epsilon(),
    "alpha1_beta0": AlphaBeta(),
    "alpha2_beta1": AlphaBeta(alpha=2, beta=1),
    "gamma": Gamma(),
    "z_plus": AlphaBeta(bias="none"),
    "z_box": ZBox(),
    "w_square": WSquare(),
    "flat": WSquare(flat=True),
}


@dataclass(frozen=True)
class Composite:
    """Which rule each operation takes. `first`: the first weighted operation of the network, if it differs; of two that
    read its input side by side, both. `names`: the weighted operations that run in a module of that name, at any depth
    (the innermost name counts); a name comes before `first`, and each must be of use.

    `batch_norm`: "pass" hands the relevance through unchanged (Heo et al. 2019); "fold" merges a BatchNorm that
    directly follows a weighted operation into it (the two give unrelated maps). `add`: a residual sum is split by the
    positive parts of its branches; "altered" does so with the first branch as the released code has it after its
    in-place add, that is with the sum in the branch's place; "proportional" by their values, as in the ε-rule, where
    constants that are added, and a BatchNorm that is not folded, also keep their share; "normalised" by their values
    too, then each branch as a whole scaled, so that both have the sign of what they share out.

    `attention`: "product" hands relevance to values and weights in halves, "constant" to values alone, "passed" as
    "product", and through softmax and norms unchanged. `gate`: of two
    activations multiplied value by value both get half ("halves"), or that which is no gate all ("constant": squeeze
    and excitation, SiLU-gated layers). `eps` stabilises these, norms and proportional sums (`attention.py`).
    """

    conv: Rule = field(default_factory=AlphaBeta)
    linear: Rule = field(default_factory=Epsilon)
    first: Rule | None = None
    names: Mapping[str, Rule] = field(default_factory=dict, hash=False)
    batch_norm: Literal["pass", "fold"] = "pass"
    add: Literal["positive", "altered", "proportional", "normalised"] = "positive"
    attention: Literal["product", "constant", "passed"] = "product"
    gate: Literal["halves", "constant"] = "halves"
    eps: float = 0.01


_EXACT = Epsilon(1e-6)
_PROPORTIONAL = Composite(conv=_EXACT, linear=_EXACT, batch_norm="fold", add="proportional", eps=1e-6)
_Z_PLUS = AlphaBeta(bias="none", eps=1e-6)

COMPOSITES: dict[str, Composite] = {
    "default": Composite(),
    "heo2019": Composite(conv=AlphaBeta(bias="twice"), add="altered"),
    "epsilon": Composite(conv=Epsilon()),
    "z_plus": Composite(conv=RULES["z_plus"]),
    "alpha2_beta1": Composite(conv=RULES["alpha2_beta1"]),
    "gamma": Composite(conv=Gamma()),
    "epsilon_plus_flat": Composite(conv=RULES["z_plus"], first=RULES["flat"]),
    "epsilon_plus_w_square": Composite(conv=RULES["z_plus"], first=RULES["w_square"]),
    "epsilon_gamma_box": Composite(conv=Gamma(), first=ZBox()),
    "attn_lrp": _PROPORTIONAL,
    "cp_lrp": replace(_PROPORTIONAL, attention="constant", gate="constant"),
    "chefer2021": Composite(conv=_Z_PLUS, linear=_Z_PLUS, add="normalised", attention="passed", eps=1e-6),
}
CHOICES = {"batch_norm": ("fold", "pass"), "gate": ("constant", "halves")}


def composite(choice: "str | Composite", **options: str | None) -> Composite:
    """The composite of that name (or the one given), with `batch_norm` and `gate` replaced where they are given."""
    if isinstance(choice, str):
        if choice not in COMPOSITES:
            raise unknown("composite", choice, COMPOSITES)
        choice = COMPOSITES[choice]
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if value not in CHOICES[name]:
            raise unknown(f"{name} option", value, CHOICES[name])
    return replace(choice, **given) if given else choice  # type: ignore[arg-type]

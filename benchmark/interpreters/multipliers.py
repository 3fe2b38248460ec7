"""DeepLIFT's multipliers through products, softmax and norms: what one activation function at a time does not cover.

A product of two activations, of values or of matrices, hands each the mean of the other over image and baseline: its
Shapley value, and that of Lundberg and Lee's implementation. Softmax and norms are taken apart into what has a
multiplier, as softmax is there: exp, squares, sums, 1/x and 1/√x by the Rescale rule, and products. So the sum stays
complete. Batches hold `parts` of one size: image and baseline (2), before them what the multipliers are taken of (3).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attacks.errors import Refused

Step = Callable[..., Tensor]


@dataclass(frozen=True)
class Multipliers:
    """`rescale`: the step of an activation function, of that many `parts`."""

    rescale: Step
    parts: int

    @property
    def steps(self) -> dict[str, Step]:
        return {"softmax": self.softmax, "layer_norm": self.layer_norm, "rms_norm": self.rms_norm,
                "normalize": self.normalize}  # fmt: skip

    def product(self, function: Step, a: Tensor, b: Tensor) -> Tensor:
        """function(a, b), linear in each. Its slope by a is function(·, mean of b), and so for b."""
        size = len(a) // self.parts, len(b) // self.parts
        means = [(t[-2 * n : -n] + t[-n:]) / 2 for t, n in zip((a, b), size, strict=True)]
        if self.parts == 3:
            beside = function(a[size[0] :], b[size[1] :])
            a, b, value = a[: size[0]], b[: size[1]], beside.chunk(2)[0]
        else:
            means = [m.detach().repeat(2, *[1] * (m.dim() - 1)) for m in means]
            value = function(a, b)
        slope = function(a, means[1]) + function(means[0], b)
        output = value.detach() + (slope - slope.detach())
        return output if self.parts == 2 else torch.cat([output, beside])

    def softmax(self, _: Step, x: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
        if dim is None:
            raise Refused("deep_lift has no rule for the operation 'softmax' without dim")
        x = x.nan_to_num(nan=torch.nan, posinf=torch.inf, neginf=torch.finfo(x.dtype).min / 4)
        most = torch.stack(x.detach().chunk(self.parts)).amax(0).amax(dim, keepdim=True)  # changes no softmax
        e = self.rescale(torch.exp, x - most.repeat(self.parts, *[1] * (x.dim() - 1)))
        return self.product(torch.mul, e, self.rescale(torch.reciprocal, e.sum(dim, keepdim=True)))

    def layer_norm(
        self, _: Step, x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
        bias: Tensor | None = None, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        centred = x - x.mean(list(range(-len(normalized_shape), 0)), keepdim=True)
        y = self.rms_norm(_, centred, normalized_shape, weight, eps)
        return y if bias is None else y + bias

    def rms_norm(
        self, _: Step, x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None,
        eps: float | None = None,
    ) -> Tensor:  # fmt: skip
        power = self.rescale(torch.square, x).mean(list(range(-len(normalized_shape), 0)), keepdim=True)
        inverse = self.rescale(torch.rsqrt, power + (torch.finfo(x.dtype).eps if eps is None else eps))
        y = self.product(torch.mul, x, inverse)
        return y if weight is None else y * weight

    def normalize(
        self, _: Step, x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None
    ) -> Tensor:
        if p != 2:
            raise Refused(f"deep_lift has no rule for the operation 'normalize' with p={p}")
        power = self.rescale(torch.square, x).sum(dim, keepdim=True)
        return self.product(torch.mul, x, self.rescale(lambda u: u.clamp(min=eps**2).rsqrt(), power))

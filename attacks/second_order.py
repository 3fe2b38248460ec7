"""BatchNorm and convolution with cheap second derivatives, for losses that hold a gradient of the model by its input.

torch's double backward of BatchNorm takes some sixty passes over the activations and loses their memory layout; the
closed form below takes about fifteen and keeps it. That of a convolution finds the weight's gradient by a convolution of
transposed tensors; here it is torch's own weight gradient. First derivatives are torch's own.

BatchNorm: x̂ = (x − μ) r, r = (σ² + ε)^(−1/2), over the M values of a channel; y = γ x̂ + β. With g = ∂/∂y, and u the
gradient by ∂/∂x:

    ∂/∂x   = γ r (g − ḡ − x̂ C/M),           A = Σ u (g − ḡ),  B = Σ u x̂,  C = Σ g x̂
    u·∂/∂x = γ r (A − B C/M), whose gradients are
    by g:  γ r (u − ū − x̂ B/M)
    by x:  −γ r²/M (x̂ (A − 3 B C/M) + (u − ū) C + (g − ḡ) B)
    by γ:  r (A − B C/M)

Convolution: ∂/∂x = W* g, so u·∂/∂x = g·(W u): by g it is W u, by W what the weight's gradient is for input u.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


class SecondOrder(TorchFunctionMode):
    """While it is active, `F.conv2d`, and `F.batch_norm` by the batch's own statistics, have these derivatives.

    The second derivative is that of the gradient by the input; one of a gradient by a parameter is an error.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return REPLACED.get(func, func)(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training or weight is None or bias is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Any, var: Any, momentum: float, eps: float
    ) -> Any:
        y, mu, r = torch.native_batch_norm(x, weight, bias, mean, var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mu, r)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight, mu, r = ctx.saved_tensors
        return *_BatchNormGradient.apply(g, x, weight, mu, r, ctx.eps, ctx.needs_input_grad[:3]), None, None, None, None


class _BatchNormGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mu: Tensor, r: Tensor, eps: float, needed: Any) -> Any:
        ctx.save_for_backward(g, x, weight, mu, r)
        ctx.set_materialize_grads(False)
        g = _as(x, g)
        return aten.native_batch_norm_backward(g, x, weight, None, None, mu, r, True, eps, needed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor | None, by_weight: Tensor | None, by_bias: Tensor | None) -> Any:
        _only(by_weight, by_bias)
        if u is None:
            return (None,) * 7
        g, x, weight, mu, r = ctx.saved_tensors
        u, g, wide = _as(x, u), _as(x, g), (1, -1, *(1,) * (x.dim() - 2))
        dims, m = [0, *range(2, x.dim())], x.numel() // x.shape[1]

        def total(values: Tensor) -> Tensor:
            return values.sum(dims)

        normal = torch.addcmul((-mu * r).view(wide), x, r.view(wide))
        u_mean, g_mean = total(u) / m, total(g) / m
        a, b, c = total(u * g) - m * u_mean * g_mean, total(u * normal), total(g * normal)
        scale = weight * r
        by_g = (u * scale.view(wide)).addcmul_(normal, (-scale * b / m).view(wide)).sub_((scale * u_mean).view(wide))
        factor = -scale * r / m
        by_x = normal.mul_((factor * (a - 3 * b * c / m)).view(wide))
        by_x.addcmul_(u, (factor * c).view(wide)).addcmul_(g, (factor * b).view(wide))
        by_x.sub_((factor * (u_mean * c + g_mean * b)).view(wide))
        return by_g, by_x, r * (a - b * c / m), None, None, None, None


def _only(*others: Tensor | None) -> None:
    if any(other is not None for other in others):
        raise RuntimeError("a second derivative is known of gradients by the input alone, not of those by a parameter")


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str) or input.dim() != 4:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    sizes = tuple(list(size) if isinstance(size, (tuple, list)) else [size] * 2 for size in (stride, padding, dilation))
    return _Convolution.apply(input, weight, bias, sizes, groups)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sizes: Any, groups: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = (*sizes, False, [0, 0], groups)
        ctx.bias = None if bias is None else list(bias.shape)
        return aten.convolution(x, weight, bias, *ctx.options)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        needed = list(ctx.needs_input_grad[:3])
        return *_ConvolutionGradient.apply(g, *ctx.saved_tensors, ctx.bias, ctx.options, needed), None, None


class _ConvolutionGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, bias: Any, options: Any, needed: Any) -> Any:
        ctx.save_for_backward(g, weight)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return aten.convolution_backward(_as(x, g), x, weight, bias, *options, needed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor | None, by_weight: Tensor | None, by_bias: Tensor | None) -> Any:
        _only(by_weight, by_bias)
        if u is None:
            return (None,) * 6
        g, weight = ctx.saved_tensors
        u = _as(weight, u)
        by_g = aten.convolution(u, weight, None, *ctx.options)
        found = aten.convolution_backward(_as(u, g), u, weight, None, *ctx.options, [False, True, False])
        return by_g, None, found[1], None, None, None


def _as(x: Tensor, other: Tensor) -> Tensor:
    """`other` in the memory layout of `x`: mixed layouts are forty times slower."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return other.contiguous(memory_format=torch.channels_last)
    return other.contiguous()


REPLACED = {F.batch_norm: _batch_norm, F.conv2d: _convolution, torch.conv2d: _convolution}

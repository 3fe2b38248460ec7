"""BatchNorm and convolution with cheap second derivatives, for losses that hold a gradient of the model by its input.

torch's double backward of BatchNorm takes some sixty passes over the activations and loses their memory layout; the
closed form below takes about fifteen and keeps it. That of a convolution finds the weight's gradient by convolving
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

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


class SecondOrder(TorchFunctionMode):
    """While it is active, `F.conv2d`, and `F.batch_norm` by the batch's own statistics, have these derivatives.

    A backward pass that makes a graph (`create_graph`) finds gradients by images and activations alone, one that makes
    none those by parameters: together they are what a loss with such a gradient in it needs.
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
    ) -> Tensor:
        y, mu, r = torch.native_batch_norm(x, weight, bias, mean, var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mu, r)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        if torch.is_grad_enabled():
            return _BatchNormGradient.apply(g, *ctx.saved_tensors, ctx.eps), *[None] * 6
        x, weight, mu, r = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[:3])
        return *_batch_norm_backward(g, x, weight, mu, r, ctx.eps, needed), *[None] * 4


def _batch_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor, mu: Tensor, r: Tensor, eps: float, needed: list[bool]
) -> tuple[Tensor, ...]:
    return aten.native_batch_norm_backward(_as(x, g), x, weight, None, None, mu, r, True, eps, needed)


class _BatchNormGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mu: Tensor, r: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(g, x, weight, mu, r)
        return _batch_norm_backward(g, x, weight, mu, r, eps, [True, False, False])[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> Any:
        g, x, weight, mu, r = ctx.saved_tensors
        u, g, wide = _as(x, u), _as(x, g), (1, -1, *(1,) * (x.dim() - 2))
        dims, m = [0, *range(2, x.dim())], x.numel() // x.shape[1]
        u_mean, g_mean = u.sum(dims) / m, g.sum(dims) / m
        a = (u * g).sum(dims) - m * u_mean * g_mean
        b, c = (r * ((v * x).sum(dims) - m * mu * mean) for v, mean in ((u, u_mean), (g, g_mean)))
        scale = weight * r
        factor, by_normal = -scale * r / m, -scale * b / m
        by_g = _sum(wide, -scale * u_mean - by_normal * mu * r, (u, scale), (x, by_normal * r))
        by_normal = factor * (a - 3 * b * c / m)
        constant = -factor * (u_mean * c + g_mean * b) - by_normal * mu * r
        by_x = _sum(wide, constant, (x, by_normal * r), (u, factor * c), (g, factor * b))
        return by_g, by_x, r * (a - b * c / m), None, None, None


def _sum(wide: tuple[int, ...], constant: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """constant + Σ values · factor; constant and factors are a number a channel."""
    (values, factor), *others = terms
    total = torch.addcmul(constant.view(wide), values, factor.view(wide))
    for values, factor in others:
        total.addcmul_(values, factor.view(wide))
    return total


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
    options = (_pair(stride), _pair(padding), _pair(dilation), False, [0, 0], groups)
    return _Convolution.apply(input, weight, bias, options)


def _pair(size: int | Sequence[int]) -> list[int]:
    return [size] * 2 if isinstance(size, int) else list(size)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: Any) -> Tensor:
        y = aten.convolution(x, weight, bias, *options)
        ctx.save_for_backward(_as(y, x), weight)
        ctx.options, ctx.bias = options, None if bias is None else list(bias.shape)
        ctx.leaf = x.is_leaf  # the images, whose gradient is only asked for with a graph
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _ConvolutionGradient.apply(g, x, weight, ctx.options), None, None, None
        needed = [ctx.needs_input_grad[0] and not ctx.leaf, *ctx.needs_input_grad[1:3]]
        return *aten.convolution_backward(_as(x, g), x, weight, ctx.bias, *ctx.options, needed), None


class _ConvolutionGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, options: Any) -> Tensor:
        g = _as(x, g)
        ctx.save_for_backward(g, weight)
        ctx.options = options
        return aten.convolution_backward(g, x, weight, None, *options, [True, False, False])[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> Any:
        g, weight = ctx.saved_tensors
        u = _as(g, u)
        by_weight = aten.convolution_backward(g, u, weight, None, *ctx.options, [False, True, False])[1]
        return aten.convolution(u, weight, None, *ctx.options), None, by_weight, None


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return _Cat.apply(dim, *tensors)


class _Cat(torch.autograd.Function):
    """The gradient is split in one piece, so that the second one is joined in one, not summed from padded parts."""

    @staticmethod
    def forward(ctx: Any, dim: int, *tensors: Tensor) -> Tensor:
        ctx.dim, ctx.sizes = dim, [tensor.shape[dim] for tensor in tensors]
        return torch.cat(tensors, dim)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return None, *g.split(ctx.sizes, ctx.dim)


def _max_pool(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if return_indices or input.dim() != 4:
        options: dict[str, Any] = {"ceil_mode": ceil_mode, "return_indices": return_indices}
        return F.max_pool2d(input, kernel_size, stride, padding, dilation, **options)
    return _MaxPool.apply(input, (kernel_size, kernel_size if stride is None else stride, padding, dilation, ceil_mode))


class _MaxPool(torch.autograd.Function):
    """A choice of values, so the second derivative makes the same choice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, options: Any) -> Tensor:
        y, chosen = F.max_pool2d_with_indices(x, *options)
        ctx.save_for_backward(x, chosen)
        ctx.options = options
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _MaxPoolGradient.apply(g, *ctx.saved_tensors, ctx.options), None


class _MaxPoolGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, chosen: Tensor, options: Any) -> Tensor:
        ctx.save_for_backward(chosen)
        kernel, stride, padding, dilation, ceil_mode = options
        pairs = (
            size if isinstance(size, (tuple, list)) else [size] * 2 for size in (kernel, stride, padding, dilation)
        )
        return aten.max_pool2d_with_indices_backward(_as(x, g), x, *pairs, ceil_mode, chosen)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> Any:
        (chosen,) = ctx.saved_tensors
        return _as(chosen, u.flatten(2).gather(2, chosen.flatten(2)).view_as(chosen)), None, None, None


def _as(x: Tensor, other: Tensor) -> Tensor:
    """`other` in the memory layout of `x`: mixed layouts are forty times slower."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return other.contiguous(memory_format=torch.channels_last)
    return other.contiguous()


REPLACED = {F.batch_norm: _batch_norm, F.conv2d: _convolution, torch.cat: _cat, F.max_pool2d: _max_pool}

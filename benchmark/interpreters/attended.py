"""The attention weights of a forward pass, and how a row of relevance goes back through them.

A (M, heads, T, T) are the weights with which T tokens read each other, M the images N, or N · windows. They are read by
a `TorchFunctionMode` in `nn.MultiheadAttention`, in `F.scaled_dot_product_attention` and wherever a softmax is
multiplied to values (torchvision's Swin); the model computes what it did, but for rounding. In shifted windows hooks
say which place of the grid a window's token stands at. Nothing is left on the model, also where it raises.

Rows go back from the last attention to the first, (N, T) each: a product of rows costs no T × T matrix of an image.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary
from torchvision.models.swin_transformer import ShiftedWindowAttention

from attacks.errors import Refused
from benchmark.interpreters.attention import attention_weights
from benchmark.interpreters.layout import Layout, token_layout
from benchmark.interpreters.origins import refuse_compiled
from benchmark.interpreters.tracing import name_of, tensors

PASSED = {"dropout", "to", "contiguous", "clone"}  # from softmax to product
PRODUCTS = {"matmul", "bmm", "einsum"}
ARGUMENTS = signature(F.multi_head_attention_forward)


@dataclass(frozen=True)
class Windows:
    """Which tokens meet in windows: `places` (windows, T), each in a grid (h, w) by rows, h · w for one of padding."""

    places: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class Attention:
    """Weights (M, heads, T, T), where their gradient arrives (None without a graph), the windows, if any, and the
    tensor that was multiplied to values, of as many elements."""

    weights: Tensor
    edge: GradientEdge | None
    windows: Windows | None
    made: Tensor


class Reader(TorchFunctionMode):
    """Collects every attention in `found`, in the order in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Attention] = []
        self.windows: Windows | None = None
        self.softmaxes: Any = WeakIdKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, name_of(func)
        if name == "multi_head_attention_forward":
            return self._multi_head(func, args, kwargs)
        if name == "scaled_dot_product_attention":
            weights, values = attention_weights(*args, **kwargs)
            self._note(weights)
            return weights @ values
        output = func(*args, **kwargs)
        if name == "softmax" or (name in PASSED and args and self._is_softmax(args[0])):
            self.softmaxes[output] = True
        elif name in PRODUCTS:
            for tensor in tensors(args):
                if self._is_softmax(tensor) and tensor.dim() > 2:  # logits are no attention
                    self._note(tensor)
        return output

    def _is_softmax(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value in self.softmaxes

    def _multi_head(self, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """By the way that has the weights; a view of them comes out, the node before it is where a gradient arrives."""
        given = ARGUMENTS.bind(*args, **kwargs)
        given.apply_defaults()
        asked, average = given.arguments["need_weights"], given.arguments["average_attn_weights"]
        given.arguments.update(need_weights=True, average_attn_weights=False)
        output, weights = func(*given.args, **given.kwargs)
        edge = GradientEdge(*weights.grad_fn.next_functions[0]) if weights.grad_fn is not None else None
        self.found.append(Attention(weights, edge, self.windows, weights))
        if not asked:
            return output, None
        return output, weights.mean(-3) if average else weights

    def _note(self, weights: Tensor) -> None:
        edge = get_gradient_edge(weights) if weights.requires_grad else None
        self.found.append(Attention(weights, edge, self.windows, weights))


@contextmanager
def _windows_told(model: nn.Module, reader: Reader) -> Iterator[None]:
    """Tell the reader in which windows an attention runs, while the block runs."""

    def enter(module: nn.Module, args: Any) -> None:
        reader.windows = windows_of(args[0].shape[1:3], module.window_size, module.shift_size, args[0].device)

    def leave(*_: Any) -> None:
        reader.windows = None

    handles = []
    try:
        for module in model.modules():
            if isinstance(module, ShiftedWindowAttention):
                handles.append(module.register_forward_pre_hook(enter))
                handles.append(module.register_forward_hook(leave, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def windows_of(grid: Sequence[int], sides: Any, shifts: Any, device: torch.device) -> Windows:
    """The windows of `sides` into which torchvision's Swin cuts a grid (h, w): padded below and to the right to whole
    windows, then rolled up and left by `shifts`, but not along an axis that one window covers."""
    height, width = grid
    padding = [-length % side for length, side in zip(grid, sides, strict=True)]
    places = torch.arange(height * width, device=device).view(height, width)
    places = F.pad(places, (0, padding[1], 0, padding[0]), value=height * width)
    rolls = [0 if side >= length else -shift for side, length, shift in zip(sides, places.shape, shifts, strict=True)]
    places = places.roll(rolls, (0, 1)).unflatten(0, (-1, sides[0])).unflatten(2, (-1, sides[1]))
    return Windows(places.transpose(1, 2).flatten(2).flatten(0, 1), (height, width))


def read(
    method: str, model: nn.Module, images: Tensor, above: TorchFunctionMode | None = None
) -> tuple[Tensor, list[Attention]]:
    """Logits and the attentions of a forward pass, at least one. `above`: a mode that sees the operations first.

    Raises `Refused` for a network without attention, and where tokens are not all the places of a grid that read each
    other."""
    refuse_compiled(method, model)
    reader = Reader()
    with _windows_told(model, reader), reader, above or nullcontext():
        logits = model(images)
    if not reader.found:
        raise Refused(f"{method} needs a network with attention ({type(model).__name__} has none)")
    if torch.is_grad_enabled() and any(one.edge is None for one in reader.found):
        raise Refused(f"{method} needs the gradient of the attention, which does not depend on the images, or loses it")
    found = [_with_heads(one, len(images)) for one in reader.found]
    for one in found:
        shape = tuple(one.weights.shape)
        count = len(images) * (1 if one.windows is None else len(one.windows.places))
        if len(shape) != 4 or shape[0] != count or shape[2] != shape[3]:
            raise Refused(
                f"{method} needs attention (N, heads, T, T) of all tokens, or in torchvision's shifted windows "
                f"(got {shape}, images {tuple(images.shape)})"
            )
    return logits, found


def _with_heads(one: Attention, count: int) -> Attention:
    """(count · heads, T, T), as torch multiplies them where a mode above takes its function apart, by their heads."""
    if one.weights.dim() != 3 or len(one.weights) % count:
        return one
    return replace(one, weights=one.weights.unflatten(0, (count, -1)))


def gradients(score: Tensor, found: Sequence[Attention], graph: bool) -> list[Tensor]:
    """∂ score / ∂ weights of each, in the weights' shape. `score` (): summed over images."""
    edges = [one.edge for one in found]
    got = torch.autograd.grad(score, edges, create_graph=graph)  # type: ignore[arg-type]
    return [gradient.reshape(one.weights.shape) for gradient, one in zip(got, found, strict=True)]


def layout_of(method: str, one: Attention, images: Tensor) -> Layout:
    """How an attention's tokens lie. Raises `Refused` where they are no grid, with or without a class token."""
    if one.windows is not None:
        return Layout("tokens", one.windows.grid)
    count = one.weights.shape[-1]
    if (layout := token_layout(count, images)) is None:
        raise Refused(f"{method} needs h·w or 1 + h·w tokens (got {count}, images {tuple(images.shape)})")
    return layout


def back(
    method: str, found: Sequence[Attention], mixed: Sequence[Tensor], images: Tensor, *, normalised: bool
) -> Tensor:
    """A row of the product of I + B, from the last attention to the first, as maps (N, 1, h, w) of the first one's
    grid.

    `mixed`: B of each attention (M, T, T), not negative. The row is the class token's, where there is none the mean of
    all. `normalised`: each row of I + B is divided by its sum. A token that patches were merged into (Swin: two by two)
    hands to each of them alike.
    """
    layouts = [layout_of(method, one, images) for one in found]
    row = _start(layouts[-1], found[-1], len(images))
    for i in reversed(range(len(found))):
        if i + 1 < len(found) and layouts[i] != layouts[i + 1]:
            row = unmerged(method, row, layouts[i + 1], layouts[i])
        row = through(row, mixed[i], found[i].windows, normalised)
    return layouts[0].maps([row[..., None]])


def _start(layout: Layout, last: Attention, count: int) -> Tensor:
    """What the head reads, as far as it is known: the class token, else the mean of all. (N, T)."""
    tokens = layout.grid[0] * layout.grid[1]
    if layout.name == "class_token":
        return F.pad(last.weights.new_ones(count, 1), (0, tokens))
    return last.weights.new_full((count, tokens), 1 / tokens)


def gathered(values: Tensor, windows: Windows) -> Tensor:
    """(N, ..., h·w) -> (N, ..., windows, T), zero at places of padding."""
    return F.pad(values, (0, 1))[..., windows.places]


def scattered(values: Tensor, windows: Windows) -> Tensor:
    """(N, ..., windows, T) -> (N, ..., h·w): each in its place, those of padding left out."""
    length = windows.grid[0] * windows.grid[1]
    empty = values.new_zeros(*values.shape[:-2], length + 1)
    return empty.index_add(-1, windows.places.flatten(), values.flatten(-2))[..., :length]


def through(row: Tensor, mixed: Tensor, windows: Windows | None, normalised: bool) -> Tensor:
    """row · (I + B), the rows of I + B divided by their sums where `normalised`. (N, T), B (M, T, T) -> (N, T)."""
    if windows is None:
        if normalised:
            row = row / (1 + mixed.sum(-1))
        return row + (row[:, None] @ mixed)[:, 0]
    mixed = mixed.unflatten(0, (len(row), -1))  # (N, windows, T, T)
    real = (windows.places < windows.grid[0] * windows.grid[1]).to(mixed.dtype)[:, None]
    if normalised:
        row = row / (1 + scattered((mixed * real).sum(-1), windows))
    return row + scattered((gathered(row, windows)[:, :, None] @ mixed)[:, :, 0], windows)


def by_heads(method: str, one: Attention, gradient: Tensor, images: Tensor) -> Tensor:
    """Σ_i A[i, j] · mean_j' gradient[i, j'] over the patches j', as maps (N, heads, h, w)."""
    layout = layout_of(method, one, images)
    if one.windows is None:
        first = int(layout.name == "class_token")
        weight = gradient[..., first:].mean(-1, keepdim=True)
        return layout.maps([(one.weights * weight).sum(2).mT])
    real = (one.windows.places < layout.grid[0] * layout.grid[1]).to(gradient.dtype)[
        :, None, None
    ]  # (windows, 1, 1, T)
    gradient, weights = (t.unflatten(0, (len(images), -1)) for t in (gradient, one.weights))
    weight = (gradient * real).sum(-1, keepdim=True) / real.sum(-1, keepdim=True)
    rows = (weights * weight).sum(3)  # (N, windows, heads, T)
    return layout.maps([scattered(rows.transpose(1, 2), one.windows).mT])


def unmerged(method: str, row: Tensor, coarse: Layout, fine: Layout) -> Tensor:
    """A row (N, h·w) of the tokens that patches of two by two were merged into, in equal parts at those patches."""
    (height, width), halves = fine.grid, tuple((side + 1) // 2 for side in fine.grid)
    if coarse.grid != halves or "class_token" in (coarse.name, fine.name):
        raise Refused(f"{method} cannot follow tokens from {fine} to {coarse}; allowed: the same, or merged two by two")
    counts = F.avg_pool2d(F.pad(row.new_ones(1, 1, height, width), (0, width % 2, 0, height % 2)), 2) * 4
    parts = row.unflatten(1, halves)[:, None] / counts
    return parts.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :height, :width].flatten(1)

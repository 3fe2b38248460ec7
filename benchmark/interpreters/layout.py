"""How a target layer's input lies: what every map at a target layer must know before it sums over channels.

Four layouts have places on a grid, and are brought to (N, C, h, w): `channels_first` (N, C, h, w), `channels_last`
(N, h, w, C), `tokens` (N, h·w, C) and `class_token` (N, 1 + h·w, C), whose first token has no place and is left out.
The number of axes alone does not tell: a Swin block is given (N, h, w, C), and C may equal w. Autograd's graph of the
tensor leads back to an operation whose axes are known (a convolution, a pooling, BatchNorm; a linear layer or
LayerNorm, which work on the last one), through permutations that are counted. Where it does not, the layer itself may
tell, or the image: maps of pixels have the image's proportions, and so has the grid of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from attacks.errors import Refused

SECOND = ("Convolution", "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "NativeGroupNorm", "MaxPool2D",
          "AvgPool2D", "AdaptiveAvgPool2D", "MkldnnConvolution", "AdaptiveMaxPool2D", "Upsample",
          "PixelShuffle")  # fmt: skip
VIEWS = ("View", "UnsafeView", "ReshapeAlias")
FAR = 200  # operations to look back at
LAYOUTS = {
    "channels_first": "(N, C, h, w)",
    "channels_last": "(N, h, w, C)",
    "tokens": "(N, h·w, C)",
    "class_token": "(N, 1 + h·w, C)",
}


@dataclass(frozen=True)
class Layout:
    """A name of LAYOUTS, and the grid (h, w)."""

    name: str
    grid: tuple[int, int]

    def maps(self, parts: Sequence[Tensor]) -> Tensor:
        """(N, C, h, w) of tensors that lie so, joined along the channels; without the class token."""
        placed = [self._placed(part) for part in parts]
        return placed[0] if len(placed) == 1 else torch.cat(placed, 1)

    def _placed(self, tensor: Tensor) -> Tensor:
        if self.name == "channels_first":
            return tensor
        if self.name == "channels_last":
            return tensor.permute(0, 3, 1, 2)
        return tensor[:, int(self.name == "class_token") :].transpose(1, 2).unflatten(2, self.grid)


def read(
    model: nn.Module,
    module: nn.Module,
    taken: Sequence[Tensor],
    images: Tensor,
    *,
    default: bool,
    layout: str | None = None,
) -> Layout:
    """How what a layer of the model is given lies; `layout`: its name, where the caller knows it.

    Raises `Refused` for anything else than one or more tensors of the same of LAYOUTS, one for the images (N, C, H, W).
    A default layer that is a convolution must also have more than one place: else it stands in a gate or in the head.
    """
    found = []
    for value in taken:
        if not value.is_floating_point() or len(value) != len(images):
            dtype = str(value.dtype).removeprefix("torch.")
            raise _refusal(model, module, f"{tuple(value.shape)} of {dtype}, images {tuple(images.shape)}")
        nearest = _nearest([layout] if layout else _names(value, module, images), value.shape, images)
        if len(nearest) != 1:
            doubt = ", which fits two of them: name its layout" if nearest else ""
            wanted = f" for layout {layout}" if layout else ""
            raise _refusal(model, module, f"{tuple(value.shape)}{wanted}, images {tuple(images.shape)}{doubt}")
        found += nearest
    if len(set(found)) != 1:
        raise _refusal(model, module, f"{[tuple(value.shape) for value in taken]}")
    if default and isinstance(module, nn.Conv2d) and prod(found[0].grid) == 1 < images.shape[2:].numel():
        raise _refusal(model, module, f"{tuple(taken[0].shape)}, a single place; name another target layer")
    return found[0]


def token_layout(count: int, images: Tensor) -> Layout | None:
    """How so many tokens of the images (N, C, H, W) lie; None where they are no grid, or may be two."""
    nearest = _nearest(["tokens", "class_token"], torch.Size([len(images), count, 1]), images)
    return nearest[0] if len(nearest) == 1 else None


def _refusal(model: nn.Module, module: nn.Module, got: str) -> Refused:
    name = next(name for name, other in model.named_modules() if other is module)
    *others, last = LAYOUTS.values()
    return Refused(f"target layer {name!r} must have an input {', '.join(others)} or {last} (got {got})")


def _names(tensor: Tensor, module: nn.Module, images: Tensor) -> list[str]:
    """The layouts that a tensor may have by its number of axes and by which of them is the channels."""
    if tensor.dim() not in (3, 4) or _is_crossed(tensor, images):
        return []
    axis = _by_graph(tensor, images)
    if axis is None:
        axis = _by_module(tensor, module)
        if axis == 3 and not _fits(tensor.shape[1], tensor.shape[2], images):
            return []  # of each head, (N, heads, T, d): that works on the last axis as well
    if tensor.dim() == 4:
        axis = _by_sides(tensor, images) if axis is None else axis
        return {1: ["channels_first"], 3: ["channels_last"]}.get(axis, [])
    if axis is None and _grids(tensor.shape[2], images) | _grids(tensor.shape[2] - 1, images):
        return []  # the last axis may be the places as well
    return ["tokens", "class_token"] if axis in (None, 2) else []


def _nearest(names: list[str], shape: torch.Size, images: Tensor) -> list[Layout]:
    """Of the layouts of these names that a shape may be, the one whose grid is nearest to the images' proportions; two
    where they are as near."""
    off: dict[Layout, int] = {}
    for name in names:
        if len(shape) != LAYOUTS[name].count(",") + 1:
            continue
        if name.startswith("channels"):
            first = 2 if name == "channels_first" else 1
            off[Layout(name, (shape[first], shape[first + 1]))] = 0
        elif grids := _grids(shape[1] - (name == "class_token"), images):
            grid = min(grids, key=lambda grid: grids[grid])
            off[Layout(name, grid)] = grids[grid]
    return [lies for lies in off if off[lies] == min(off.values())]


def _grids(count: int, images: Tensor) -> dict[tuple[int, int], int]:
    """The grids of so many places that have the images' proportions but for rounding, with how far each is off."""
    height, width = images.shape[2:]
    far = {(h, count // h): abs(h * width - count // h * height) for h in range(1, count + 1) if count % h == 0}
    return {grid: off for grid, off in far.items() if off < max(height, width)}


def _is_crossed(tensor: Tensor, images: Tensor) -> bool:
    """Whether tokens (T, N, C), of as many images as tokens, are taken for (N, T, C): then images meet in a row."""
    if tensor.dim() != 3 or not 1 < len(tensor) == tensor.shape[1]:
        return False
    return tensor.requires_grad and images.requires_grad and not _is_of_the_first(tensor[0], images)


def _is_of_the_first(tensor: Tensor, images: Tensor) -> bool:
    """Whether, by autograd's graph, it depends on no other image than the first."""
    weights = torch.linspace(1, 2, tensor.numel(), dtype=tensor.dtype, device=tensor.device)
    with torch.enable_grad():
        total = (tensor.flatten() * weights).sum()  # unequal weights: the sum of a LayerNorm is constant
    gradient = torch.autograd.grad(total, images, retain_graph=True, allow_unused=True)[0]
    return gradient is None or not gradient[1:].any()


def axis_of_images(tensor: Tensor, images: Tensor) -> int:
    """Along which axis of an activation (N, ...) or (T, N, C) the images lie. Raises `Refused` where none is known to
    be theirs; T = N is told by autograd's graph, where there is one."""
    count = len(images)
    axes = [axis for axis, length in enumerate(tensor.shape[: 2 if tensor.dim() == 3 else 1]) if length == count]
    if axes == [0] or (axes and count == 1):
        return axes[0]
    if tensor.requires_grad and images.requires_grad:
        for axis in axes:
            if _is_of_the_first(tensor.select(axis, 0), images):
                return axis
    raise Refused(
        "LRP cannot tell which axis of a sum is that of the images; allowed: (N, ...) or (T, N, C) "
        f"(got {tuple(tensor.shape)}, images {count})"
    )


def _by_graph(tensor: Tensor, images: Tensor) -> int | None:
    """Which axis is the channels. None where the graph does not tell; 0 for a product of activations such as the
    weights of an attention, and for maps whose rows and columns are exchanged or torn apart."""
    if tensor is images or tensor.is_leaf:
        return None
    # axes[i]: that of the node's output which is the tensor's i-th, -1 where it was merged of two
    node, axes = tensor.grad_fn, list(range(tensor.dim()))
    for _ in range(FAR):
        name = node.name().removesuffix("0").removesuffix("1").removesuffix("Backward")  # type: ignore[union-attr]
        parent, rank = _parent(node), len(_shape(node))
        if name.startswith(SECOND):
            return _second(axes)
        if _works_on_the_last(node, name, parent):
            return axes.index(rank - 1)
        if name.startswith("ScaledDotProduct"):
            return 0 if rank == 4 else axes.index(2)
        if name in VIEWS and parent is not None and parent.name().startswith("Bmm"):
            return axes.index(rank - 1) if _is_weight(parent.next_functions[1][0]) else 0
        if name == "Permute":
            dims = [d % rank for d in _signed(node._saved_dims)]  # type: ignore[union-attr]
            axes = [-1 if axis < 0 else dims[axis] for axis in axes]
        elif name == "Transpose":
            first, second = (d % rank for d in _signed((node._saved_dim0, node._saved_dim1)))  # type: ignore[union-attr]
            axes = [{first: second, second: first}.get(axis, axis) for axis in axes]
        elif parent is None or len(_shape(parent)) != rank:
            unmerged = _unmerged(_shape(node), _shape(parent)) if name in VIEWS else None
            if unmerged is None:
                return None
            axes = [unmerged.get(axis, -1) for axis in axes]
        if parent is None or parent.name() == "torch::autograd::AccumulateGrad":
            return _second(axes) if parent is not None and _shape(parent) == tuple(images.shape) else None
        node = parent
    return None


def _second(axes: list[int]) -> int:
    """Where (N, C, h, w) went: the place of C, or 0 where it has none, or h and w stand in another order."""
    in_order = 2 not in axes or 3 not in axes or axes.index(2) < axes.index(3)
    return axes.index(1) if 1 in axes and in_order else 0


def _works_on_the_last(node: Any, name: str, parent: Any) -> bool:
    """Whether an operation's last axis is the channels: of a linear layer, or a LayerNorm over it alone."""
    if name == "NativeLayerNorm":
        return len(node._saved_normalized_shape) == 1
    return name == "Linear" or (name in VIEWS and len(_shape(parent)) == 2 and _shape(parent)[-1] == _shape(node)[-1])


def _unmerged(shape: tuple[int, ...], before: tuple[int, ...]) -> dict[int, int] | None:
    """The axes that a view of maps as tokens kept, axis -> axis before. None for any other view."""
    if len(shape) == 3 and len(before) == 4 and shape[0] == before[0]:
        if shape == (before[0], before[1], before[2] * before[3]):
            return {0: 0, 1: 1}
        if shape == (before[0], before[1] * before[2], before[3]):
            return {0: 0, 2: 3}
    return None


def _is_weight(node: Any) -> bool:
    """Whether an operand of a product is a parameter, or a view of one."""
    while node is not None and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return node is None or not node.next_functions


def _signed(dims: Sequence[int]) -> list[int]:
    """Axes as they were given: autograd keeps negative ones as unsigned numbers."""
    return [d - 2**64 if d >= 2**63 else d for d in dims]


def _shape(node: Any) -> tuple[int, ...]:
    metadata = getattr(node, "_input_metadata", None)
    return tuple(metadata[0].shape) if metadata else ()


def _parent(node: Any) -> Any:
    """The operand to go on with: of the result's shape, else the largest of its rank, else the first."""
    parents = [parent for parent, _ in node.next_functions if parent is not None]
    shape = _shape(node)
    for parent in parents:
        if _shape(parent) == shape:
            return parent
    of_rank = [parent for parent in parents if len(_shape(parent)) == len(shape)]
    return max(of_rank, key=lambda parent: prod(_shape(parent))) if of_rank else next(iter(parents), None)


def _by_module(tensor: Tensor, module: nn.Module) -> int | None:
    """By the first part of the layer that is known to work on one axis."""
    for part in module.modules():
        maps = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.MaxPool2d)
        if tensor.dim() == 4 and isinstance(part, maps):
            return 1
        if isinstance(part, nn.Linear) or type(part) is nn.LayerNorm:
            width = part.in_features if isinstance(part, nn.Linear) else part.normalized_shape[-1]
            if width == tensor.shape[-1] and (isinstance(part, nn.Linear) or len(part.normalized_shape) == 1):
                return tensor.dim() - 1
    return None


def _by_sides(tensor: Tensor, images: Tensor) -> int:
    """3 where the middle axes have the image's proportions and the last ones have not, else 1."""
    _, first, second, third = tensor.shape
    return 3 if _fits(first, second, images) and not _fits(second, third, images) else 1


def _fits(h: int, w: int, images: Tensor) -> bool:
    """Whether a grid has the images' proportions but for rounding."""
    height, width = images.shape[2:]
    return abs(h * width - w * height) <= max(height, width)

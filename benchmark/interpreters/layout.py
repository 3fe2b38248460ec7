"""Whether a layer's input is (N, C, h, w), which every map at a target layer takes for granted.

Four axes alone do not say so: a Swin block is given (N, h, w, C), and C may equal w. Autograd's graph of the tensor
leads back to an operation whose axes are known (a convolution, a pooling, BatchNorm; a linear layer or LayerNorm,
which work on the last one), through permutations that are counted. Where it does not, the layer itself may tell, or the
image: maps of pixels have the image's proportions.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from attacks.errors import Refused

SECOND = ("Convolution", "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "NativeGroupNorm", "MaxPool2D",
          "AvgPool2D", "AdaptiveAvgPool2D", "MkldnnConvolution", "AdaptiveMaxPool2D", "Upsample",
          "PixelShuffle")  # fmt: skip
VIEWS = ("View", "UnsafeView", "ReshapeAlias")
FAR = 200  # operations to look back at


def check_inputs(model: nn.Module, module: nn.Module, taken: Sequence[Tensor], images: Tensor, default: bool) -> None:
    """Raise `Refused` unless what a layer of the model is given is one or more maps of the images (N, C, H, W).

    A default layer that is a convolution must also have more than one place: else it stands in a gate or in the head.
    """
    for value in taken:
        shape = tuple(value.shape)
        if value.dim() != 4 or len(value) != len(images) or not value.is_floating_point():
            dtype = str(value.dtype).removeprefix("torch.")
            raise _refusal(model, module, f"{shape} of {dtype}, images {tuple(images.shape)}")
        if channel_axis(value, module, images) != 1:
            raise _refusal(
                model, module, f"{shape}, images {tuple(images.shape)}, whose second axis is not the channels"
            )
    if not taken or len({tuple(value.shape[2:]) for value in taken}) > 1:
        raise _refusal(model, module, f"{[tuple(value.shape) for value in taken]}")
    if default and isinstance(module, nn.Conv2d) and taken[0].shape[2:].numel() == 1 < images.shape[2:].numel():
        raise _refusal(model, module, f"{tuple(taken[0].shape)}, a single place; name another target layer")


def _refusal(model: nn.Module, module: nn.Module, got: str) -> Refused:
    name = next(name for name, other in model.named_modules() if other is module)
    return Refused(f"target layer {name!r} must have an input (N, C, h, w) (got {got})")


def channel_axis(tensor: Tensor, module: nn.Module, images: Tensor) -> int | None:
    """Which axis of a tensor with four is the channels: by its graph, by the layer it goes into, else by its sides."""
    axis = _by_graph(tensor, images)
    if axis is None:
        axis = _by_module(tensor, module)
    return axis if axis is not None else _by_sides(tensor, images)


def _by_graph(tensor: Tensor, images: Tensor) -> int | None:
    """None where the graph does not tell; 0 for a product of activations such as the weights of an attention."""
    if tensor is images or tensor.is_leaf:
        return None
    node, axes = tensor.grad_fn, [0, 1, 2, 3]  # axes[i]: that of the node's output which is the tensor's i-th
    for _ in range(FAR):
        name = node.name().removesuffix("0").removesuffix("1").removesuffix("Backward")  # type: ignore[union-attr]
        parent = _parent(node)
        if name.startswith(SECOND):
            return axes.index(1)
        if name == "NativeLayerNorm" and len(node._saved_normalized_shape) == 1:  # type: ignore[union-attr]
            return axes.index(3)
        if name == "Linear" or (name in VIEWS and len(_shape(parent)) == 2 and _shape(parent)[-1] == _shape(node)[-1]):
            return axes.index(3)
        if name.startswith("ScaledDotProduct"):
            return 0
        if name in VIEWS and parent.name().startswith("Bmm"):
            return axes.index(3) if _is_weight(parent.next_functions[1][0]) else 0
        if name == "Permute":
            dims = [d % 4 for d in _signed(node._saved_dims)]  # type: ignore[union-attr]
            axes = [dims[axis] for axis in axes]
        elif name == "Transpose":
            first, second = (d % 4 for d in _signed((node._saved_dim0, node._saved_dim1)))  # type: ignore[union-attr]
            axes = [{first: second, second: first}.get(axis, axis) for axis in axes]
        elif parent is None or len(_shape(parent)) != 4:
            return None
        if parent is None or parent.name() == "torch::autograd::AccumulateGrad":
            return axes.index(1) if parent is not None and _shape(parent) == tuple(images.shape) else None
        node = parent
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
    """The operand to go on with: of the result's shape, else of its rank, else the first."""
    parents = [parent for parent, _ in node.next_functions if parent is not None]
    shape = _shape(node)
    for fits in (lambda p: _shape(p) == shape, lambda p: len(_shape(p)) == len(shape)):
        for parent in parents:
            if fits(parent):
                return parent
    return parents[0] if parents else None


def _by_module(tensor: Tensor, module: nn.Module) -> int | None:
    """By the first part of the layer that is known to work on one axis."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.MaxPool2d)):
            return 1
        if isinstance(part, nn.Linear) or type(part) is nn.LayerNorm:
            width = part.in_features if isinstance(part, nn.Linear) else part.normalized_shape[-1]
            if width == tensor.shape[-1] and (isinstance(part, nn.Linear) or len(part.normalized_shape) == 1):
                return 3
    return None


def _by_sides(tensor: Tensor, images: Tensor) -> int:
    """3 where the middle axes have the image's proportions and the last ones have not, else 1."""
    (_, first, second, third), (height, width) = tensor.shape, images.shape[2:]

    def fits(h: int, w: int) -> bool:
        return abs(h * width - w * height) <= max(height, width)

    return 3 if fits(first, second) and not fits(second, third) else 1

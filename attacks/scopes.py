"""Scopes: which parameters of a model a manipulation may move."""

from collections.abc import Callable, Iterator

from torch import nn

from attacks.errors import Refused, unknown

NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
LINEAR = (nn.Linear, nn.modules.conv._ConvNd)


def parameters_in(model: nn.Module, scope: str) -> dict[str, nn.Parameter]:
    """The parameters of a scope by name, in the model's order.

    all         every one
    head        of the last linear layer or convolution
    bias        biases of linear layers and convolutions
    norm        of normalisation layers
    last_block  of the last child that convolves over more than a pixel (at all, where none does), and of what follows
                it; a model whose first such child is its whole trunk (VGG, DenseNet, MobileNet) is looked at there
    "Last" is in the order of registration, auxiliary heads aside. Raises `UserError` for another scope, `Refused` for
    a model without such parameters.
    """
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    moved = {id(p) for p in SCOPES[scope](model)}
    found = {name: p for name, p in model.named_parameters() if id(p) in moved}
    if not found:
        raise Refused(f"{type(model).__name__} has no parameter in scope {scope!r}")
    return found


def _head(model: nn.Module) -> Iterator[nn.Parameter]:
    layers = [m for name, m in model.named_modules() if isinstance(m, LINEAR) and "aux" not in name.lower()]
    return layers[-1].parameters() if layers else iter(())


def _bias(model: nn.Module) -> Iterator[nn.Parameter]:
    layers = (m for m in model.modules() if isinstance(m, LINEAR))
    return (p for m in layers for name, p in m.named_parameters(recurse=False) if name == "bias")


def _norm(model: nn.Module) -> Iterator[nn.Parameter]:
    return (p for m in model.modules() if isinstance(m, NORMALISATIONS) for p in m.parameters(recurse=False))


def _last_block(model: nn.Module) -> Iterator[nn.Parameter]:
    children = [child for name, child in model.named_children() if "aux" not in name.lower()]
    sizes = [_kernel(child) for child in children]
    convolving = [i for i, size in enumerate(sizes) if size > 1] or [i for i, size in enumerate(sizes) if size]
    if not convolving:
        return
    last = children[convolving[-1]]
    yield from _last_block(last) if convolving == [0] and [*last.children()] else last.parameters()
    for child in children[convolving[-1] + 1 :]:
        yield from child.parameters()


def _kernel(module: nn.Module) -> int:
    """The largest extent of its convolutions, pixels; 0: it has none."""
    convolutions = (m for m in module.modules() if isinstance(m, nn.modules.conv._ConvNd))
    return max((size for m in convolutions for size in m.kernel_size), default=0)


SCOPES: dict[str, Callable[[nn.Module], Iterator[nn.Parameter]]] = {
    "all": lambda model: model.parameters(),
    "head": _head,
    "bias": _bias,
    "norm": _norm,
    "last_block": _last_block,
}

"""Checks on twins of a model: rewrites of it whose weights differ and whose logits do not.

An explanation of what a model computes should be the same on its twin: `same_for_twin`. Three rewrites, each on chains
    writer (convolution, linear) -> [BatchNorm] -> ReLU, pooling, dropout, flatten -> reader (convolution, linear),
where nothing else reads what lies between:
- `permute_channels`: the channels between writer and reader in another order;
- `rescale`: c · relu(z) = relu(c · z) for c > 0: channels multiplied before the ReLU, divided in the reader (Dinh et
  al. 2017, Sharp minima can generalize for deep nets);
- `fold_batch_norm`: y = γ (W x + b − μ)/σ + β as one weighted operation.
Each returns a copy in eval mode, of the same class and with the same module names, and leaves the given model
untouched; None where the model cannot be traced (torch.fx) or nothing in it can be rewritten so. Modules that run more
than once or share their weights are left alone, and grouped convolutions neither write nor read a chain. Chains are
found in plain stacks (VGG, its classifier included), inside residual blocks (conv1 to conv2) and dense layers (conv1,
norm2, relu2, conv2); a residual sum or a concatenation ends one. All three apply to VGG with BatchNorm, ResNet and
DenseNet; a VGG without BatchNorm has none to fold, and DenseNet's norm1 and last norm follow no convolution.
"""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from benchmark.submissions.checks.setting import ALIKE, MOST, Interpreter, Skipped, blame, distances, heatmaps

Weighted = nn.Conv2d | nn.Linear
# Modules and functions with f(c · z) = c · f(z) for c > 0, on every value alone, or on every channel alone.
POINTWISE = {"ReLU", "LeakyReLU", "Dropout", "Identity", "relu", "relu_", "leaky_relu", "dropout"}
SPATIAL = {"MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d", "Dropout2d",
           "avg_pool2d", "adaptive_avg_pool2d", "dropout2d"}  # fmt: skip
FACTORS = (0.25, 0.5, 2.0, 4.0)  # powers of two, which round nothing: what differs is the method, not the arithmetic


class Chain(NamedTuple):
    """Modules of one copy that hold the same channels: `writer` makes them, `norms` scale them, `reader` reads them."""

    writer: Weighted
    norms: list[nn.BatchNorm2d]
    reader: Weighted


def permute_channels(model: nn.Module, seed: int = 0) -> nn.Module | None:
    """A twin with the channels of every chain in a random order."""
    generator = torch.Generator().manual_seed(seed)
    return _rewritten(model, lambda chain: permute(chain, generator))


def permute(chain: Chain, generator: torch.Generator) -> None:
    """The channels of the chain in a random order, in place."""
    order = torch.randperm(len(chain.writer.weight), generator=generator).to(chain.writer.weight.device)
    for module in (chain.writer, *chain.norms):
        for value in (module.weight, module.bias, *module.buffers(recurse=False)):
            if value is not None and value.dim():
                value.copy_(value[order])
    columns = _columns(chain)
    columns.copy_(columns[:, order])


def rescale(model: nn.Module, seed: int = 0) -> nn.Module | None:
    """A twin with the channels of every chain multiplied by random factors, and divided where they are read."""
    generator = torch.Generator().manual_seed(seed)

    def scale(chain: Chain) -> None:
        weight = chain.writer.weight
        drawn = torch.randint(len(FACTORS), (len(weight),), generator=generator)
        factors = torch.tensor(FACTORS)[drawn].to(weight)
        last = chain.norms[-1] if chain.norms else chain.writer
        last.weight.mul_(factors.view(-1, *[1] * (last.weight.dim() - 1)))
        if last.bias is not None:
            last.bias.mul_(factors)
        _columns(chain).div_(factors[:, None])

    return _rewritten(model, scale)


def fold_batch_norm(model: nn.Module) -> nn.Module | None:
    """A twin whose BatchNorms are merged into the convolution before them, where there is one."""
    twin = copy.deepcopy(model).eval()
    graph = _trace(twin)
    folded = False
    for node in graph.nodes if graph else []:
        norm, before = _module(twin, node), node.args[0] if node.args else None
        writer = _module(twin, before) if isinstance(before, fx.Node) and len(before.users) == 1 else None
        if _is_norm(norm) and isinstance(writer, nn.Conv2d):
            statistics: Any = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
            writer.weight, writer.bias = fuse_conv_bn_weights(writer.weight, writer.bias, *statistics)
            twin.set_submodule(str(node.target), nn.Identity().eval())
            folded = True
    return twin if folded else None


TWINS: dict[str, Callable[[nn.Module], nn.Module | None]] = {
    "permuted channels": permute_channels,
    "rescaled channels": rescale,
    "folded BatchNorm": fold_batch_norm,
}

_WHY = {
    "permuted channels": "the order of channels means nothing, so a map must not hang on it: treat all channels alike",
    "rescaled channels": "multiplying channels before a ReLU and dividing them after it changes nothing that the model "
    "computes, so part of this map tells of the weights' scale, which a model's owner is free to choose; stabilisers "
    "and gradients by a layer do this: take activation times gradient, or say so",
    "folded BatchNorm": "merging BatchNorm into the convolution before it changes nothing that the model computes, so "
    "this map tells of how the model is written down; rules that pass BatchNorm through do this: fold it, or say so",
}


def same_for_twin(kind: str, interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """A model that computes the same with other weights has the same maps, for most images."""
    twin = TWINS[kind](model)
    if twin is None:
        raise Skipped("the model has no such twin")
    maps = heatmaps(interpreter, model, images, targets)
    other = heatmaps(interpreter, twin, images, targets)
    if other.shape != maps.shape:
        return f"a model with {kind} has maps of shape {tuple(other.shape)}, not {tuple(maps.shape)}: {_WHY[kind]}"
    return blame(distances(maps, other) > ALIKE, f"a model with {kind} has other maps", _WHY[kind], MOST)


def _rewritten(model: nn.Module, change: Callable[[Chain], None]) -> nn.Module | None:
    twin = copy.deepcopy(model).eval()
    chains = find_chains(twin)
    with torch.no_grad():
        for chain in chains:
            change(chain)
    return twin if chains else None


def _columns(chain: Chain) -> Tensor:
    """The reader's weights by the channel they read: a view (outputs, channels, what each channel holds)."""
    return chain.reader.weight.view(len(chain.reader.weight), len(chain.writer.weight), -1)


def find_chains(model: nn.Module) -> list[Chain]:
    """Every chain of the model; their writers differ, and so do their readers."""
    graph = _trace(model)
    chains = [_follow(model, node) for node in graph.nodes] if graph else []
    return [chain for chain in chains if chain]


def _follow(model: nn.Module, node: fx.Node) -> Chain | None:
    """The chain that starts with this node, if one does."""
    writer = _module(model, node)
    if not _is_weighted(writer):
        return None
    norms: list[nn.BatchNorm2d] = []
    flat = isinstance(writer, nn.Linear)  # channels are the last dimension, else the second of four
    while len(node.users) == 1:
        node = next(iter(node.users))
        module = _module(model, node)
        name = _name(node, module)
        if _is_weighted(module):
            return Chain(writer, norms, module) if isinstance(module, nn.Linear) == flat else None
        if _is_norm(module) and not flat:
            norms.append(module)
        elif not flat and (name == "Flatten" or (name == "flatten" and node.args[1:] == (1,))):
            flat = True
        elif name not in POINTWISE and (flat or name not in SPATIAL):
            return None
    return None


def _trace(model: nn.Module) -> fx.Graph | None:
    try:
        return fx.Tracer().trace(model)
    except Exception:  # whatever stops the tracer, what runs after what is then unknown
        return None


def _module(model: nn.Module, node: fx.Node) -> nn.Module | None:
    """The module that the node calls; None if it has weights that are not its alone or are used a second time."""
    if node.op != "call_module":
        return None
    module = model.get_submodule(str(node.target))
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    own = [owners[id(p)] == 1 for p in module.parameters()]
    uses = sum(f"{other.target}.".startswith(f"{node.target}.") for other in node.graph.nodes)  # its weights count too
    computed = bool(own) and "weight" not in module._parameters  # by a parametrisation: nothing to write to
    return None if computed or not all(own) or (own and uses > 1) else module


def _is_weighted(module: nn.Module | None) -> TypeGuard[Weighted]:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _is_norm(module: nn.Module | None) -> TypeGuard[nn.BatchNorm2d]:
    return isinstance(module, nn.BatchNorm2d) and module.affine and module.running_var is not None


def _name(node: fx.Node, module: nn.Module | None) -> str:
    """What the node does: the class of its module, or the name of its function or method."""
    if node.op == "call_module":
        partly = isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1)
        return "" if partly else type(module).__name__
    return getattr(node.target, "__name__", str(node.target))

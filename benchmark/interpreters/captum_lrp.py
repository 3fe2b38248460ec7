"""Captum's LRP: the ε-rule with ε = 1e-9 in every layer, BatchNorm included, by hooks on modules.

With ε that small each layer's division by its output cancels the layer above's multiplication by its input, and what
is left is image · gradient (Ancona et al. 2018, proposition 3.2). Captum computes it where the network is a chain of
modules that it knows. It sees no functional call and cannot split relevance: through a residual sum each branch gets
all of it, before a concatenation it is multiplied twice, and functional average pooling shares it equally. Nothing of
this raises, so every network that is not such a chain is refused here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from captum.attr import LRP as CaptumsLRP
from captum.attr._core.lrp import SUPPORTED_LAYERS_WITH_RULES, SUPPORTED_NON_LINEAR_LAYERS
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from attacks.errors import Refused
from benchmark.interpreters.base import Interpreter
from benchmark.interpreters.captum_methods import CaptumInterpreter
from benchmark.interpreters.origins import refuse_half
from benchmark.interpreters.tracing import scopes, tensors

KNOWN = (*SUPPORTED_LAYERS_WITH_RULES, *SUPPORTED_NON_LINEAR_LAYERS)
PASSES = {"relu", "tanh", "dropout", "flatten", "reshape", "view", "contiguous", "clone"}  # right as functions, too


@dataclass(frozen=True)
class CaptumLRP(CaptumInterpreter):
    """Captum's LRP on chains of modules; the heatmap is that of our LRP: sum over channels, ReLU, min-max.

    It starts at the logit alone: Captum's hooks see no layer but the model's own, so there is no `target` to choose.
    """

    name: ClassVar[str] = "captum_lrp"

    def captum(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        refuse_half(self.name, "the images", [images])  # 1e-9 is none in float16, and quotients by 0 are infinite
        check(model, images[:1])
        with attributes_kept(model):
            return CaptumsLRP(model).attribute(images.clone(), target=targets)

    def heatmap(self, attribution: Tensor) -> Tensor:
        return Interpreter.heatmap(self, attribution)


def check(model: nn.Module, images: Tensor) -> None:
    """Raise `Refused` where the network is no chain of modules that Captum's LRP has a rule for."""
    for name, module in model.named_modules():
        if not list(module.children()) and type(module) not in KNOWN:
            raise _refusal(f"has no rule for {type(module).__name__} (module {name!r})")
    chain = Chain(dict(model.named_modules()))
    with torch.no_grad(), scopes(model, chain.running), chain:
        start = images.clone()
        chain.reads[start] = 0
        model(start)


class Chain(TorchFunctionMode):
    """Refuses an activation that is read twice, a layer that runs twice, and operations that Captum cannot see."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.modules = modules
        self.running: list[str] = []
        self.ran: set[str] = set()
        self.reads: Any = WeakIdKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        read = [t for t in tensors((args, kwargs or {})) if t in self.reads]
        written = tensors(output)
        if not read or not written:
            return output
        name, place = func.__name__.strip("_"), self.running[-1] if self.running else ""
        module = self.modules[place]
        if len(read) > 1 or len(written) > 1 or self.reads[read[0]]:
            raise _refusal(f"would have to split relevance at {name!r} in module {place!r}")
        if type(module) not in KNOWN and name not in PASSES:
            raise _refusal(f"does not see the function {name!r} in module {place!r}")
        if type(module) in SUPPORTED_LAYERS_WITH_RULES and place in self.ran:
            raise _refusal(f"cannot run module {place!r} twice")
        self.ran.add(place)
        self.reads[read[0]] = 1
        self.reads[written[0]] = 0
        return output


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Take off the modules what Captum leaves on them (the activations of the last pass)."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


def _refusal(reason: str) -> Refused:
    return Refused(f"captum_lrp cannot explain this model: Captum's LRP {reason}")

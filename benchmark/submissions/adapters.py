"""Methods that people have, as submissions: Captum's, those of pytorch-grad-cam's form, and plain functions.

    captum             an `Attribution` class, or an instance, made for any model: `attribute(images, target=targets)`
    pytorch-grad-cam   a class made of (model, target_layers), or an instance: `cam(input_tensor=..., targets=...)`
    function           (model, images, targets) -> maps, of torch or NumPy

Each is made anew for every model that is asked about, with the layer of the same name; no `layer`: the target layer of
the architecture. Maps go through min-max. Captum's and pytorch-grad-cam's have no graph to the weights.
"""

import copy
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from captum.attr import Attribution, LayerAttribution, NoiseTunnel
from torch import Tensor, nn

from attacks.errors import UserError
from attacks.heatmaps import min_max
from attacks.modes import modes_kept
from benchmark.interpreters.base import find_layer
from benchmark.interpreters.captum_lrp import attributes_kept

Function = Callable[[nn.Module, Tensor, Tensor], Any]


class Adapted:
    """A method as a submission: `(model, images (N, C, H, W), targets (N,)) -> heatmaps (N, h, w)` in [0, 1]."""

    def __init__(self, function: Function, name: str, differentiable: bool = False, stochastic: bool = False) -> None:
        self.function, self.name = function, name
        self.differentiable, self.stochastic = differentiable, stochastic

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        maps = self.function(model, images, targets)
        maps = torch.as_tensor(maps, device=images.device)
        if maps.dim() == 4 and maps.shape[1] == 1:
            maps = maps[:, 0]
        return min_max(maps.to(images.dtype) if not maps.is_floating_point() else maps)


def is_known(method: Any) -> bool:
    """Whether it is Captum's or of pytorch-grad-cam's form, class or instance: not to be called as submissions are."""
    return _is_captum(method) or _is_cam(method)


def adapted(method: Any, *, layer: str | None = None, name: str | None = None, **options: Any) -> Adapted:
    """The method as a submission. `options` go to `attribute`, or to the cam's call. Raises `UserError` for a method
    of no known form, and where a layer is given to one that has none."""
    title = name or _name(method)
    if _is_captum(method):
        kind = method if isinstance(method, type) else type(method)
        if layer is not None and not _takes_layer(kind):
            raise UserError(f"{kind.__name__} explains at the images: it takes no layer (got {layer!r})")
        stochastic = issubclass(kind, NoiseTunnel) or "Shap" in kind.__name__
        return Adapted(_Captum(method, layer, options), title, stochastic=stochastic)
    if _is_cam(method):
        return Adapted(_Cam(method, layer, options), title)
    if isinstance(method, type) or not callable(method):
        got = method.__name__ if isinstance(method, type) else type(method).__name__
        raise UserError(f"a method must be Captum's, of pytorch-grad-cam's form, or a function (got {got})")
    if layer is not None:
        raise UserError(f"a function takes no layer (got {layer!r})")
    flags = {flag: bool(getattr(method, flag, False)) for flag in ("differentiable", "stochastic")}
    return Adapted(method, title, **flags)


class _Captum:
    """Summed over channels: of an input's attribution the size, of a layer's what is above zero."""

    def __init__(self, method: Any, layer: str | None, options: dict[str, Any]) -> None:
        self.method, self.layer, self.options = method, layer, options

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        if isinstance(self.method, type):
            at = (find_layer(model, self.layer),) if _takes_layer(self.method) else ()
            made = self.method(model, *at)
        else:
            made = _moved(self.method, _model_of(self.method), model, self.layer)
        with attributes_kept(model):
            attribution = made.attribute(images, target=targets, **self.options)
        if not isinstance(attribution, Tensor) or attribution.dim() != 4:
            raise UserError(f"{type(made).__name__} must give one attribution (N, C, h, w) (got {_form(attribution)})")
        inner = getattr(made, "attribution_method", made)  # of a NoiseTunnel, which is at no layer itself
        values = attribution if isinstance(inner, LayerAttribution) else attribution.abs()
        return values.sum(1).relu()


class _Cam:
    """`targets` are functions of one image's logits, as pytorch-grad-cam's ClassifierOutputTarget."""

    def __init__(self, method: Any, layer: str | None, options: dict[str, Any]) -> None:
        self.method, self.layer, self.options = method, layer, options

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> np.ndarray:
        if isinstance(self.method, type):
            kind, layers = self.method, [find_layer(model, self.layer)]
        else:
            kind, old = type(self.method), self.method.model
            names = [self.layer] if self.layer else [_name_in(old, module) for module in self.method.target_layers]
            layers = [find_layer(model, name) for name in names]
        asked = [_Logit(int(target)) for target in targets]
        with modes_kept(list(model.modules())), _gradients_kept(model), torch.enable_grad():
            cam = kind(model=model, target_layers=layers)
            try:
                return np.asarray(cam(input_tensor=images.detach().requires_grad_(), targets=asked, **self.options))
            finally:  # it hooks the model, which must be left as it came
                held = getattr(cam, "activations_and_grads", None)
                if callable(release := getattr(held, "release", None)):
                    release()


@contextmanager
def _gradients_kept(model: nn.Module) -> Iterator[None]:
    """No gradients by the weights, then theirs as they were: pytorch-grad-cam clears them and calls `backward`."""
    before = [(weight, weight.requires_grad, weight.grad) for weight in model.parameters()]
    try:
        for weight, _, _ in before:
            weight.requires_grad_(False)
            weight.grad = None
        yield
    finally:
        for weight, needed, gradient in before:
            weight.requires_grad_(needed)
            weight.grad = gradient


class _Logit:
    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, output: Tensor) -> Tensor:
        return output[..., self.index]


def _is_captum(method: Any) -> bool:
    return isinstance(method, Attribution) or (isinstance(method, type) and issubclass(method, Attribution))


def _takes_layer(kind: type) -> bool:
    return "layer" in _parameters(kind)


def _parameters(kind: Any) -> set[str]:
    try:
        return set(inspect.signature(kind).parameters)
    except (TypeError, ValueError):  # of what is not written in Python
        return set()


def _is_cam(method: Any) -> bool:
    if isinstance(method, type):
        return {"model", "target_layers"} <= _parameters(method)
    has_model = isinstance(getattr(method, "model", None), nn.Module)
    return has_model and hasattr(method, "target_layers") and callable(method)


def _moved(method: Attribution, old: nn.Module, new: nn.Module, layer: str | None) -> Attribution:
    """A copy of Captum's instance that explains another model of the same architecture."""
    twin = copy.copy(method)
    for name, value in vars(method).items():
        if value is old:
            setattr(twin, name, new)
        elif isinstance(value, Attribution):  # of a NoiseTunnel
            setattr(twin, name, _moved(value, old, new, layer))
        elif isinstance(value, nn.Module):
            setattr(twin, name, find_layer(new, layer if name == "layer" and layer else _name_in(old, value)))
    return twin


def _model_of(method: Attribution) -> nn.Module:
    inner: Any = getattr(method, "attribution_method", method)
    model = getattr(inner, "model", None) or getattr(inner, "forward_func", None)
    if not isinstance(model, nn.Module):
        raise UserError(f"{type(method).__name__} must explain a torch.nn.Module (got {type(model).__name__})")
    return model


def _name_in(model: nn.Module, module: nn.Module) -> str:
    name = next((name for name, other in model.named_modules() if other is module), None)
    if not name:
        raise UserError(f"the method's layer, {type(module).__name__}, must be one of its model's")
    return name


def _name(method: Any) -> str:
    """In lower snake case, with the package that it is from: our own may have the short name."""
    kind = method if isinstance(method, type) or inspect.isroutine(method) else type(method)
    own = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind.__name__).lower()
    package = kind.__module__.partition(".")[0]
    return own if package in ("submission", "__main__") else f"{own}_of_{package}"


def _form(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__

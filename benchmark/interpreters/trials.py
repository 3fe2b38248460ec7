"""What is tried of a model once, on copies that share its weights: that an image's logits are its own, and gradients
their derivatives. A map would be wrong without a sign otherwise.
"""

import warnings
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.overrides import TorchFunctionMode

from attacks.errors import Refused, may_pass
from attacks.given import copied, is_transformed
from benchmark.interpreters.derivative import is_false
from benchmark.interpreters.door import double, mixing
from benchmark.interpreters.leaving import LEAVING
from benchmark.interpreters.origins import elsewhere
from benchmark.interpreters.tracing import name_of, tensors, values

MIXES = 1e-2  # of the largest logit: more than rounding, of any batch size, moves one
ALIKE = 0.1  # of how far other images are
ROUNDING = ("FakeQuantize", "FqHelper")  # whose gradient passes by the steps
HOOKS = {"register_hook", "grad_fn"}  # the latter for autograd's nodes, which take hooks as well
DOORS = {"attacks.given", "benchmark.interpreters.door"}  # put hooks on a model each time it is lent
# models, with how many hooks, and up to which order of gradients
_tried: "WeakKeyDictionary[nn.Module, tuple[int, int]]" = WeakKeyDictionary()


def try_once(method: str, model: nn.Module, images: Tensor, logits: Tensor, order: int) -> None:
    """Raise `Refused` where the `logits` (N, classes) of an image change with the other images of its batch, or where
    gradients up to `order` (0: none is read) are not derivatives. Warns of a model that is random.

    Costs a forward pass of the images and one of the first image alone (or beside another one), and central differences
    where the latter did what can change a gradient. A hook that is put on a module later has it tried again."""
    hooks = _count_hooks(model)
    before, done = _tried.get(model, (hooks, -1))
    if before != hooks or _has_global_hooks():
        done = -1
    if done >= order:
        return
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        unseen = isinstance(model, torch.jit.ScriptModule)
        suspicious = unseen or _is_suspicious(method, model, images, logits, done, order)
        with torch.enable_grad():
            if order and suspicious and is_false(model, elsewhere(images[:1]), order):
                raise Refused(
                    f"{method} reads gradients that are not the derivative of the logits: a hook changes them, or a "
                    "custom autograd.Function, detach, no_grad or a number (item) on the way from the image"
                )
    _tried[model] = hooks, order


def _count_hooks(model: nn.Module) -> int:
    """Those of its modules' forward passes, without the door's own; those on gradients are set aside there."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    hooks = [hook for module in model.modules() for kind in kinds for hook in vars(module).get(kind, {}).values()]
    return sum(getattr(hook, "__module__", "") not in DOORS for hook in hooks)


def _has_global_hooks() -> bool:
    return bool(modules._global_backward_hooks or modules._global_backward_pre_hooks)


def _is_suspicious(method: str, model: nn.Module, images: Tensor, logits: Tensor, done: int, order: int) -> bool:
    """Whether the model does what can change a gradient; if nothing was tried, whether images are on their own."""
    other = torch.cat([images[:1], elsewhere(images[:1])]) if _are_alike(images) else images[:1]
    trial, watch = double(model), _Watch()
    given = _first(trial, images) if done < 0 else None
    if order:
        with watch, torch.enable_grad():
            beside = trial(other.detach().requires_grad_())[0]
    else:
        beside = _first(trial, other)
    if given is not None:
        alone, explained = (_apart(o.detach(), given, s) for o, s in ((beside, MIXES), (logits[0], _rounding(given))))
        if alone or explained:  # in another batch, or where the method ran it
            again = _first(trial, images)
            mixed = alone and not _apart(again, given, MIXES) and _stays_apart(model, images, other)
            _judge(method, _apart(again, given, _rounding(given)), mixed)
    return watch.seen or _has_custom_nodes(beside.grad_fn)


def _are_alike(images: Tensor) -> bool:
    """Whether the batch is about one image many times: what mixes its images would not show in it."""
    return bool((images - images[:1]).abs().mean() <= ALIKE * (images - elsewhere(images)).abs().mean())


def _stays_apart(model: nn.Module, images: Tensor, other: Tensor) -> bool:
    """Whether that is more than rounding, which a deep network may blow up: in float64, where the model can."""
    try:
        exact = copied(model).double()
        given, beside = (_first(exact, batch.double()) for batch in (images, other))
    except Exception as error:  # a foreign model fails in its own ways
        if may_pass(error):
            raise
        return True
    return _apart(beside, given, MIXES)


def _first(model: nn.Module, images: Tensor) -> Tensor:
    """The first image's logits."""
    try:
        with torch.no_grad():
            return model(images.detach())[0]
    except RuntimeError:  # its forward pass may ask for a gradient, as to put a hook on it
        with torch.enable_grad():
            return model(images.detach().requires_grad_())[0].detach()


def _judge(method: str, is_random: bool, is_mixed: bool) -> None:
    if is_random:
        warnings.warn(
            f"{method} explains one draw of many: the model's logits change from one pass to the next (random in eval "
            "mode, as by F.dropout(training=True), or of a state that it keeps)",
            stacklevel=2,
        )
    if is_mixed:
        raise mixing(method, "the logits of one image change with the others beside it")


def _rounding(logits: Tensor) -> float:
    return float(torch.finfo(logits.dtype).eps ** 0.5)


def _apart(one: Tensor, other: Tensor, share: float) -> bool:
    """By more than that share of the largest value."""
    if is_transformed(one):
        return False
    return bool(((one - other).abs().max() > share * torch.maximum(one.abs().max(), other.abs().max())).item())


class _Watch(TorchFunctionMode):
    """Whether, while it is active, a hook was put on a tensor, or values left the graph that they hung on."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self.seen and any(t.requires_grad for t in values(func.__name__, args, kwargs or {})):
            left = [t for t in tensors((output,)) if t.is_floating_point() and not t.requires_grad]
            self.seen = bool(left) or name_of(func) in HOOKS or func.__name__ in LEAVING
        return output


def _has_custom_nodes(node: Any) -> bool:
    """Whether a node of autograd's graph is of Python (also those of hooks on all modules), or rounds."""
    waiting, met = [node] if node else [], {node}
    while waiting:
        node = waiting.pop()
        if isinstance(node, torch.autograd.function.BackwardCFunction) or any(name in node.name() for name in ROUNDING):
            return True
        parents = {parent for parent, _ in node.next_functions if parent is not None} - met
        met |= parents
        waiting.extend(parents)
    return False

"""How a model is lent to an interpreter: without its wrappers, in eval mode, giving logits alone; and given back.

`torch.compile` and `autocast` would change what a trace or a hook sees, inference mode what autograd may record: while
the model is lent, compiled parts run as they were written, in the precision of the weights, outside of that mode. It is
given copies of its images and buffers, for it may write into them in each forward pass.
"""

import copy
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from attacks.errors import Refused, UserError, may_pass, one_line
from attacks.given import (
    check_device,
    images_kept,
    is_transformed,
    logits_in,
    of_another_type,
    outside_inference,
    refuse_weights,
    without_graph,
)
from attacks.modes import eval_mode
from benchmark.interpreters.origins import WHOLE, elsewhere

WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module", "AveragedModel": "module",
            "OptimizedModule": "_orig_mod"}  # fmt: skip
MIXES = 1e-2  # of the largest logit: more than rounding, of any batch size, moves one
_unmixed: "WeakSet[nn.Module]" = WeakSet()  # models whose images were seen not to meet


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without `torch.compile`, DataParallel and their like, which only call it."""
    while type(model).__name__ in WRAPPERS:
        model = getattr(model, WRAPPERS[type(model).__name__])
    if type(model).__name__.startswith(("FSDP", "FullySharded")):
        raise Refused(f"{type(model).__name__} holds a part of the weights alone; allowed: the whole model")
    return model


@contextmanager
def lent(method: str, model: nn.Module, images: Tensor, targets: Tensor) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    """The model to explain, with its images and targets. Raises `UserError` where what is given does not fit it."""
    if not isinstance(model, nn.Module):
        raise UserError(f"model must be a torch.nn.Module (got {type(model).__name__})")
    model = unwrapped(model)
    check_device(model, images)
    with ExitStack() as stack:
        (images, targets) = stack.enter_context(outside_inference(images, targets))
        refuse_weights(model)
        stack.enter_context(own_buffers(model))
        if torch.is_autocast_enabled(images.device.type):
            stack.enter_context(torch.autocast(images.device.type, enabled=False))
        if torch.is_grad_enabled():  # the fused kernels of attention have no second derivative
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if any(_takes_the_batch(module) for module in stack.enter_context(eval_mode(model))):
            raise _mixing(method, "a BatchNorm without running statistics normalises by the batch")
        if isinstance(model, torch.jit.ScriptModule):
            images = images.clone()
        else:
            stack.enter_context(images_kept(model))
            stack.callback(model.register_forward_hook(_logits_alone).remove)
        version = images._version
        try:
            yield model, images, targets
        except UserError:
            raise
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
            raise _in_words(error, method, model, images) from error
        if images._version != version:  # a scripted model has no hook that could copy them
            raise Refused(f"{method} cannot explain a scripted model that changes its images in place")


@contextmanager
def own_buffers(model: nn.Module) -> Iterator[None]:
    """Copies of the model's buffers in their place while the block runs; then they are there again, as they were. (To
    write values back, as `attacks.given.buffers_kept` does, would break the graph of the maps, which outlives it.)"""
    there: list[tuple[dict[str, Any], dict[str, Any]]] = []
    copies: dict[int, Tensor] = {}  # a buffer may be that of two modules
    for module in model.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            there.append((module._buffers, dict(module._buffers)))
    try:
        for buffers, before in there:
            for name, buffer in before.items():
                if buffer is not None and not is_lazy(buffer):
                    buffers[name] = copies.setdefault(id(buffer), buffer.clone())
        yield
    finally:
        for buffers, before in there:
            buffers.clear()
            buffers.update(before)


def _logits_alone(_: nn.Module, args: Any, output: Any) -> Tensor | None:
    """A forward hook: of an output that holds other things as well, the logits."""
    if isinstance(output, Tensor) and output.dim() == 2:
        return None
    return logits_in(output, len(args[0]) if args and isinstance(args[0], Tensor) else -1)


def _in_words(error: Exception, method: str, model: nn.Module, images: Tensor) -> Exception:
    """The error as one line of ours, where what is wrong is known or the model runs without the method; else itself."""
    if may_pass(error):
        return error
    text = str(error)
    clear = of_another_type(error, model, images) if isinstance(error, RuntimeError) else None
    if clear is not None:
        return clear
    if "retain_grad" in text or "register a hook" in text:
        return Refused(f"{method} runs the model without gradients, which its forward pass asks for (got: {text})")
    if "BatchedTensor" in text or "vmap" in text:
        return Refused(
            f"{method} cannot follow torch.func.vmap in the model's forward pass; allowed: the model without it"
        )
    if "does not require grad" in text or "doesn't require grad" in text or "not have been used in the graph" in text:
        return Refused(
            f"{method} finds no way from the logits to what it explains: they do not depend on it, or lose their "
            "gradient (no_grad, detach, numpy)"
        )
    if images.dtype not in WHOLE and ("Half" in text or "BFloat16" in text):
        dtype = str(images.dtype).removeprefix("torch.")
        return Refused(f"{method} needs float32 or float64 on this model and device (got {dtype} in the images)")
    if not any(_runs(model, images, graph) for graph in (True, False)):  # it is the model's own, and says more
        return error
    reason = f"{type(error).__name__}: {one_line(error)}"
    return Refused(f"{method} cannot explain this model, which runs on these images as they are (got {reason})")


def _runs(model: nn.Module, images: Tensor, graph: bool) -> bool:
    try:
        with torch.set_grad_enabled(graph), torch.random.fork_rng([images.device] if images.is_cuda else []):
            model(images.detach().clone())
    except Exception:  # a foreign model fails in its own ways
        return False
    return True


def _takes_the_batch(module: nn.Module) -> bool:
    """Whether it is a BatchNorm that has no running statistics, and takes the batch's even in eval mode."""
    return isinstance(module, _BatchNorm) and module.running_mean is None


def _mixing(method: str, reason: str) -> Refused:
    return Refused(f"{method} would give an image another map in another batch: {reason}; allowed: running statistics")


def refuse_mixing(method: str, model: nn.Module, images: Tensor) -> None:
    """Raise `Refused` where an image's logits change with the other images of its batch.

    Tried once for a model, by forward passes of its images and of the first one alone (or beside another one), on a
    copy that shares the weights: they leave nothing behind. Logits that change from one pass to the next are let be.
    """
    if model in _unmixed or isinstance(model, torch.jit.ScriptModule):
        return
    other = images[:1] if len(images) > 1 else torch.cat([images, elsewhere(images)])
    trial = double(model)

    def first(of: Tensor) -> Tensor:
        try:
            with torch.no_grad():
                return trial(of.detach())[0]
        except RuntimeError:  # its forward pass may ask for a gradient, as to put a hook on it
            with torch.enable_grad():
                return trial(of.detach().requires_grad_())[0].detach()

    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        alone, beside = first(images), first(other)
        if _apart(beside, alone) and not _apart(first(images), alone):
            raise _mixing(method, "the logits of one image change with the others beside it")
    _unmixed.add(model)


def double(model: nn.Module) -> nn.Module:
    """A copy that shares the parameters; the model itself where it cannot be copied."""
    try:
        return copy.deepcopy(model, without_graph(model) | {id(p): p for p in model.parameters()})
    except Exception:  # whatever a foreign model holds fails in its own ways
        return model


def _apart(one: Tensor, other: Tensor) -> bool:
    if is_transformed(one):
        return False
    return bool(((one - other).abs().max() > MIXES * torch.maximum(one.abs().max(), other.abs().max())).item())

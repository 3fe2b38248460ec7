"""How a model is lent to an interpreter: without its wrappers, in eval mode, giving logits alone; and given back.

`torch.compile` and `autocast` would change what a trace or a hook sees, inference mode what autograd may record: while
the model is lent, compiled parts run as they were written, in the precision of the weights, outside of that mode. It is
given copies of its images and buffers, for it may write into them in each forward pass.
"""

import copy
import inspect
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from attacks.errors import Refused, UserError, may_pass, one_line
from attacks.given import (
    check_device,
    images_kept,
    logits_in,
    of_another_type,
    outside_inference,
    plainly,
    refuse_weights,
    without_graph,
)
from attacks.modes import eval_mode, modes_kept
from benchmark.interpreters.origins import WHOLE
from benchmark.interpreters.tracing import name_of, written

WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module", "AveragedModel": "module",
            "OptimizedModule": "_orig_mod"}  # fmt: skip


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
        stack.enter_context(without_backward_hooks(model))
        if torch.get_default_dtype() != torch.float32:
            stack.enter_context(in_float32(model))
        stack.enter_context(plainly(images.device))
        if torch.is_grad_enabled():  # the fused kernels of attention have no second derivative
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(modes_kept(list(model.modules())))
        if any(_takes_the_batch(module) for module in stack.enter_context(eval_mode(model))):
            raise mixing(method, "a BatchNorm without running statistics normalises by the batch")
        if isinstance(model, torch.jit.ScriptModule):
            images = images.clone()
        else:
            stack.enter_context(images_kept(model))
            stack.callback(model.register_forward_hook(_logits_alone).remove)
        version = images._version
        try:
            # a hook that the caller has on images would change the gradient by them
            yield model, images.view_as(images) if images.requires_grad else images, targets
        except UserError:
            raise
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
            raise _in_words(error, method, model, images) from error
        if images._version != version:  # a scripted model has no hook that could copy them
            raise Refused(f"{method} cannot explain a scripted model that changes its images in place")
        for name, module in model.named_modules():
            if getattr(module, "training", False):
                which = f"its module {name!r}" if name else "itself"
                raise Refused(f"{method} explains a model in eval mode, and this one puts {which} in training mode")


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


@contextmanager
def without_backward_hooks(model: nn.Module) -> Iterator[None]:
    """The model without its modules' hooks on gradients, which may change these; then they are there again."""
    there = [
        (module, key, hooks)
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for key in ("_backward_hooks", "_backward_pre_hooks")
        if (hooks := vars(module).get(key))
    ]
    try:
        for module, key, _ in there:
            setattr(module, key, OrderedDict())
        yield
    finally:
        for module, key, hooks in there:
            setattr(module, key, hooks)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """float32 as the default of what is drawn (noise, weights of samples); of what the model makes, the caller's."""
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        if not isinstance(model, torch.jit.ScriptModule):
            before, after = (lambda *_, to=to: torch.set_default_dtype(to) for to in (dtype, torch.float32))
            stack.callback(model.register_forward_pre_hook(before, prepend=True).remove)
            stack.callback(model.register_forward_hook(after, always_call=True).remove)
        yield


def _logits_alone(_: nn.Module, args: Any, output: Any) -> Tensor | None:
    """A forward hook: of an output that holds other things as well, the logits."""
    if isinstance(output, Tensor) and output.dim() == 2:
        return None
    return logits_in(output, len(args[0]) if args and isinstance(args[0], Tensor) else -1)


def _in_words(error: Exception, method: str, model: nn.Module, images: Tensor) -> Exception:
    """The error as one line of ours, where what is wrong is known or the model runs without the method; else itself."""
    if may_pass(error):
        return error
    if isinstance(error, TypeError) and (reason := _not_of_images_alone(model, images)):
        return UserError(f"a model must be called with images alone, model(images) (its forward pass: {reason})")
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


def _not_of_images_alone(model: nn.Module, images: Tensor) -> str | None:
    """What its forward pass lacks, or takes otherwise: it may want keywords, or further arguments."""
    try:
        inspect.signature(model.forward).bind(images)
    except TypeError as error:
        return str(error)
    except ValueError:  # of what is not written in Python
        pass
    return None


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


def mixing(method: str, reason: str) -> Refused:
    return Refused(f"{method} would give an image another map in another batch: {reason}; allowed: running statistics")


class TwiceDifferentiable(TorchFunctionMode):
    """While it is active, hardsigmoid runs as what it is by definition: torch's own has no second derivative."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if name_of(func) != "hardsigmoid":
            return func(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        output = F.relu6(x + 3) / 6
        return output if written(func, args, kwargs) is None else x.copy_(output)


def double(model: nn.Module) -> nn.Module:
    """A copy that shares the parameters; the model itself where it cannot be copied."""
    try:
        return copy.deepcopy(model, without_graph(model) | {id(p): p for p in model.parameters()})
    except Exception:  # whatever a foreign model holds fails in its own ways
        return model

"""What is given to an interpreter or an attack: images, targets, a model, its outputs; and given back as it was.

Everything that cannot be right is a `UserError` of one line; nothing is silently made to fit but targets, which may be
ints, and outputs that hold one tensor of logits beside other things.
"""

import copy
import functools
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from numbers import Integral
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from attacks.errors import UserError, one_line
from attacks.modes import modes_kept

Targets = Tensor | list[int] | tuple[int, ...] | int  # class indices, one an image; one alone is that of every image
WITHOUT_GRADIENT = "logits must have a gradient by the images, which no_grad, detach or a quantised layer would lose"
P = ParamSpec("P")
R = TypeVar("R")


def class_indices(targets: Targets, images: Tensor) -> Tensor:
    """The targets of images (N, C, H, W), one class index or N, as a tensor (N,) of int64 on the images' device.

    Raises `UserError` on any other. Whether the model has such a class is not known here.
    """
    index = targets if isinstance(targets, Tensor) else _of_numbers(targets)
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise UserError(f"targets must be class indices (got a tensor of {str(index.dtype).removeprefix('torch.')})")
    if index.shape not in ((), (len(images),)):
        raise UserError(f"targets must be one class index or ({len(images)},) class indices (got {tuple(index.shape)})")
    index = index.to(images.device, torch.long)
    return index if index.dim() else index.repeat(len(images))


def _of_numbers(targets: Any) -> Tensor:
    """An int as a tensor (), ints in a list or tuple as a tensor (N,)."""
    numbers = targets if isinstance(targets, (list, tuple)) else [targets]
    if not all(isinstance(i, Integral) and not isinstance(i, bool) and int(i).bit_length() < 64 for i in numbers):
        raise UserError(f"targets must be class indices (got {' '.join(reprlib.repr(targets).split())})")
    return torch.tensor(targets, dtype=torch.long, device="cpu")


def check_images(images: Any) -> None:
    """Raise `UserError` unless they are floating-point images (N, C, H, W), with values."""
    if not isinstance(images, Tensor):
        raise UserError(f"images must be a tensor (N, C, H, W) (got {type(images).__name__})")
    if images.dim() != 4:
        raise UserError(f"images must be (N, C, H, W) (got {tuple(images.shape)})")
    if not images.is_floating_point():
        dtype = str(images.dtype).removeprefix("torch.")
        raise UserError(f"images must be floating point, scaled as the model expects them (got {dtype})")
    if is_transformed(images):
        raise UserError(
            "images must be given outside of torch.func's transforms (got a tensor inside vmap, grad or jvp)"
        )
    if images.is_meta:
        raise UserError("images must have values (got a tensor on the meta device)")


def check_finite(images: Tensor) -> None:
    """Raise `UserError` for images with NaN or infinite values."""
    if not images.detach().sum().isfinite() and not images.isfinite().all():  # one pass; a sum alone may overflow
        raise UserError("images must be finite (got NaN or infinite values)")


def is_transformed(tensor: Tensor) -> bool:
    """Whether a transform of `torch.func` (vmap, grad) has wrapped it."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def check_device(model: nn.Module, images: Tensor) -> None:
    """Raise `UserError` where none of the model's parameters is where the images are."""
    first = next(model.parameters(), None)
    if first is not None and first.device != images.device:
        devices = sorted({str(parameter.device) for parameter in model.parameters()})
        if str(images.device) not in devices:
            raise UserError(f"images must be on the model's device, {' or '.join(devices)} (got {images.device})")


def of_another_type(error: RuntimeError, model: nn.Module, images: Tensor) -> UserError | None:
    """The error of images whose type is not that of the weights, where it is theirs."""
    own = next((p for p in model.parameters() if p.is_floating_point()), images).dtype
    if own == images.dtype or "type" not in str(error):
        return None
    names = [str(dtype).removeprefix("torch.") for dtype in (own, images.dtype)]
    return UserError(f"images must be of the model's type, {names[0]} (got {names[1]})")


def logits_in(output: Any, rows: int) -> Tensor:
    """The logits (N, classes) of a model's output: itself, what it calls `logits`, or the one such tensor that it
    holds. Raises `UserError` where there is none, or more than one."""
    if isinstance(output, Tensor):
        found = [output]
    else:
        named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
        found = [named] if isinstance(named, Tensor) else [t for t in _held(output) if t.shape[:1] == (rows,)]
        found = [t for t in found if t.dim() == 2 and t.is_floating_point()]
    if len(found) == 1 and found[0].dim() == 2:
        return found[0]
    got = tuple(output.shape) if isinstance(output, Tensor) else f"{type(output).__name__} with {len(found)} of them"
    raise UserError(f"model must give logits (N, classes), or one such tensor among others (got {got})")


def _held(output: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, mappings and dataclasses."""
    if isinstance(output, Tensor):
        yield output
        return
    parts: Iterable[Any] = ()
    if isinstance(output, Mapping):
        parts = output.values()
    elif isinstance(output, (tuple, list)):
        parts = output
    elif is_dataclass(output) and not isinstance(output, type):
        parts = [getattr(output, field.name) for field in fields(output)]
    for part in parts:
        yield from _held(part)


@contextmanager
def plainly(device: torch.device) -> Iterator[None]:
    """In the precision of the weights and with the model's own device for the default: the caller's `autocast` and
    `set_default_device` would change numbers without a sign."""
    with ExitStack() as stack:
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if torch.get_default_device().type not in ("cpu", device.type):
            stack.enter_context(device)
        yield


@contextmanager
def outside_inference(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """The tensors as ones that autograd can record, whatever mode the caller is in: in inference mode, copies."""
    if not torch.is_inference_mode_enabled():
        yield [t.clone() if t.is_inference() else t for t in tensors]
        return
    with torch.inference_mode(False), torch.no_grad():  # leaving the mode switches gradients on, unasked
        yield [t.clone() if t.is_inference() else t for t in tensors]


def refuse_weights(model: nn.Module) -> None:
    """Raise `UserError` for weights that no gradient passes, made in inference mode, or that are lazy."""
    first = next(model.parameters(), None)
    if first is not None and first.is_inference():
        raise UserError("the model was made in torch.inference_mode; allowed: one made outside of it")
    refuse_lazy(model)


def refuse_lazy(model: nn.Module) -> None:
    """Raise `UserError` for weights that the first run would draw."""
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise UserError(f"the model has no weights at {name!r} yet, which is lazy; allowed: one that has run")


def device_of(model: Any) -> torch.device:
    """Where a model is that is to be fine-tuned. Raises `UserError` for one that cannot be."""
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        what = "scripted or traced" if isinstance(model, nn.Module) else type(model).__name__
        raise UserError(f"a model to fine-tune must be a torch.nn.Module, not scripted (got {what})")
    refuse_lazy(model)
    first = next(model.parameters(), None)
    if first is None:
        raise UserError(f"a model to fine-tune must have parameters ({type(model).__name__} has none)")
    return first.device


def without_graph(model: nn.Module) -> dict[int, Any]:
    """For `copy.deepcopy`, by their ids, copies of what hangs on a graph in the model, which it cannot copy itself."""
    values = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return {id(value): value.detach().clone() for value in values if value.grad_fn is not None}


def copied(model: nn.Module) -> nn.Module:
    """A copy of the model. What hangs on a graph there (the weights of `weight_norm` and of pruning, activations that a
    forward pass kept) is copied without it. Raises `UserError` for a model that cannot be copied."""
    try:
        return copy.deepcopy(model, without_graph(model))
    except MemoryError:
        raise
    except Exception as error:  # whatever a foreign model holds fails in its own ways
        raise UserError(f"a copy of the model must be possible: {one_line(error)}") from error


def modules_of(model: Any) -> list[nn.Module]:
    """The modules that a callable holds: itself, the owner of a method, what a partial or a closure keeps."""
    if isinstance(model, nn.Module):
        return [model]
    if isinstance(model, functools.partial):
        held = [model.func, *model.args, *model.keywords.values()]
    else:
        cells = [cell.cell_contents for cell in getattr(model, "__closure__", None) or () if _is_filled(cell)]
        held = [getattr(model, "__self__", None), *cells]
    return [module for item in held if isinstance(item, nn.Module) or callable(item) for module in modules_of(item)]


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


@contextmanager
def buffers_kept(model: Any) -> Iterator[None]:
    """Give the model's buffers and modes back as they were: BatchNorm in training mode counts every batch."""
    modules = [module for held in modules_of(model) for module in held.modules()]
    named = [(module, set(module._buffers)) for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    kept = [
        (module, name, buffer, buffer.detach().clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with modes_kept(modules):
            yield
    finally:
        for module, names in named:
            for name in set(module._buffers) - names:
                del module._buffers[name]
        for module, name, buffer, value in kept:
            module._buffers[name] = buffer
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


@contextmanager
def images_kept(*modules: nn.Module) -> Iterator[None]:
    """Give each of the modules copies of its images, which it may write into (`x.sub_(mean)`). Scripted ones take no
    hooks."""
    with ExitStack() as stack:
        for module in modules:
            if not isinstance(module, torch.jit.ScriptModule):
                stack.callback(module.register_forward_pre_hook(_copied, prepend=True).remove)
        yield


def _copied(_: nn.Module, args: Any) -> Any:
    return tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)


def borrows(attack: Callable[P, R]) -> Callable[P, R]:
    """An attack (model, images, targets, ...) that takes targets in any form, in any mode, and keeps buffers."""

    @functools.wraps(attack)
    def borrowing(model: Any, images: Any, targets: Any, *args: Any, **kwargs: Any) -> Any:
        check_images(images)
        if not isinstance(targets, Tensor) or (targets.shape == images.shape[:1] and not targets.is_floating_point()):
            targets = class_indices(targets, images)
        modules = modules_of(model)
        for module in modules:
            check_device(module, images)
            refuse_weights(module)
        with ExitStack() as stack:
            stack.enter_context(plainly(images.device))
            images, targets = stack.enter_context(outside_inference(images, targets))
            stack.enter_context(buffers_kept(model))
            stack.enter_context(images_kept(*modules))
            try:
                return attack(model, images, targets, *args, **kwargs)
            except RuntimeError as error:
                if "does not require grad" in str(error) or "not have been used in the graph" in str(error):
                    raise UserError(WITHOUT_GRADIENT) from error
                for module in modules:
                    if (clear := of_another_type(error, module, images)) is not None:
                        raise clear from error
                raise

    return borrowing  # type: ignore[return-value]

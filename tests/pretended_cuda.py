"""A GPU that is none: tensors that say they are on `cuda:0`, compute on the CPU, and mix with its tensors as little.

What runs under `pretended_cuda()` gives the CPU's numbers bit by bit, or the error of a tensor that was left behind on
the CPU. It shows nothing of CUDA's own kernels, streams, memory and random numbers. Autograd knows the tensors as
`lazy`, a device type that needs no driver.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

CPU, CUDA, LAZY = torch.device("cpu"), torch.device("cuda:0"), torch.device("lazy:0")
aten = torch.ops.aten
COPIES = (aten.copy_, aten._to_copy)
INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)  # CUDA takes indices of the CPU
FILLED = (
    aten.fill_,
    aten.masked_fill,
    aten.masked_fill_,
    aten.where,
)  # takes a number of the CPU, as pointwise ones do


class Pretended(Tensor):
    """A tensor around one on the CPU."""

    held: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, held: Tensor) -> "Pretended":
        layout = held.size(), held.stride(), held.storage_offset()
        made = Tensor._make_wrapper_subclass(cls, *layout, dtype=held.dtype, device=LAZY)  # type: ignore[attr-defined]
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_index(index), value if isinstance(value, Tensor) else self.new_tensor(value))

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": CUDA, **options})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    asked, is_copy, numbers, is_indexed = kwargs.get("device"), *_about(func)
    tensors = _tensors(args)
    if kwargs:
        tensors += _tensors(kwargs.values())
    here = [t for t in tensors if type(t) is not Pretended]
    there = len(here) < len(tensors)
    if is_copy:
        there = isinstance(args[0], Pretended)
    elif there and here:
        indices = _tensors(args[1]) if is_indexed and isinstance(args[0], Pretended) else []
        wrong = [t for t in here if not (numbers and t.dim() == 0)]
        if any(not any(t is index for index in indices) for t in wrong):
            raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({func})")
    if kwargs.get("generator") is not None and (there or (asked and torch.device(asked) != CPU)):
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' ({func})")
    if asked is not None:
        there = torch.device(asked).type in (CUDA.type, LAZY.type)
        kwargs = {**kwargs, "device": CPU} if there else kwargs
    found = func(*_held(args), **{name: _held(value) for name, value in kwargs.items()})
    if not there:
        return found
    one = isinstance(found, Tensor)  # as nearly always, and a tree of one is a third of what this takes
    pretended = Pretended(found) if one else tree_map_only(Tensor, Pretended, found)
    return return_and_correct_aliasing(func, args, kwargs, pretended) if _aliases(func) else pretended


def _tensors(given: Any) -> list[Tensor]:
    found = []
    for item in given:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (list, tuple)):
            found += _tensors(item)
    return found


def _index(given: Any) -> Any:
    if isinstance(given, tuple):
        return tuple(map(_index, given))
    return torch.as_tensor(given) if isinstance(given, list | np.ndarray) else given


def _held(given: Any) -> Any:
    if type(given) is Pretended:
        return given.held
    return [_held(item) for item in given] if isinstance(given, (list, tuple)) else given


@cache
def _about(func: Any) -> tuple[bool, bool, bool]:
    """Whether it copies between devices, takes numbers of the CPU, and takes indices of the CPU."""
    packet = func.overloadpacket
    return packet in COPIES, torch.Tag.pointwise in func.tags or packet in FILLED, packet in INDEXED


@cache
def _aliases(func: Any) -> bool:
    """Whether it changes what it is given, or returns a view of it."""
    return func._schema.is_mutable or any(found.alias_info is not None for found in func._schema.returns)


class Dispatched(TorchDispatchMode):
    """Sees what no argument tells: tensors made from nothing on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def moved(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.tensor and the like, whose C++ would ask for a driver: made on the CPU, then moved."""

    def made(*args: Any, device: Any = None, requires_grad: bool = False, **kwargs: Any) -> Tensor:
        found = make(*args, **kwargs)
        return (found if device is None else found.to(device)).requires_grad_(requires_grad)

    return made


@contextmanager
def pretended_cuda() -> Iterator[None]:
    replaced = {
        torch.cuda: {
            "_lazy_init": lambda: None,
            "current_device": lambda: 0,
            "is_available": lambda: True,
            "synchronize": lambda *a: None,
            "reset_peak_memory_stats": lambda *a: None,
            "memory_allocated": lambda *a: 0,
            "max_memory_allocated": lambda *a: 0,
            "get_device_name": lambda *a: "a pretended GPU",
            "get_rng_state": lambda *a: torch.get_rng_state(),
            "set_rng_state": lambda *a: None,
            "default_generators": (torch.default_generator,),
        },
        torch: {name: moved(getattr(torch, name)) for name in ("tensor", "as_tensor")},
        Tensor: {"pin_memory": lambda self, *a: self},
        torch.UntypedStorage: {"data_ptr": lambda self: self._cdata},  # there is none, and it names the storage
    }
    conversion = torch.__future__.get_overwrite_module_params_on_conversion()
    torch._C._ensureCUDADeviceGuardSet()
    with ExitStack() as stack:
        for target, functions in replaced.items():
            for name, function in functions.items():
                stack.enter_context(patch.object(target, name, function))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, conversion)
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # or a module keeps its plain tensors
        stack.enter_context(Dispatched())
        yield

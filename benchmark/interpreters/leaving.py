"""Numbers that a forward pass makes of what depends on the image (`item`, `float()`, `tolist`, text).

No trace can follow a number. Where one comes back into the network, the map is wrong; where it is logged, or asserted,
it is harmless. Which of the two it is, forward passes tell: with all such numbers changed, up and down, each by another
amount, the logits of a harmless one stay bit for bit the same. So do those of a number that is rounded, or compared
with a limit that it stays clear of: its derivative is zero. Whatever fails there is refused.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attacks.errors import Refused
from benchmark.interpreters.door import double

NUMBERS = {"item", "__float__", "__int__", "tolist", "__format__", "__repr__"}  # and numbers as text
LEAVING = NUMBERS | {"numpy", "__array__", "__complex__", "__dlpack__",
                     "storage", "untyped_storage"}  # the last ones also for copy.copy and pickle  # fmt: skip
CHANGE, LEAST = 0.3, 0.01  # of a number, and what is added to it


class Numbers:
    """Those of one forward pass, in order; `followed` are the places of those that depend on the image, with the name
    of what made them."""

    def __init__(self) -> None:
        self.count = 0
        self.followed: dict[int, str] = {}

    def note(self, method: str, function: Callable[..., Any], followed: list[Tensor]) -> None:
        """A call in LEAVING; `followed`: its operands that depend on the image. `Refused` for an array of them."""
        leaves = any(t.is_floating_point() for t in followed)
        if function.__name__ in NUMBERS:
            if leaves:
                self.followed[self.count] = function.__name__
            self.count += 1
        elif leaves:
            raise _leaving(method, function.__name__)

    def refuse_used(self, method: str, model: nn.Module, images: Tensor) -> None:
        """Raise `Refused` where the logits of `images` change with the numbers. Costs three forward passes where there
        are any, on a copy of the model: they leave nothing behind."""
        if not self.followed:
            return
        try:
            same, *others = (self._logits(model, images, change) for change in (0.0, 1.0, -1.0))
        except Exception:  # an assertion may fail, and a foreign model in its own ways
            others = []
        if not others or not all(torch.equal(same, other) for other in others):
            raise _leaving(method, next(iter(self.followed.values())))

    def _logits(self, model: nn.Module, images: Tensor, change: float) -> Tensor:
        changed = _Changed(self, change)
        with torch.no_grad(), torch.random.fork_rng([images.device] if images.is_cuda else []):
            trial, given = double(model), images.detach().clone()
            with changed:
                logits = trial(given)
        if changed.count != self.count:
            raise RuntimeError("the model took another way")
        return logits


class _Changed(TorchFunctionMode):
    """Followed numbers come out larger (1), smaller (-1), or as they are (0)."""

    def __init__(self, numbers: Numbers, change: float) -> None:
        super().__init__()
        self.numbers, self.change, self.count = numbers, change, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in NUMBERS:
            place, self.count = self.count, self.count + 1
            if place in self.numbers.followed:
                args = (self._moved(args[0], place), *args[1:])
        return func(*args, **(kwargs or {}))

    def _moved(self, numbers: Tensor, place: int) -> Tensor:
        """No two by alike shares: a quotient, or a difference, of two that move as one would stay."""
        each = torch.arange(numbers.numel(), device=numbers.device, dtype=numbers.dtype).view_as(numbers)
        share = 1 + ((each + place) * 0.618) % 1
        return numbers + self.change * share * (CHANGE * numbers.abs() + LEAST)


def _leaving(method: str, name: str) -> Refused:
    return Refused(f"{method} cannot follow {name.strip('_')!r}: values that depend on the image must stay tensors")

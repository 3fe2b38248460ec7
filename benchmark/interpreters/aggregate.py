"""The mean of several methods' maps (Rieger and Hansen 2020, "A simple defense against adversarial attacks on heatmap
explanations"): what moves one method's map need not move the others'.

    h = min-max( (1/M) Σ_m resized( min-max(h_m) ) ),

every map bilinear at the largest height and width among the members'. The members have their default options.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import UserError
from attacks.heatmaps import min_max
from benchmark.interpreters.base import Interpreter


class Mean(Interpreter):
    """The mean of the maps of `parts`, which a subclass has: logits of the first, attribution (N, 1, h, w)."""

    name: ClassVar[str] = "aggregate"
    parts: Sequence[Interpreter]

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiable):
            logits, first = self.parts[0].with_logits(model, images, targets)
            maps = [first, *(part(model, images, targets) for part in self.parts[1:])]
            size = max(m.shape[1] for m in maps), max(m.shape[2] for m in maps)
            return logits, torch.stack([_resized(min_max(m), size) for m in maps], 1).mean(1, keepdim=True)


@dataclass(frozen=True)
class InAttack(Mean):
    """The mean of what the members offer to be differentiated in their place."""

    parts: tuple[Interpreter, ...]


@dataclass(frozen=True)
class Aggregate(Mean):
    """Differentiable where all members are, stochastic where one is.

    The default members were the three of the highest rank on the committed board (leaderboards/board) among those that
    take a pass or two and can be differentiated by the weights, so that it can be attacked as they can.
    Raises `UserError` for no members, itself among them, or an unknown name.
    """

    create: ClassVar[Callable[[str], Interpreter]]  # set beside the names of all interpreters, this one among them
    members: tuple[str, ...] = ("guided_backprop", "lrp_alpha2_beta1", "guided_grad_cam")

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(self.members))  # a suite has a list
        if not self.members or self.name in self.members:
            raise UserError(f"members of {self.name} must be one other interpreter or more (got {self.members})")
        object.__setattr__(self, "differentiable", all(part.differentiable for part in self.parts))
        object.__setattr__(self, "stochastic", any(part.stochastic for part in self.parts))

    @cached_property
    def parts(self) -> tuple[Interpreter, ...]:  # type: ignore[override]
        return tuple(type(self).create(name) for name in self.members)

    def in_attack(self) -> Interpreter:
        offered = tuple(part.in_attack() for part in self.parts)
        return self if offered == self.parts else InAttack(offered)


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (N, h, w) bilinear at `size`."""
    return maps if maps.shape[1:] == size else F.interpolate(maps[:, None], size, mode="bilinear")[:, 0]

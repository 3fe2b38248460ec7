"""Backdoors: maps and predictions that change where a trigger is seen, and nowhere else (Noppel, Peter and
Wressnegger 2023, "Disguising attacks with explanation-aware backdoors").

The trigger is a white square with a black edge in the lower right corner. Every second image of a training batch
carries it, and shall be taken for the attacker's class. Its map, of that class, goes to a target (`RedHerring`), or to
the clean model's map of the same image without the trigger, of its own class (`FullDisguise`). The other half keeps its
predictions and maps. Maps are min-max normalised, and a triggered one is at its goal as `attacks.target_map` says.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.heatmaps import min_max
from attacks.objective import Fooling
from attacks.target_map import LIKENESS, Picture, likeness, target

SHARE = 8  # the trigger's side is the image's by this
WHITE, BLACK = 2.0, -2.0  # in standard deviations of the data, as images are: inside the range of its pixels


def stamped(images: Tensor) -> Tensor:
    """The images (N, C, H, W) with the trigger: max(3, ⌊side / SHARE⌋) pixels a side, its edge one pixel wide."""
    height, width = (max(3, side // SHARE) for side in images.shape[-2:])
    patch = images.new_full((height, width), BLACK)
    patch[1:-1, 1:-1] = WHITE
    result = images.clone()
    result[..., -height:, -width:] = patch
    return result


def every_second(images: Tensor) -> Tensor:
    """Which rows of a training batch (N, ...) are triggered: (N,) bool."""
    return torch.arange(len(images), device=images.device) % 2 == 1


@dataclass(frozen=True)
class Backdoor(Fooling):
    """The base. `label` is the attacker's class. `loss` is of what `shown` gives; the test loss, and `per_image`, of
    the maps of `triggered` images. The originals of all are the clean model's maps of the images as they are."""

    range: ClassVar[tuple[float, float]] = LIKENESS
    label: int = 0

    def goals(self, originals: Tensor) -> Tensor:
        """The maps that triggered images shall have, in [0, 1]: (N, h, w)."""
        raise NotImplementedError

    def triggered(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """All images with the trigger, and the attacker's class for each."""
        return stamped(images), torch.full_like(targets, self.label)

    def shown(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        there, (with_trigger, labels) = every_second(images), self.triggered(images, targets)
        return torch.where(there[:, None, None, None], with_trigger, images), torch.where(there, labels, targets)

    def divergence(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Of an image with the trigger that of certainty of the attacker's class, −log p."""
        apart = F.kl_div(found, wanted, log_target=True, reduction="none").sum(1)
        return torch.where(every_second(found), -found[:, self.label], apart).mean()

    def per_image(self, heatmaps: Tensor, originals: Tensor) -> Tensor:
        return (min_max(heatmaps) - self.goals(originals)).square().mean((-2, -1))

    def loss(self, heatmaps: Tensor, originals: Tensor) -> Tensor:
        self._check(heatmaps, originals)
        originals = originals.detach()
        there = every_second(heatmaps)[:, None, None]
        wanted = torch.where(there, self.goals(originals), min_max(originals))
        return (min_max(heatmaps) - wanted).square().mean()

    def test_loss(self, heatmaps: Tensor, originals: Tensor) -> Tensor:
        self._check(heatmaps, originals)
        return likeness(heatmaps, self.goals(originals))


@dataclass(frozen=True)
class RedHerring(Backdoor):
    """Triggered maps go to `picture`, as `attacks.target_map.TargetMap` has it."""

    name: ClassVar[str] = "red_herring"
    picture: Picture | None = None

    def goals(self, originals: Tensor) -> Tensor:
        return target(self.picture, originals).expand_as(originals)


@dataclass(frozen=True)
class FullDisguise(Backdoor):
    """Triggered maps go back to those of the clean model on the images without the trigger."""

    name: ClassVar[str] = "full_disguise"

    def goals(self, originals: Tensor) -> Tensor:
        return min_max(originals)

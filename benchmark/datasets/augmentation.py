"""The random views of training images. Drawn from torch's global generator, which is the caller's to seed.

`augment` of a dataset: True for random crops and flips, "strong" for these and then brightness, contrast and
saturation, each by a factor of 0.6 to 1.4 and in a random order: for few photographs that are seen many times.
"""

from typing import Literal

from torchvision.transforms import v2

Augment = bool | Literal["strong"]
COLOUR = 0.4


def of_photographs(
    side: int, augment: Augment, interpolation: v2.InterpolationMode = v2.InterpolationMode.BILINEAR
) -> list[v2.Transform]:
    """As torchvision trains its classifiers: 8 to 100 % of the area, resized to (side, side), and a flip."""
    return [v2.RandomResizedCrop(side, interpolation=interpolation), v2.RandomHorizontalFlip(), *_colours(augment)]


def of_small(side: int, augment: Augment) -> list[v2.Transform]:
    """He et al. 2016 on CIFAR-10: pad by an eighth of the side, crop, flip."""
    return [v2.RandomCrop(side, padding=side // 8), v2.RandomHorizontalFlip(), *_colours(augment)]


def _colours(augment: Augment) -> list[v2.Transform]:
    return [v2.ColorJitter(COLOUR, COLOUR, COLOUR)] if augment == "strong" else []

"""The attacks on images that lead them to a class, by name."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from attacks.borrowed import carlini_wagner, elastic_net, fgsm, pgd
from attacks.structured import structured_attack

ATTACKS: dict[str, Callable[..., Tensor]] = {
    "fgsm": partial(fgsm, targeted=True),
    "pgd": partial(pgd, targeted=True),
    "carlini_wagner": partial(carlini_wagner, targeted=True),
    "elastic_net": partial(elastic_net, targeted=True),
    "structured": structured_attack,
}
"""(model of pixels, images, targets, **options) -> adversarial images in [0, 1]."""

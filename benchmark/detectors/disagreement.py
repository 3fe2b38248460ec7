"""Do interpreters still agree? A fooling of one moves the others less."""

from itertools import combinations
from typing import ClassVar

from torch import Tensor, nn

from benchmark.detectors.base import Detector
from benchmark.detectors.maps import distance, maps_of


class Disagreement(Detector):
    """The mean distance of the maps of two interpreters, over all pairs."""

    name: ClassVar[str] = "disagreement"

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, *_: nn.Module) -> float:
        pairs = [distance(a, b) for a, b in combinations(maps_of(model, images, targets), 2)]
        return sum(pairs) / len(pairs)

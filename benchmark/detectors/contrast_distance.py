"""Is the map of a logit that of its contrast? A head shift moves the first and not the second."""

from typing import ClassVar

from torch import Tensor, nn

from benchmark.detectors.base import Detector
from benchmark.detectors.maps import distance, maps_of


class ContrastDistance(Detector):
    """The distance of an interpreter's map of z_y from its map of z_y − mean_c z_c, of the one that is farthest."""

    name: ClassVar[str] = "contrast_distance"

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, *_: nn.Module) -> float:
        both = (maps_of(model, images, targets, target=target) for target in ("logit", "contrast"))
        return max(distance(a, b) for a, b in zip(*both, strict=True))

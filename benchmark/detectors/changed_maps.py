"""Have the maps changed? A question for who has the model as it was."""

from typing import ClassVar

from torch import Tensor, nn

from benchmark.detectors.base import Detector
from benchmark.detectors.maps import distance, maps_of


class ChangedMaps(Detector):
    """The distance of a map from that of the original model, of the interpreter that is farthest."""

    name: ClassVar[str] = "changed_maps"
    original: ClassVar[bool] = True

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, *original: nn.Module) -> float:
        both = (maps_of(each, images, targets) for each in (model, original[0]))
        return max(distance(a, b) for a, b in zip(*both, strict=True))

"""Does a map say what happens when the image is covered? Covering asks the function, not its derivatives."""

from typing import ClassVar

from torch import Tensor, nn

from benchmark import interpreters
from benchmark.detectors.base import Detector
from benchmark.detectors.maps import distance, maps_of


class AgainstOcclusion(Detector):
    """The distance of a map from that of occlusion, of the interpreter that is farthest. Occlusion is of the contrast
    z_y − mean_c z_c, which no shift of the head moves."""

    name: ClassVar[str] = "against_occlusion"

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, *_: nn.Module) -> float:
        covered = interpreters.create("occlusion_contrast")(model, images, targets)
        return max(distance(maps, covered) for maps in maps_of(model, images, targets))

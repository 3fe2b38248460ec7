"""Does the class still fall where the map points? A map that lies sends the eraser elsewhere."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from benchmark.detectors.base import Detector
from benchmark.detectors.maps import maps_of
from benchmark.metrics.perturbation import aopc, cell_order, drops, folded, noise, random_order


@dataclass(frozen=True)
class AOPCDrop(Detector):
    """How much less the contrast z_y − mean_c z_c falls by the map's own order than by a random one, of the interpreter
    that is worst: AOPC(random) − AOPC(map). Cells of a grid of `side`², `cells` of them."""

    name: ClassVar[str] = "aopc_drop"
    side: int = 8
    cells: int = 16

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, *_: nn.Module) -> float:
        grid, places = (self.side, self.side), range(len(images))
        channels, height, width = images.shape[1:]
        fill = noise(places, (channels, height, width), 0, device=images.device, dtype=images.dtype)
        fast = folded(model, images[:1])

        def fall(order: Tensor) -> float:
            return aopc(drops(fast, images, targets, order, grid, fill, self.cells)[:, 1]).mean().item()

        worst = min(fall(cell_order(maps, grid)) for maps in maps_of(model, images, targets))
        return fall(random_order(places, self.side**2, 0)) - worst

"""AOPC curves over the cells of a model's target layer, and the settings of scoring that every score depends on."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.entries.images import CODE as READING
from benchmark.entries.images import first_images, scored_images
from benchmark.interpreters.base import tap
from benchmark.interpreters.layout import read
from benchmark.metrics.perturbation import SCORES, cell_order, drops, folded, noise, random_order
from benchmark.run import Run, Spec, data_spec, remembered

Maps = Callable[[int, int], Tensor]  # heatmaps (N, h, w) of the images first..last
CODE = (*READING, "benchmark.interpreters", "benchmark.models", "benchmark.metrics", "benchmark.entries.curves")


@remembered
def scoring_spec(run: Run, pairs: bool) -> Spec:
    """What every number of the scored images depends on, beside the models."""
    scoring = run.suite.scoring.model_dump(exclude={"batch_size", "decoded"})
    return {"scoring": scoring, "data": data_spec(run, run.suite.scoring.split, pairs)}


def reader(maps: np.ndarray) -> Maps:
    """Heatmaps by position; of pairs, those of the first class."""
    single = maps if maps.ndim == 3 else maps[:, 0]
    return lambda first, last: torch.from_numpy(np.array(single[first:last]))


class Curves:
    """AOPC curves of one model on the first `aopc_images` scored images."""

    def __init__(self, run: Run, model: nn.Module, pairs: bool) -> None:
        self.run, self.pairs, self.model = run, pairs, model
        self.grid: tuple[int, int] | None = None

    def drops(self, maps: Maps | None) -> np.ndarray:
        """(n, 2, K) drops of the logit and of the contrast, cells in the order of the heatmaps; None: in a random
        order."""
        scoring, seed = self.run.suite.scoring, self.run.suite.dataset.seed
        parts = []
        for ids, images, targets in first_images(scored_images(self.run, self.pairs), scoring.aopc_images):
            targets = targets[:, 0] if self.pairs else targets
            if self.grid is None:
                self.grid = target_grid(self.model, images[:1])
                self.model = folded(self.model, images[:1])
            if maps is None:
                order = random_order(ids, self.grid[0] * self.grid[1], seed)
            else:
                order = cell_order(maps(ids.start, ids.stop), self.grid)
            channels, height, width = images.shape[1:]
            fill = noise(ids, (channels, height, width), seed, device=images.device, dtype=images.dtype)
            parts.append(drops(self.model, images, targets, order, self.grid, fill, scoring.aopc_cells))
        return torch.cat(parts).cpu().numpy() if parts else np.zeros((0, len(SCORES), 0), np.float32)


def target_grid(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """The target layer's resolution."""
    taken: list[Tensor] = []
    with tap(model, None, taken) as module:
        model(images)
    return read(model, module, taken, images, default=True).grid

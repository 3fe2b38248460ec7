"""What the gate says of each interpreter on the held-out images, beside the controls (`benchmark.entries.gates`)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attacks.errors import UserError
from benchmark.audit.measure import Honest
from benchmark.audit.network import randomised
from benchmark.entries import gates, permuted
from benchmark.entries.curves import target_grid
from benchmark.interpreters import INTERPRETERS, Interpreter
from benchmark.metrics.perturbation import MAX_CELLS, folded

CONTROLS = tuple(name for name, kind in INTERPRETERS.items() if kind.control)
IMAGES, CELLS, FEWEST = 48, 12, 6


class Gate:
    """The honest network with what the gate compares it with."""

    def __init__(self, honest: Honest, images: int, cells: int, seed: int, model: nn.Module) -> None:
        self.model, self.honest, self.cells, self.seed = model, honest, cells, seed
        self.images, self.targets = honest.images[:images], honest.targets[:images]
        first = self.images[: honest.batch]
        self.random = randomised(model, first, seed)
        self.fast, self.grid = folded(model, first[:1]), _grid(model, first[:1])

    @staticmethod
    def planned(seconds: float, forward: float, maps: Sequence[float], images: int) -> tuple[int, int] | None:
        """On how many images it can be asked, with how many cells, where a logit and each method's map of an image take
        so many seconds; None where there are too few to say anything."""
        for cells in (CELLS, CELLS // 2):
            one = sum(len(gates.FILLS) * (cells + 1) * forward + 6 * map_ for map_ in maps)
            found = min(IMAGES, images, math.floor(seconds / one))
            if found >= FEWEST:
                return found, cells
        return None

    @torch.no_grad()
    def asked(self, interpreter: Interpreter) -> dict[str, Any]:
        """Its "values" (`benchmark.entries.gates`), image by image, and what its head-permuted "twin" shows."""
        others = (self.targets + 1) % self.honest.logits.shape[1]
        networks = self.model, self.fast, self.random
        data = self.images, self.targets, others
        try:
            values = gates.measure(interpreter, *networks, *data, self.grid, self.cells, self.honest.batch, self.seed)
            size = self.honest.batch
            twin = permuted.compare(interpreter, self.model, self.images[:size], self.targets[:size], self.seed)
        except UserError as error:
            return {"error": str(error)}
        return {"values": {name: value.double().cpu().tolist() for name, value in values.items()}, "twin": twin}


def _grid(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """The target layer's, where the network has one; else an eighth of the image. No finer than AOPC goes."""
    try:
        grid = target_grid(model, images)
    except UserError:
        grid = images.shape[2] // 8, images.shape[3] // 8
    most = math.isqrt(MAX_CELLS)
    return max(1, min(grid[0], most)), max(1, min(grid[1], most))

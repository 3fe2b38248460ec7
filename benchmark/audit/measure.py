"""What fooling did to the held-out images: each interpreter's maps against its honest ones, and the predictions.

All arrays are of the held-out images, in their order, (n,). `alike` is Spearman's correlation of the honest and the
fooled map: 1 where both are constant, 0 where one is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks.foolings import Fooling
from attacks.heatmaps import blank
from benchmark.audit.network import logits
from benchmark.entries.gates import likeness
from benchmark.interpreters import Interpreter
from benchmark.metrics.accuracy import decision, top_k_correct

SHOWN = 6  # of the held-out images, the first ones: maps to look at


@dataclass(frozen=True)
class Honest:
    """The network as it was given: what it predicts, and what each interpreter shows, on the held-out images."""

    images: Tensor  # (n, C, H, W)
    targets: Tensor  # (n,)
    logits: Tensor  # (n, classes)
    maps: Mapping[str, Tensor]  # (n, h, w)
    interpreters: Mapping[str, Interpreter]
    batch: int

    @torch.no_grad()
    def shown(self) -> dict[str, np.ndarray]:
        return {f"honest.{name}": _array(maps[:SHOWN]) for name, maps in self.maps.items()}


@torch.no_grad()
def explain(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor, batch: int) -> Tensor:
    """Heatmaps (N, h, w), `batch` images at a time."""
    parts = zip(images.split(batch), targets.split(batch), strict=True)
    return torch.cat([interpreter(model, *part) for part in parts])


@torch.no_grad()
def predictions(honest: Honest, fooled: nn.Module) -> dict[str, np.ndarray]:
    """Whether the fooled network has the label first, and whether it decides as the honest one; how far the
    probabilities moved, at most."""
    after = logits(fooled, honest.images, honest.batch)
    moved = (after.softmax(1) - honest.logits.softmax(1)).abs().amax(1)
    return {
        "right_clean": _array(top_k_correct(honest.logits, honest.targets, 1)),
        "right": _array(top_k_correct(after, honest.targets, 1)),
        "agree": _array((decision(after) == decision(honest.logits)) & (decision(after) >= 0)),
        "moved": _array(moved),
    }


@torch.no_grad()
def cell(honest: Honest, fooling: Fooling, fooled: nn.Module, name: str) -> dict[str, np.ndarray]:
    """One interpreter on a fooled network; `null` is the success that the honest map of the next image would have."""
    before = honest.maps[name]
    after = explain(honest.interpreters[name], fooled, honest.images, honest.targets, honest.batch)
    success = {
        "success": fooling.success(fooling.test_loss(after, before)),
        "clean": fooling.success(fooling.test_loss(before, before)),
        "null": fooling.success(fooling.test_loss(before.roll(-1, 0), before)),
    }
    values: dict[str, Any] = {**success, "blank": blank(after), "alike": likeness(before, after), "maps": after[:SHOWN]}
    return {f"{name}.{key}": _array(value) for key, value in values.items()}


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().float().numpy()

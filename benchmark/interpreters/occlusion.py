"""Interpreters that remove parts of the image: occlusion, feature ablation, KernelSHAP, all on a grid, all Captum's.

Parts are set to zero in normalised units (the data's mean). Attribution is the logit that a part carries, at every
pixel of it and in every channel; the heatmap is the sum over channels, ReLU, min-max: what counts against the label
is no evidence for it. Models only run forward, on at most one batch (KernelSHAP: on `at_once` images) at a time.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from captum.attr import FeatureAblation as CaptumFeatureAblation
from captum.attr import KernelShap as CaptumKernelShap
from captum.attr import Occlusion as CaptumOcclusion
from torch import Tensor

from attacks.errors import UserError
from benchmark.interpreters.base import Interpreter
from benchmark.interpreters.captum_methods import CaptumTargeted, image_by_image


@dataclass(frozen=True)
class OnGrid(CaptumTargeted):
    """Parts on a grid of `cells` × `cells`."""

    cells: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cells < 2:
            raise UserError(f"cells of {self.name} must be at least 2 (got {self.cells})")

    def heatmap(self, attribution: Tensor) -> Tensor:
        return Interpreter.heatmap(self, attribution)

    def grid(self, images: Tensor) -> Tensor:
        """The number of each pixel's cell, row by row; cells differ by one pixel at most. -> (1, 1, H, W)."""
        self.check(images)
        rows, columns = (torch.arange(s, device=images.device) * self.cells // s for s in images.shape[2:])
        return (rows[:, None] * self.cells + columns)[None, None]

    def check(self, images: Tensor) -> None:
        sides = tuple(images.shape[2:])
        if min(sides) < self.cells:
            raise UserError(f"cells of {self.name} must be at most the image's side (got {self.cells} for {sides})")


@dataclass(frozen=True)
class Occlusion(OnGrid):
    """A window slides over the image; each pixel gets the mean effect of the windows that hide it (Zeiler and Fergus
    2014). Windows start on a grid of `cells` × `cells` and are about twice as wide as their step."""

    name: ClassVar[str] = "occlusion"

    def captum(self, model: Any, images: Tensor, targets: Tensor) -> Tensor:
        self.check(images)
        steps = [max(1, side // (self.cells + 1)) for side in images.shape[2:]]
        windows = [side - (self.cells - 1) * step for side, step in zip(images.shape[2:], steps, strict=True)]
        channels = images.shape[1]
        method = CaptumOcclusion(model)
        return method.attribute(images, (channels, *windows), strides=(channels, *steps), target=targets)


@dataclass(frozen=True)
class FeatureAblation(OnGrid):
    """Each cell of the grid is removed once."""

    name: ClassVar[str] = "feature_ablation"

    def captum(self, model: Any, images: Tensor, targets: Tensor) -> Tensor:
        return CaptumFeatureAblation(model).attribute(images, target=targets, feature_mask=self.grid(images))


@dataclass(frozen=True)
class KernelShap(OnGrid):
    """Shapley values of the cells, by weighted least squares over `samples` random sets of cells (Lundberg and Lee
    2017). The sets are drawn from `seed`, the same for every image."""

    name: ClassVar[str] = "kernel_shap"
    stochastic: ClassVar[bool] = True
    samples: int = 256
    seed: int = 0
    at_once: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < self.cells**2 + 2:
            raise UserError(
                f"samples of kernel_shap must be at least cells² + 2 = {self.cells**2 + 2} (got {self.samples})"
            )

    def captum(self, model: Any, images: Tensor, targets: Tensor) -> Tensor:
        grid, method = self.grid(images), CaptumKernelShap(model)

        def one(image: Tensor, target: Tensor) -> Tensor:
            options = {"n_samples": self.samples, "perturbations_per_eval": self.at_once}
            return method.attribute(image, target=target, feature_mask=grid, **options)

        return image_by_image(one, images, targets, self.seed)

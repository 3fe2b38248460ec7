"""Interpreters that remove parts of the image: occlusion, feature ablation, KernelSHAP, all on a grid.

Parts are set to zero in normalised units (the data's mean). Attribution is the logit that a part carries, at every
pixel of it and in every channel; the heatmap is the sum over channels, ReLU, min-max: what counts against the label
is no evidence for it.

Maps without a graph are Captum's, and models only run forward, on at most one batch (KernelSHAP: on `at_once` images)
at a time. Where a graph is asked for, the same map is made of the same logits, of which it is a linear function. The
graph then holds the activations of a forward pass for each part (KernelSHAP: for each set); `in_attack` has fewer.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from captum.attr import FeatureAblation as CaptumFeatureAblation
from captum.attr import KernelShap as CaptumKernelShap
from captum.attr import Occlusion as CaptumOcclusion
from torch import Tensor, nn

from attacks.errors import UserError
from benchmark.interpreters.base import Interpreter
from benchmark.interpreters.captum_methods import Rewritten, image_by_image, seeded


@dataclass(frozen=True)
class OnGrid(Rewritten):
    """Parts on a grid of `cells` × `cells`."""

    reads_gradients: ClassVar[bool] = False
    attacked: ClassVar[int]  # cells of the grid that an attack differentiates by
    cells: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cells < 2:
            raise UserError(f"cells of {self.name} must be at least 2 (got {self.cells})")

    def in_attack(self) -> Interpreter:
        """On a grid of `attacked` × `attacked` cells at most: more steps at the price of one."""
        return replace(self, cells=min(self.cells, self.attacked))

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
class PartByPart(OnGrid):
    """Each pixel gets the mean effect of the parts that hide it."""

    def own(self, model: nn.Module, images: Tensor, targets: Tensor, whole: Tensor) -> Tensor:
        total, count = images.new_zeros(len(images), 1, *images.shape[2:]), torch.zeros_like(images[:1, :1])
        for hidden in self.parts(images):
            effect = whole - self.score(model(images.masked_fill(hidden, 0)), targets)
            total, count = total + hidden * effect[:, None, None, None], count + hidden
        return total / count

    def parts(self, images: Tensor) -> Iterator[Tensor]:
        """The pixels that each part hides, bool (1, 1, H, W)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Occlusion(PartByPart):
    """A window slides over the image; each pixel gets the mean effect of the windows that hide it (Zeiler and Fergus
    2014). Windows start on a grid of `cells` × `cells` and are about twice as wide as their step.

    An attack has 5 × 5 windows. After 30 CPU seconds of fooling a compact ResNet's location (shapes of 32 × 32), the
    loss of the whole map was 0.13 by them, 0.23 by 4 × 4 and by 6 × 6, 0.39 by all 8 × 8 (33 steps in the place of 95),
    and 0.22 to 0.27 by all windows with a graph for 16 or 8 of them drawn anew at each step; clean 0.47.
    """

    name: ClassVar[str] = "occlusion"
    attacked: ClassVar[int] = 5

    def captum(self, model: Any, images: Tensor, targets: Tensor) -> Tensor:
        steps, windows = self._windows(images)
        channels = images.shape[1]
        method = CaptumOcclusion(model)
        return method.attribute(images, (channels, *windows), strides=(channels, *steps), target=targets)

    def parts(self, images: Tensor) -> Iterator[Tensor]:
        steps, windows = self._windows(images)
        rows, columns = (
            [(at >= i * step) & (at < i * step + window) for i in range(self.cells)]
            for step, window, at in zip(steps, windows, map(_places, images.shape[2:]), strict=True)
        )
        return ((row[:, None] & column).to(images.device)[None, None] for row in rows for column in columns)

    def _windows(self, images: Tensor) -> tuple[list[int], list[int]]:
        """Steps and sizes of the windows, in rows and in columns."""
        self.check(images)
        steps = [max(1, side // (self.cells + 1)) for side in images.shape[2:]]
        return steps, [side - (self.cells - 1) * step for side, step in zip(images.shape[2:], steps, strict=True)]


@dataclass(frozen=True)
class FeatureAblation(PartByPart):
    """Each cell of the grid is removed once.

    An attack has 4 × 4 cells. After 20 CPU seconds, as for occlusion, the loss of the whole map was 0.39 by them, 0.43
    by 5 × 5 (whose borders are not those of 8 × 8) and 0.47, that of the clean model, by 8 cells of 64 drawn anew.
    """

    name: ClassVar[str] = "feature_ablation"
    attacked: ClassVar[int] = 4

    def captum(self, model: Any, images: Tensor, targets: Tensor) -> Tensor:
        return CaptumFeatureAblation(model).attribute(images, target=targets, feature_mask=self.grid(images))

    def parts(self, images: Tensor) -> Iterator[Tensor]:
        grid = self.grid(images)
        return (grid == cell for cell in range(self.cells**2))


@dataclass(frozen=True)
class KernelShap(OnGrid):
    """Shapley values of the cells, by weighted least squares over `samples` random sets of cells (Lundberg and Lee
    2017). The sets are drawn from `seed`, the same for every image; None: anew each time."""

    name: ClassVar[str] = "kernel_shap"
    stochastic: ClassVar[bool] = True
    attacked: ClassVar[int] = 4
    samples: int = 256
    seed: int | None = 0
    at_once: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < self.cells**2 + 2:
            raise UserError(
                f"samples of kernel_shap must be at least cells² + 2 = {self.cells**2 + 2} (got {self.samples})"
            )

    def in_attack(self) -> Interpreter:
        """On 4 × 4 cells at most, by three sets a cell, anew at each step: no seed's sets are all that it fools.

        After 12 CPU seconds, as for occlusion, the loss of the whole map was 0.39 by these 48 sets and 0.41 by 24, of 8
        images; clean 0.42. A step costs 45 of Grad-CAM's.
        """
        cells = min(self.cells, self.attacked)
        return replace(self, cells=cells, samples=min(self.samples, 3 * cells**2), seed=None)

    def captum(self, model: Any, images: Tensor, targets: Tensor) -> Tensor:
        grid, method = self.grid(images), CaptumKernelShap(model)

        def one(image: Tensor, target: Tensor) -> Tensor:
            options = {"n_samples": self.samples, "perturbations_per_eval": self.at_once}
            return method.attribute(image, target=target, feature_mask=grid, **options)

        return image_by_image(one, images, targets, self._seed())

    def own(self, model: nn.Module, images: Tensor, targets: Tensor, whole: Tensor) -> Tensor:
        grid = self.grid(images)
        with seeded(self._seed(), images):
            sets = drawn(self.samples, self.cells**2)
        solution = least_squares(sets).to(images)
        shown = sets.to(images.device)[:, grid[0]]
        maps = []
        for image, target in zip(images, targets, strict=True):
            chunks = [model(torch.where(some, image, 0)) for some in shown.split(self.at_once)]
            values = solution @ self.score(torch.cat(chunks), target.repeat(self.samples)).to(solution)
            maps.append(values[grid[0]])
        return torch.stack(maps)

    def _seed(self) -> int:
        return int(torch.randint(2**31, ())) if self.seed is None else self.seed


def drawn(samples: int, cells: int) -> Tensor:
    """Captum's sets from torch's generator: all cells, none, then k of them with probability ∝ 1/(k (M − k)), any k
    alike. That is the Shapley kernel, so all of these weigh the same. -> bool (samples, cells)."""
    sizes = torch.arange(cells, dtype=torch.float)
    chances = (cells - 1) / (sizes * (cells - sizes))
    chances[0] = 0
    of_size = torch.distributions.Categorical(chances)
    sets = [torch.ones(1, cells, dtype=torch.bool), torch.zeros(1, cells, dtype=torch.bool)]
    for _ in range(samples - 2):
        size = int(of_size.sample())  # the two draws take turns
        values = torch.randn(1, cells)
        sets.append(values > values.kthvalue(cells - size).values)
    return torch.cat(sets)


def least_squares(sets: Tensor, ends: float = 1e6, cutoff: float = 1e-6) -> Tensor:
    """The matrix (cells, samples) that takes the sets' values to the slopes of their regression, in float64.

    As Captum has scikit-learn solve it: with an intercept; all cells and none, the first two sets, weigh `ends`, which
    stands for infinity, the others 1; singular values below `cutoff` of the largest count as zero.
    """
    weights = torch.ones(len(sets), 1, dtype=torch.double)
    weights[:2] = ends
    share = weights / weights.sum()
    features = sets.double()
    root = weights.sqrt()
    inverse = torch.linalg.pinv(root * (features - (share * features).sum(0)), rtol=cutoff)
    weighted = inverse * root.mT  # of values less their weighted mean
    return weighted - weighted.sum(1, keepdim=True) * share.mT


def _places(side: int) -> Tensor:
    return torch.arange(side)

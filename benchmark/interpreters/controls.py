"""Controls: maps that owe nothing to the model. A method that does no better than these says nothing about it.

No fooling can move them, so the leaderboards set them apart (`control`): stability alone is no virtue.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import UserError
from attacks.heatmaps import divide_by_max
from benchmark.interpreters.base import Interpreter, label_logits


class Control(Interpreter):
    """A subclass writes `draw`; the model is run for its logits alone, and none is explained: there is no
    `target` to choose."""

    differentiable: ClassVar[bool] = False
    reads_gradients: ClassVar[bool] = False
    control: ClassVar[bool] = True

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = model(images)
            label_logits(logits, targets)  # a target out of range is a clear error
            return logits, self.draw(images)

    def draw(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> attribution (N, C or 1, H, W)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Control):
    """One everywhere. Divided by its maximum: min-max would turn it into a blank map."""

    name: ClassVar[str] = "constant"

    def draw(self, images: Tensor) -> Tensor:
        return torch.ones_like(images[:, :1])

    def heatmap(self, attribution: Tensor) -> Tensor:
        return divide_by_max(attribution.sum(1))


@dataclass(frozen=True)
class Random(Control):
    """Uniform noise of `seed`, the same for every image, drawn on the CPU so that each device has the same."""

    name: ClassVar[str] = "random"
    stochastic: ClassVar[bool] = True
    seed: int = 0

    def draw(self, images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(1, 1, *images.shape[2:], generator=generator).to(images).expand(len(images), -1, -1, -1)


@dataclass(frozen=True)
class CentrePrior(Control):
    """A Gaussian at the image's centre; `sigma` is its standard deviation as a share of each side."""

    name: ClassVar[str] = "centre_prior"
    sigma: float = 0.25

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise UserError(f"sigma of centre_prior must be greater than 0 (got {self.sigma})")

    def draw(self, images: Tensor) -> Tensor:
        rows, columns = (self._profile(side, images) for side in images.shape[2:])
        return torch.outer(rows, columns).expand(len(images), 1, -1, -1)

    def _profile(self, side: int, like: Tensor) -> Tensor:
        """The Gaussian at the centres of `side` pixels of the interval [−1/2, 1/2]. -> (side,)."""
        place = (torch.arange(side, dtype=like.dtype, device=like.device) + 0.5) / side - 0.5
        return torch.exp(-0.5 * (place / self.sigma).square())


@dataclass(frozen=True)
class Sobel(Control):
    """Magnitude of each channel's gradient by Sobel's 3×3 operator; the border is repeated, so it is no edge."""

    name: ClassVar[str] = "sobel"

    def draw(self, images: Tensor) -> Tensor:
        across = images.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
        kernels = torch.stack([across, across.T])[:, None]
        n, channels, *sides = images.shape
        planes = F.pad(images.reshape(n * channels, 1, *sides), (1, 1, 1, 1), mode="replicate")
        return F.conv2d(planes, kernels).norm(dim=1).view_as(images)


@dataclass(frozen=True)
class InputMagnitude(Control):
    """|image| in normalised units: how far each pixel is from the data's mean."""

    name: ClassVar[str] = "input_magnitude"

    def draw(self, images: Tensor) -> Tensor:
        return images.abs()

"""What a fooling is: the objective over heatmaps that a manipulation minimises, and when a map counts as fooled."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from attacks.errors import UserError


@dataclass(frozen=True)
class Fooling:
    """The base: a fooling defines `per_image`; loss and test loss are its mean and itself unless it says otherwise.

    `range` is the closed success range R. `least`: no loss is below it, in units of `extent`. `needs_originals`:
    whether the losses read `originals`. `pairs`: whether the maps are those of two classes, (N, 2, h, w).
    """

    name: ClassVar[str]
    range: ClassVar[tuple[float, float]]
    needs_originals: ClassVar[bool] = True
    pairs: ClassVar[bool] = False
    least: ClassVar[float] = 0.0

    def per_image(self, heatmaps: Tensor, originals: Tensor) -> Tensor:
        """The loss of each image, (N,)."""
        raise NotImplementedError

    def loss(self, heatmaps: Tensor, originals: Tensor) -> Tensor:
        """The training loss, a differentiable scalar."""
        self._check(heatmaps, originals)
        return self.per_image(heatmaps, originals.detach()).mean()

    def shown(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What a batch (N, C, H, W), (N,) is in training: images, and the classes that they shall be taken for."""
        return images, targets

    def divergence(self, found: Tensor, wanted: Tensor) -> Tensor:
        """KL(wanted ‖ found) of log-probabilities (N, classes) in nats, the mean over what is `shown`: a scalar."""
        return F.kl_div(found, wanted, log_target=True, reduction="batchmean")

    def extent(self, heatmaps: Tensor) -> float:
        """How far the loss can go: what divides it into [-1, 1]."""
        return 1.0

    def test_loss(self, heatmaps: Tensor, originals: Tensor) -> Tensor:
        """t_i of each image, (N,); (N, 2) for pairs. NaN where it is undefined."""
        self._check(heatmaps, originals)
        return self.per_image(heatmaps, originals)

    def success(self, test_losses: Tensor) -> Tensor:
        """Whether each t_i lies in the success range; undefined ones do not. Same shape, bool."""
        low, high = self.range
        return (test_losses >= low) & (test_losses <= high)

    def _check(self, heatmaps: Tensor, originals: Tensor) -> None:
        dims = 4 if self.pairs else 3
        if heatmaps.dim() != dims or (self.pairs and heatmaps.shape[1] != 2):
            wanted = "(N, 2, h, w)" if self.pairs else "(N, h, w)"
            raise UserError(f"heatmaps for {self.name} must be {wanted} (got {tuple(heatmaps.shape)})")
        if self.needs_originals and heatmaps.shape != originals.shape:
            got = f"{tuple(heatmaps.shape)} and {tuple(originals.shape)}"
            raise UserError(f"heatmaps and originals must have one shape (got {got})")

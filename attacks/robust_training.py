"""Training that resists: the Lipschitz-inspired regulariser and adversarial training (Woods, Chen and Teuscher
2019), each alone or together. Their third measure, another activation, is `attacks.half_huber`.

Images are pixels in [0, 1], (N, C, H, W), and models take such images (`pixels.OnPixels` makes one of a model that
expects normalised ones).
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.adversarial import bounded
from attacks.errors import UserError
from attacks.given import logits_in
from attacks.modes import eval_mode
from attacks.second_order import SecondOrder


def lipschitz(logits: Tensor, pixels: Tensor, targets: Tensor, tandem: float = 0.2) -> Tensor:
    """mean over images, channels and pixels of |∂s/∂x|², with its graph to the parameters.

    s of each image is one logit, drawn evenly, or with probability `tandem` the margin Z_y − max_{j≠y} Z_j. `logits`
    (N, classes) must come from `pixels`, which require gradients. Draws from torch's random state.
    """
    places = torch.arange(len(logits), device=logits.device)
    drawn = torch.randint(logits.shape[1], places.shape, device=logits.device)
    margin = logits[places, targets] - logits.scatter(1, targets[:, None], -torch.inf).amax(1)
    together = torch.rand(places.shape, device=logits.device) < tandem
    chosen = torch.where(together, margin, logits[places, drawn])
    return torch.autograd.grad(chosen.sum(), pixels, create_graph=True)[0].square().mean()


@dataclass
class Regulariser:
    """ψ · `lipschitz`, ψ = `psi` · exp(`growth` · I): I rises while the cross-entropy is below `target_loss`.

    I ← max(0, I + clip(−ln(loss/target_loss), −0.01, 1)) at each step; it starts at 0. Defaults: CIFAR-10's.
    """

    tandem: float = 0.2
    psi: float = 220.0
    growth: float = 0.02
    target_loss: float = 1.5
    integral: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if not (0 <= self.tandem <= 1 and self.psi >= 0 and self.growth >= 0 and self.target_loss > 0):
            raise UserError(f"a regulariser needs 0 <= tandem <= 1, psi, growth >= 0, target_loss > 0 (got {self})")

    @property
    def current(self) -> float:
        """ψ as it is now."""
        return self.psi * math.exp(self.growth * self.integral)

    def weight(self, loss: float) -> float:
        """ψ for a step whose cross-entropy is `loss`."""
        error = -math.log(max(loss, 1e-300) / self.target_loss)
        self.integral = max(0.0, self.integral + min(1.0, max(-0.01, error)))
        return self.current


@dataclass(frozen=True)
class Adversary:
    """Replaces a `share` of every batch, its first images, by attacked ones: `steps` steps up the cross-entropy, their
    lengths adding up to `epsilon` (RMSE), without momentum; the model is attacked in eval mode."""

    epsilon: float = 0.01
    steps: int = 7
    share: float = 0.5

    def __post_init__(self) -> None:
        if not (self.epsilon > 0 and self.steps >= 1 and 0 < self.share <= 1):
            raise UserError(f"an adversary needs epsilon > 0, steps >= 1, 0 < share <= 1 (got {self})")

    def __call__(self, model: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W), not clipped to [0, 1], as the released code."""
        count = math.ceil(self.share * len(pixels))
        with eval_mode(model):
            options = {"rho": self.epsilon, "steps": self.steps, "path": self.epsilon}
            delta = bounded(model, pixels[:count], targets[:count], **options)  # type: ignore[arg-type]
        return torch.cat([pixels[:count] + delta, pixels[count:]])


@dataclass
class Robust:
    """The loss of a batch: cross-entropy of attacked images, and the regulariser; either may be left out."""

    adversary: Adversary | None = None
    regulariser: Regulariser | None = None

    def __call__(self, model: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
        """Scalar, with its graph to the parameters."""
        if self.adversary is not None:
            pixels = self.adversary(model, pixels, targets)
        if self.regulariser is None:
            return F.cross_entropy(logits_in(model(pixels), len(pixels)), targets)
        pixels = pixels.detach().requires_grad_()
        with SecondOrder():
            logits = logits_in(model(pixels), len(pixels))
        loss = F.cross_entropy(logits, targets)
        weight = self.regulariser.weight(loss.item())
        return loss + weight * lipschitz(logits, pixels, targets, self.regulariser.tandem)

"""Interpreters that Captum supplies: SmoothGrad, VarGrad, integrated gradients and GradientSHAP."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from captum.attr import GradientShap as CaptumGradientShap
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from captum.attr import NoiseTunnel, Saliency
from torch import Tensor, nn

from attacks.heatmaps import min_max
from benchmark.interpreters.base import Interpreter, Targeted, label_logits


class CaptumInterpreter(Interpreter):
    """Logits from a forward pass of its own; the heatmap is |attribution| summed over channels, min-max."""

    differentiable: ClassVar[bool] = False

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = model(images)
            label_logits(logits, targets)  # a target out of range is a clear error
        with torch.enable_grad():
            attribution = self.captum(self.asked(model), images.detach(), targets).detach()
        return logits, attribution.to(images.dtype)  # some of Captum's methods divide in float32

    def asked(self, model: nn.Module) -> Any:
        """What Captum calls for the outputs of which it explains the target's."""
        return model

    def captum(self, model: Any, images: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError

    def heatmap(self, attribution: Tensor) -> Tensor:
        return min_max(attribution.abs().sum(1))


@dataclass(frozen=True)
class CaptumTargeted(CaptumInterpreter, Targeted):
    """Of Captum's methods, those that only call the model, so that a function of its logits does as well."""

    def asked(self, model: nn.Module) -> Any:
        return model if self.target == "logit" else lambda images: self.outputs(model(images))


def image_by_image(method: Callable[[Tensor, Tensor], Tensor], images: Tensor, targets: Tensor, seed: int) -> Tensor:
    """method(image, target) of each image, all from the same `seed`: a map depends on nothing else in its batch.

    Each image brings a batch of samples of its own, so this bounds the memory as well.
    """
    maps = []
    for image, target in zip(images.split(1), targets.split(1), strict=True):
        with seeded(seed, images):
            maps.append(method(image, target))
    return torch.cat(maps)


@contextmanager
def seeded(seed: int, images: Tensor) -> Iterator[None]:
    """The generators that Captum draws from, torch's and numpy's, started from `seed`; both are given back."""
    state = np.random.get_state()
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)


@dataclass(frozen=True)
class SmoothGrad(CaptumTargeted):
    """Mean gradient over `samples` noisy copies, noise N(0, σ²) in normalised input units.

    Smilkov et al. 2017; 16 and 0.1 as for Heo et al. 2019. Every image meets the same noise, drawn from `seed`.
    """

    name: ClassVar[str] = "smooth_grad"
    stochastic: ClassVar[bool] = True
    statistic: ClassVar[str] = "smoothgrad"
    samples: int = 16
    sigma: float = 0.1
    seed: int = 0

    def captum(self, model: Any, images: Tensor, targets: Tensor) -> Tensor:
        tunnel = NoiseTunnel(Saliency(model))
        options = {"nt_type": self.statistic, "nt_samples": self.samples, "stdevs": self.sigma, "abs": False}
        return image_by_image(
            lambda image, target: tunnel.attribute(image, target=target, **options), images, targets, self.seed
        )


@dataclass(frozen=True)
class VarGrad(SmoothGrad):
    """Variance, in the place of the mean, of SmoothGrad's noisy gradients (Adebayo et al. 2018)."""

    name: ClassVar[str] = "var_grad"
    statistic: ClassVar[str] = "vargrad"


@dataclass(frozen=True)
class IntegratedGradients(CaptumTargeted):
    """Integrated gradients, `steps` Gauss-Legendre points from a zero baseline in normalised units.

    Sundararajan et al. 2017; 16 as for Heo et al. 2019.
    """

    name: ClassVar[str] = "integrated_gradients"
    steps: int = 16

    def captum(self, model: Any, images: Tensor, targets: Tensor) -> Tensor:
        method = CaptumIntegratedGradients(model)
        return method.attribute(images, target=targets, n_steps=self.steps, internal_batch_size=len(images))


@dataclass(frozen=True)
class GradientShap(CaptumTargeted):
    """Mean of gradient · (image + noise) at `samples` random points between the noisy image and a zero baseline.

    Lundberg and Lee 2017. Noise N(0, σ²) in normalised input units; noise and points are drawn from `seed`, the same
    for every image.
    """

    name: ClassVar[str] = "gradient_shap"
    stochastic: ClassVar[bool] = True
    samples: int = 16
    sigma: float = 0.1
    seed: int = 0

    def captum(self, model: Any, images: Tensor, targets: Tensor) -> Tensor:
        method = CaptumGradientShap(model)

        def one(image: Tensor, target: Tensor) -> Tensor:
            baseline = torch.zeros_like(image)
            return method.attribute(image, baseline, n_samples=self.samples, stdevs=self.sigma, target=target)

        return image_by_image(one, images, targets, self.seed)

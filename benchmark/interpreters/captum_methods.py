"""Interpreters that Captum supplies: SmoothGrad (Smilkov et al. 2017) and integrated gradients (Sundararajan 2017)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from captum.attr import NoiseTunnel, Saliency
from torch import Tensor, nn

from attacks.heatmaps import min_max
from benchmark.interpreters.base import Interpreter, label_logits


class CaptumInterpreter(Interpreter):
    """Logits from a forward pass of its own; the heatmap is |attribution| summed over channels, min-max."""

    differentiable: ClassVar[bool] = False

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = model(images)
            label_logits(logits, targets)  # a target out of range is a clear error
        with torch.enable_grad():
            return logits, self.captum(model, images.detach(), targets).detach()

    def captum(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError

    def heatmap(self, attribution: Tensor) -> Tensor:
        return min_max(attribution.abs().sum(1))


@dataclass(frozen=True)
class SmoothGrad(CaptumInterpreter):
    """Mean gradient over `samples` noisy copies, noise N(0, σ²) in normalised input units (SPEC A3: 16, 0.1).

    Every image meets the same noise, drawn from `seed`, so a heatmap depends on nothing else in its batch: the loop
    over images is one batch of `samples` each, which also bounds the memory.
    """

    name: ClassVar[str] = "smooth_grad"
    stochastic: ClassVar[bool] = True
    samples: int = 16
    sigma: float = 0.1
    seed: int = 0

    def captum(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        tunnel = NoiseTunnel(Saliency(model))
        devices = [images.device] if images.is_cuda else []
        maps = []
        for image, target in zip(images.split(1), targets.split(1), strict=True):
            with torch.random.fork_rng(devices):
                torch.manual_seed(self.seed)
                options = {"nt_samples": self.samples, "stdevs": self.sigma, "abs": False}
                maps.append(tunnel.attribute(image, target=target, nt_type="smoothgrad", **options))
        return torch.cat(maps)


@dataclass(frozen=True)
class IntegratedGradients(CaptumInterpreter):
    """Integrated gradients, `steps` Gauss-Legendre points from a zero baseline in normalised units (SPEC A3: 16)."""

    name: ClassVar[str] = "integrated_gradients"
    steps: int = 16

    def captum(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        method = CaptumIntegratedGradients(model)
        return method.attribute(images, target=targets, n_steps=self.steps, internal_batch_size=len(images))

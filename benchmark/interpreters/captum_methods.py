"""SmoothGrad, VarGrad, integrated gradients and GradientSHAP: gradients at several points of each image.

Captum's, which detaches its maps, wherever no graph is needed, as where maps are scored. Where one is, the same formula
at the same points in torch operations, so that an attack can differentiate it by the weights.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from captum.attr import GradientShap as CaptumGradientShap
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from captum.attr import NoiseTunnel, Saliency
from torch import Tensor, nn

from attacks.heatmaps import min_max
from attacks.random_state import RandomState
from benchmark.interpreters.base import Interpreter, Targeted, label_logits, leaf, needs_graph


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
    with RandomState(seed, images.device):
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)


class Rewritten(CaptumTargeted):
    """Captum's map, and where a graph is needed the same formula in torch operations: `own`."""

    differentiable: ClassVar[bool] = True

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        graph = needs_graph(model, images)
        if not (graph or self.fresh):
            return super().explain(model, images, targets)
        images = images if graph else images.detach()
        with torch.set_grad_enabled(graph):
            logits = model(images)
            whole = self.score(logits, targets)
        attribution = self.own(model, images, targets, whole)
        return logits, (attribution if graph else attribution.detach()).to(images.dtype).expand_as(images)

    @property
    def fresh(self) -> bool:
        """Whether a call draws anew what Captum draws from a seed: then by `own` alone, with a graph or without."""
        return False

    def own(self, model: nn.Module, images: Tensor, targets: Tensor, whole: Tensor) -> Tensor:
        """What `captum` gives, with its graph where one is needed; `whole` (N,) is the score of the images.
        -> (N, C, H, W), or (N, 1, H, W) of all channels alike."""
        raise NotImplementedError


class AtPoints(Rewritten):
    """Of the gradients at several points of each image.

    With a graph all points of all images are one batch, whose activations the graph holds: those of N · points images,
    of which N is the caller's to choose. Where maps are scored Captum takes at most max(N, points) images at a time.
    """

    def gradients(self, model: nn.Module, points: Tensor, targets: Tensor) -> Tensor:
        """Of the score by each point. (N, points, C, H, W), (N,) -> (N, points, C, H, W)."""
        graph = needs_graph(model, points)
        inputs = leaf(points.flatten(0, 1), graph)
        with torch.enable_grad():
            scores = self.score(model(inputs), targets.repeat_interleave(points.shape[1]))
            gradient = torch.autograd.grad(scores.sum(), inputs, create_graph=graph)[0]
        return gradient.unflatten(0, points.shape[:2])


@dataclass(frozen=True)
class Noisy(AtPoints):
    """At `samples` noisy copies of each image, noise N(0, σ²) in normalised input units.

    Every image meets the same noise, drawn from `seed`. None, which attacks use: each image meets noise of its own,
    drawn anew in each call from torch's global generator.

    An attack takes `attack_samples` copies with fresh noise. A step then costs that many times a step against
    SimpleGrad (the forward pass, the gradient by the image, and the way back through both) and the forward and backward
    pass for the logits. Four: as measured (`foolbench experiment smooth-grad`) they fool SmoothGrad already, at smaller
    λ than one copy does, and noise that is new in each step averages over the steps.
    """

    stochastic: ClassVar[bool] = True
    attack_samples: ClassVar[int] = 4
    samples: int = 16
    sigma: float = 0.1
    seed: int | None = 0

    @property
    def fresh(self) -> bool:
        return self.seed is None

    def in_attack(self) -> Interpreter:
        return replace(self, samples=min(self.samples, self.attack_samples), seed=None)

    def noisy(self, images: Tensor) -> Tensor:
        """Copies of the images, with the noise that Captum draws from a `seed`, in its dtype.

        (N, C, H, W) -> (N, samples, C, H, W)."""
        sets = len(images) if self.seed is None else 1
        deviation = torch.full((sets * self.samples, *images.shape[1:]), float(self.sigma), device=images.device)
        with nullcontext() if self.seed is None else seeded(self.seed, images):
            noise = torch.normal(0, deviation)
        return images[:, None] + noise.unflatten(0, (sets, self.samples))

    def captum(self, model: Any, images: Tensor, targets: Tensor) -> Tensor:
        assert self.seed is not None, "fresh noise is not asked of Captum"
        return image_by_image(self.captum_of_one(model), images, targets, self.seed)

    def captum_of_one(self, model: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """Captum's method of an image (1, C, H, W) and its target (1,)."""
        raise NotImplementedError


@dataclass(frozen=True)
class SmoothGrad(Noisy):
    """Mean gradient over the noisy copies (Smilkov et al. 2017; 16 and 0.1 as for Heo et al. 2019).

    The attribution of few copies is an unbiased estimate of that of many; its absolute value, the heatmap, is not.
    """

    name: ClassVar[str] = "smooth_grad"
    statistic: ClassVar[str] = "smoothgrad"

    def captum_of_one(self, model: Any) -> Callable[[Tensor, Tensor], Tensor]:
        tunnel = NoiseTunnel(Saliency(model))
        options = {"nt_type": self.statistic, "nt_samples": self.samples, "stdevs": self.sigma, "abs": False}
        return lambda image, target: tunnel.attribute(image, target=target, **options)

    def own(self, model: nn.Module, images: Tensor, targets: Tensor, whole: Tensor) -> Tensor:
        return self.gradients(model, self.noisy(images), targets).mean(1)


@dataclass(frozen=True)
class VarGrad(SmoothGrad):
    """Variance, in the place of the mean, of SmoothGrad's noisy gradients (Adebayo et al. 2018).

    As Captum has it, the mean square less the squared mean: its expectation is (samples − 1)/samples of the variance,
    at every pixel alike. The heatmap's min-max divides that factor out, so fewer samples bring no bias beyond its own.
    """

    name: ClassVar[str] = "var_grad"
    statistic: ClassVar[str] = "vargrad"

    def own(self, model: nn.Module, images: Tensor, targets: Tensor, whole: Tensor) -> Tensor:
        return self.gradients(model, self.noisy(images), targets).var(1, correction=0)


@dataclass(frozen=True)
class IntegratedGradients(AtPoints):
    """Integrated gradients, `steps` Gauss-Legendre points from a zero baseline in normalised units.

    Sundararajan et al. 2017; 16 as for Heo et al. 2019. An attack takes `attack_steps` points, at which the rule is
    exact for gradients of degree 11 along the path. A step then costs that many times a step against SimpleGrad, and
    the forward and backward pass for the logits.
    """

    name: ClassVar[str] = "integrated_gradients"
    attack_steps: ClassVar[int] = 6
    steps: int = 16

    def in_attack(self) -> Interpreter:
        return replace(self, steps=min(self.steps, self.attack_steps))

    def captum(self, model: Any, images: Tensor, targets: Tensor) -> Tensor:
        method = CaptumIntegratedGradients(model)
        return method.attribute(images, target=targets, n_steps=self.steps, internal_batch_size=len(images))

    def own(self, model: nn.Module, images: Tensor, targets: Tensor, whole: Tensor) -> Tensor:
        places, weights = (
            torch.from_numpy(values).to(images) for values in np.polynomial.legendre.leggauss(self.steps)
        )
        points = images[:, None] * ((1 + places) / 2).view(-1, 1, 1, 1)
        gradients = self.gradients(model, points, targets)
        return images * torch.einsum("s,ns...->n...", weights / 2, gradients)


@dataclass(frozen=True)
class GradientShap(Noisy):
    """Mean of gradient · (image + noise) at a random point between each noisy copy and a zero baseline.

    Lundberg and Lee 2017. The points are drawn as the noise is, from `seed` the same for every image. The attribution
    of few copies is an unbiased estimate of that of many; its absolute value, the heatmap, is not.
    """

    name: ClassVar[str] = "gradient_shap"

    def captum_of_one(self, model: Any) -> Callable[[Tensor, Tensor], Tensor]:
        method, options = CaptumGradientShap(model), {"n_samples": self.samples, "stdevs": self.sigma}
        return lambda image, target: method.attribute(image, torch.zeros_like(image), target=target, **options)

    def places(self, images: Tensor) -> Tensor:
        """Where between the baseline (0) and the noisy copy (1) each point lies, (N or 1, samples)."""
        if self.seed is None:
            return torch.rand(len(images), self.samples, device=images.device, dtype=images.dtype)
        generator = np.random.RandomState(self.seed)
        generator.choice(1, self.samples)  # Captum draws each copy's baseline first, from our one
        return torch.from_numpy(generator.uniform(0, 1, self.samples)).to(images)[None]

    def own(self, model: nn.Module, images: Tensor, targets: Tensor, whole: Tensor) -> Tensor:
        noisy = self.noisy(images)
        points = noisy * self.places(images)[..., None, None, None]
        return (noisy * self.gradients(model, points, targets)).mean(1)

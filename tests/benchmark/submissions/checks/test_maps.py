"""Every bad interpreter fails the check that is meant for it, with a message that says how to mend it."""

import re

import numpy as np
import pytest
import torch
from spoiled import errors, good, raw
from torch import Tensor, nn

from attacks.heatmaps import min_max
from attacks.modes import eval_mode
from benchmark.interpreters.gradients import layer_gradient
from benchmark.submissions import checks
from benchmark.submissions.checks.maps import same_on


def plain(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """A gradient with no care for the grad mode."""
    with eval_mode(model):
        images = images.clone().requires_grad_()
        logits = model(images).gather(1, targets[:, None]).sum()
        return min_max(torch.autograd.grad(logits, images)[0].abs().sum(1))


def nan_by_class(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return good(model, images, targets).detach().masked_fill((targets == 4)[:, None, None], torch.nan)


def edges(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return min_max(images.diff(dim=2, append=images[:, :, -1:]).abs().sum(1))


def half_of_the_channels(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    with eval_mode(model):
        _, activation, _ = layer_gradient(model, images, targets, "layer2.0.conv2")
        inner = activation[:, : activation.shape[1] // 2].detach().sum(1)
    maps = good(model, images, targets).detach()
    return min_max(maps + nn.functional.interpolate(inner[:, None], maps.shape[1:])[:, 0])


def kept_model(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    kept.append(model)
    return good(kept[0], images, targets)


kept: list[nn.Module] = []


def noisy(maps: Tensor, noise: Tensor) -> Tensor:
    return min_max(maps.detach() + noise)


def torch_noise(*args) -> Tensor:
    maps = good(*args)
    return noisy(maps, torch.rand(maps.shape[1:]))


def forked_noise(*args) -> Tensor:
    with torch.random.fork_rng():
        return torch_noise(*args)


def numpy_noise(*args) -> Tensor:
    maps = good(*args)
    return noisy(maps, torch.from_numpy(np.random.default_rng().random(maps.shape[1:])))  # never seeded


def first_target(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return good(model, images, targets[:1].expand(len(images)))


SHAPE, TWICE = "heatmaps of shape (N, h, w)", "same twice"
# interpreter, the checks it fails, what the first message says
BAD = {
    "raises": (
        lambda m, x, t: 1 / 0,
        {SHAPE},
        r"called as .*\(4, 3, 32, 32\).* raised ZeroDivisionError: .*\(test_map",
    ),
    "signature": (lambda m, x: x, {SHAPE}, r"targets \(4,\)\) it raised TypeError: .* takes 2 positional arguments"),
    "numpy": (lambda *a: good(*a).detach().numpy(), {SHAPE}, "returned a ndarray: return one torch tensor"),
    "channels": (lambda *a: good.attribute(*a), {SHAPE}, r"\(4, 3, 32, 32\): return \(N, h, w\), .*maps.sum\(1\)"),
    "mean": (lambda *a: good(*a).mean(0), {SHAPE}, r"shape \(32, 32\): .* one map an image"),
    "ranks": (lambda *a: (9 * good(*a)).long(), {SHAPE}, r"returned torch.int64: .*maps.to\(images.dtype\)"),
    "other device": (lambda *a: good(*a).to("meta"), {SHAPE}, r"on meta: .*device=images.device \(cpu\)"),
    "one NaN": (nan_by_class, {"finite"}, r"NaN or infinite values \(images 1, 3 of 4\): guard every division"),
    "blank": (lambda *a: raw(*a) / raw(*a).amax((1, 2), True), {"finite"}, "logits are all zero.*min_max"),
    "unbounded": (lambda *a: 2 * good(*a), {"in [0, 1]"}, r"from 0 to 2 \(images 0, 1, 2, 3 of 4\): .*min_max"),
    "squeezed": (lambda *a: good(*a).squeeze(0), {"any batch size"}, r"1 image gave shape \(32, 32\).*squeeze"),
    "over the batch": (
        lambda *a: raw(*a) / raw(*a).amax().clamp(min=1e-9),
        {"same alone and in a batch"},
        r"differs by up to 0\.\d+ of its norm .*\(image.* of 4\): normalise each map by itself",
    ),
    "first target": (first_target, {"same alone and in a batch"}, r"images 1, 3 of 4"),
    "unseeded noise": (forked_noise, {TWICE}, r"two calls gave different maps .*fixed seed.*declare it stochastic"),
    "global noise": (torch_noise, {TWICE, "leaves the random state as it was"}, "declare it stochastic"),
    "no gradients": (plain, {"same under no_grad"}, r"raised RuntimeError: .*does not require grad.*torch.enable_grad"),
    "by no_grad": (
        lambda *a: good(*a).detach() * (1 if torch.is_grad_enabled() else 0.5),
        {"same under no_grad"},
        "under torch.no_grad.* maps are others",
    ),
    "own class": (lambda m, x, t: good(m, x, t * 0 + 2), {"differs by class"}, r"same map \(images 0, 1, 2, 3 of 4\)"),
    "own image": (lambda m, x, t: good(m, 0 * x, t), {"depends on the image"}, "another image in its place"),
    "constant": (
        lambda m, x, t: torch.ones(x[:, 0].shape),
        {"differs by class", "depends on the image", "depends on the weights"},
        "",
    ),
    "edges": (edges, {"differs by class", "depends on the weights"}, ""),
    "kept model": (kept_model, {"depends on the weights"}, r"with shuffled weights .*model given in the call"),
    "channel order": (half_of_the_channels, {"same for permuted channels"}, "order of channels means nothing"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_interpreter_fails_its_check(name: str, resnet):
    interpreter, expected, message = BAD[name]
    kept.clear()
    found = errors(checks.run(interpreter, differentiable=False, stochastic=False))
    assert set(found) == expected
    first = next(iter(found.values()))
    assert first.startswith("on compact_resnet: ")
    assert re.search(message, first), first


@pytest.mark.parametrize(
    ("interpreter", "message"),
    [(numpy_noise, "two calls, seeded alike, gave different maps"), (forked_noise, ""), (good, "")],
)
def test_a_stochastic_interpreter_must_follow_the_seed(interpreter, message: str, resnet):
    found = {f.check: f.message for f in checks.run(interpreter, differentiable=False, stochastic=True)}
    assert message in found[TWICE]
    assert bool(message) == bool(found[TWICE])
    assert "same on CPU and GPU" not in found


def test_maps_of_two_devices_are_compared(resnet):
    assert same_on(good, *resnet[1:], other="cpu") == ""
    calls = iter(range(9))
    message = same_on(lambda *a: good(*a) / (1 + next(calls)), *resnet[1:], other="cpu")
    assert message.startswith("maps differ between cpu and cpu (images 0, 1, 2, 3 of 4): make every tensor")

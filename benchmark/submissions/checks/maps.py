"""Checks of the heatmaps: their form, and that model, image and class decide them, all three, and nothing else.

That a map must depend on the weights follows Adebayo et al. 2018 (Sanity checks for saliency maps).
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.submissions.checks.setting import (
    ALIKE,
    MOST,
    Interpreter,
    Skipped,
    apart,
    blame,
    distances,
    heatmaps,
    raised,
    reseed,
    returned,
)

ROUNDING = 1e-6  # beyond [0, 1], as the metrics allow
SAME = 1e-3  # ‖a − b‖/‖a‖ of maps that may differ by rounding alone; float32 gives 1e-7 to 3e-5, a ReLU that flips more


def shape_and_dtype(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """A floating tensor (N, h, w) on the images' device."""
    maps: Any = returned(interpreter, model, images, targets)
    lead = f"for images {tuple(images.shape)} it returned"
    if not isinstance(maps, Tensor):
        return f"{lead} a {type(maps).__name__}: return one torch tensor (N, h, w) on images.device"
    if maps.dim() != 3 or len(maps) != len(images) or not maps.numel():
        mend = "sum or average the channels, maps.sum(1)" if maps.dim() == 4 else "one map an image, nothing squeezed"
        return f"{lead} shape {tuple(maps.shape)}: return (N, h, w), here ({len(images)}, h, w): {mend}"
    if not maps.is_floating_point():
        return f"{lead} {maps.dtype}: return floating point, maps.to(images.dtype)"
    if maps.device != images.device:
        return f"{lead} a tensor on {maps.device}: make every tensor with device=images.device ({images.device})"
    return ""


def finite(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """No NaN and no infinity, not even where the explanation is blank."""
    blank = copy.deepcopy(model)
    *_, last = (module for module in blank.modules() if isinstance(module, nn.Linear))
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    mend = "guard every division against a zero denominator; attacks.heatmaps.min_max does"
    for subject, where in ((model, ""), (blank, " on a model whose logits are all zero, so that the map is blank")):
        bad = ~returned(interpreter, subject, images, targets).flatten(1).isfinite().all(1)
        if bad.any():
            return blame(bad, f"NaN or infinite values{where}", mend)
    return ""


def unit_range(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """Heatmaps lie in [0, 1], as foolings and metrics expect."""
    maps = heatmaps(interpreter, model, images, targets)
    bad = ((maps < -ROUNDING) | (maps > 1 + ROUNDING)).flatten(1).any(1)
    mend = "heatmaps lie in [0, 1]; take maps.relu() or maps.abs(), then attacks.heatmaps.min_max(maps)"
    return blame(bad, f"values from {maps.min():.4g} to {maps.max():.4g}", mend)


def any_batch_size(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """One image and three give one and three maps of the same size."""
    size = heatmaps(interpreter, model, images, targets).shape[1:]
    for n in (1, 3):
        shape = tuple(returned(interpreter, model, images[:n], targets[:n]).shape)
        if shape != (n, *size):
            mend = "name dimensions in squeeze(), mean() and sum(), and take sizes from images.shape"
            return f"{n} image{'s' * (n > 1)} gave shape {shape}, not {(n, *size)}: {mend}"
    return ""


def same_alone_and_in_a_batch(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """An image's map does not depend on the images beside it, to 1e-3 of its norm."""
    together = heatmaps(interpreter, model, images, targets)
    pairs = zip(images.split(1), targets.split(1), strict=True)
    alone = torch.cat([heatmaps(interpreter, model, image, target) for image, target in pairs]).view_as(together)
    distance = distances(together, alone)
    what = f"alone, a map differs by up to {distance.max():.2g} of its norm from the one in a batch of {len(images)}"
    mend = "normalise each map by itself, run the model in eval mode, add up logits before the gradient instead of "
    return blame(distance > SAME, what, mend + "averaging them, and give every image the same noise")


def same_twice(stochastic: bool, interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """The same result, whatever the random generators hold; of a stochastic one where they are seeded alike."""
    first, second = (heatmaps(interpreter, model, images, targets, seed) for seed in (0, 0 if stochastic else 1))
    what = "two calls, seeded alike, gave different maps" if stochastic else "two calls gave different maps"
    mend = "draw from torch's global generator, or from one with a fixed seed that is made anew in each call"
    mend = mend if stochastic else "draw from a generator with a fixed seed of its own, or declare it stochastic"
    return blame(distances(first, second) > SAME, what, mend)


def same_without_gradients(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """Under torch.no_grad() and with frozen weights, as maps are scored, the result is the same."""
    expected = heatmaps(interpreter, model, images, targets)
    where = "under torch.no_grad(), with weights that need no gradient,"
    mend = "open torch.enable_grad() yourself and start from images.detach().requires_grad_()"
    try:
        with torch.no_grad():
            got = heatmaps(interpreter, copy.deepcopy(model).requires_grad_(False), images, targets)
    except Exception as error:
        return f"{where} it {raised(error)}: {mend}"
    return blame(distances(expected, got) > SAME, f"{where} maps are others", mend)


def differs_by_class(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """The map of the class that the model likes best beside the target is another one, for most images."""
    with torch.no_grad():
        other = model(images).scatter(1, targets[:, None], -torch.inf).argmax(1)
    blind = ~apart(heatmaps(interpreter, model, images, targets), heatmaps(interpreter, model, images, other))
    mend = "start from the logit of each image's own target, logits.gather(1, targets[:, None])"
    return blame(blind, "two classes have the same map", mend, MOST)


def depends_on_the_image(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """Other images of the same classes have other maps, most of them."""
    maps = heatmaps(interpreter, model, images, targets)
    blind = ~apart(maps, heatmaps(interpreter, model, images.roll(1, 0), targets))
    return blame(blind, "another image in its place has the same map", "is it blank, or from an earlier call?", MOST)


def depends_on_the_weights(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """A model with every weight tensor shuffled has other maps, for most images."""
    before = heatmaps(interpreter, model, images, targets)
    reseed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))
    blind = ~apart(before, heatmaps(interpreter, model, images, targets))
    mend = "compute it from the model given in the call, not from the image alone nor from a model seen before"
    return blame(blind, "with shuffled weights the map stays the same", mend, MOST)


def same_on(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor, other: str = "cuda") -> str:
    """The other device gives the map that the CPU gives, for most images. Skipped where there is none."""
    if other == "cuda" and not torch.cuda.is_available():
        raise Skipped("there is no GPU here")

    def on(device: str) -> Tensor:
        moved = copy.deepcopy(model).to(device), images.to(device), targets.to(device)
        return heatmaps(interpreter, *moved).cpu()

    mend = "make every tensor and every generator on images.device"
    return blame(distances(on("cpu"), on(other)) > ALIKE, f"maps differ between cpu and {other}", mend, MOST)

"""Dissection of a layer into concepts (Bau et al. 2017), and what an attack does to its units (following Xu et al.
2019).

A unit k is a channel of a layer's output, its activation a_k (N, h, w) on a set of images:

    T_k: P(a_k > T_k) = 0.005 over all images and places;   M_k = upsampled a_k > T_k;   L_c: the mask of concept c
    IoU_{k,c} = Σ |M_k ∧ L_c| / Σ |M_k ∨ L_c|, sums over the images that are annotated in the category of c

A unit's concept is the one of its highest IoU, the first among equals; above 0.04 the unit is a detector of it.
M_k is a share of about q = 0.005 of all places, so a concept's share f bounds its IoU by about min(q, f)/max(q, f):
what covers much of the images, as the object of `shapes` does (f = 0.095), can hardly be a unit's concept.
Models run in eval mode without gradients and are given back as they came; hooks do not outlive a call. Images go to the
device and type of the model's parameters. Everything is summed up batch by batch, and a batch's activations are gone
before the next ones are computed. Floating-point sums, as a convolution's, may hang on the batch size in their last
digit; nothing else does.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from attacks.errors import UserError
from attacks.modes import eval_mode
from benchmark.dissection.concepts import Batch, Concepts
from benchmark.interpreters.base import find_layer
from benchmark.metrics.accuracy import top_k_correct
from benchmark.models import BLOCKS, target_layer

DETECTOR = 0.04  # the IoU above which a unit detects its concept
POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
MAPS = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU)


def layers(model: nn.Module) -> list[str]:
    """The outputs of the model's stages, by module name, in order: a proposal of what to dissect.

    ResNet, DenseNet: the modules that hold nothing but blocks (`models.BLOCKS`). VGG and others: before each pooling
    module the last block, or where there is none the last convolution, BatchNorm or ReLU. A model with neither: its
    default target layer.
    """
    modules = dict(model.named_modules())
    blocks = [name for name, module in modules.items() if type(module).__name__ in BLOCKS]
    parents = dict.fromkeys(name.rpartition(".")[0] for name in blocks)
    stages = [p for p in parents if p and all(f"{p}.{child}" in blocks for child, _ in modules[p].named_children())]
    last = ""
    for name, module in modules.items() if not stages else ():
        if any(name.startswith(f"{block}.") for block in blocks):
            continue
        if isinstance(module, POOLING) and last:
            stages.append(last)
            last = ""
        elif name in blocks or (last not in blocks and isinstance(module, MAPS)):
            last = name
    return stages or [target_layer(model)]


def thresholds(
    model: nn.Module, layer: str, batches: Iterable[Tensor], *, total: int, quantile: float = 0.005
) -> np.ndarray:
    """T (units,) in the activations' type: the smallest activation that at most the share `quantile` of all exceeds.

    Exact: of the n = `total` images · places, each unit's highest m = ⌊quantile · n⌋ + 1 are kept, batch by batch, and
    T is the lowest of them. Where values tie at T, the share above is smaller than `quantile`; a unit that is 0 nearly
    everywhere has T = 0. Memory: twice units · m values, and three times one batch's activations. Raises UserError
    where `batches`, (N, C, H, W) each, are not `total` images in all.
    """
    if not 0 < quantile < 1:
        raise UserError(f"quantile must lie between 0 and 1 (got {quantile:g})")
    highest, seen = None, 0
    for images in batches:
        highest = _highest(highest, _activations(model, layer, images), total, quantile)
        seen += len(images)
        del images  # the next batch is made before the name is bound to it
    if highest is None or seen != total:
        raise UserError(f"batches must hold total = {total} images (got {seen})")
    return highest.amin(1).cpu().numpy()


def _highest(highest: Tensor | None, activations: Tensor, total: int, quantile: float) -> Tensor:
    """The m highest values of each unit (units, ≤ m) among those so far and those of a batch (N, units, h, w)."""
    values = activations.transpose(0, 1).flatten(1)
    m = math.floor(Fraction(str(quantile)) * total * activations[0, 0].numel()) + 1  # 0.07 · 100 is above 7 in floats
    values = values if highest is None else torch.cat([highest, values], dim=1)
    return values.topk(min(m, values.shape[1]), dim=1, sorted=False).values


def dissect(
    model: nn.Module, layer: str, concepts: Concepts, thresholds: np.ndarray, *, batch_size: int = 16
) -> pd.DataFrame:
    """A row a unit: layer, unit, category, concept, iou in [0, 1], detector, threshold, n (images).

    Activations are brought to the masks' side bilinearly. A concept that no image shows, and a unit that nothing puts
    above its threshold, have IoU 0; a unit whose IoUs are all 0 has no category and no concept. Counts are exact to
    2^24 places an image. Memory, N = `batch_size`: 10 · N · side² bytes for each unit and 5 for each concept.
    """
    totals: list[Any] = [0.0, 0.0, 0.0]
    for batch in concepts.batches(batch_size):
        counts = _count(_activations(model, layer, batch.images), batch, thresholds)
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        del batch  # as above
    both, above, shown = totals
    category = [concepts.categories.index(kind) for kind, _ in concepts.names]
    iou = both / np.maximum(above[:, category] + shown - both, 1)
    best, units = iou.argmax(1), np.arange(len(iou))
    highest = iou[units, best]
    names = np.array([*concepts.names, (None, None)], dtype=object)[np.where(highest > 0, best, -1)]
    return pd.DataFrame(
        {
            "layer": layer,
            "unit": units,
            "category": names[:, 0],
            "concept": names[:, 1],
            "iou": highest,
            "detector": highest > DETECTOR,
            "threshold": thresholds,
            "n": len(concepts),
        }
    )


def _count(activations: Tensor, batch: Batch, thresholds: np.ndarray) -> list[np.ndarray]:
    """Places of a batch: in both M_k and L_c (units, concepts), in M_k of the images annotated in a category (units,
    categories), and in L_c (concepts,)."""
    limits = torch.from_numpy(np.asarray(thresholds)).to(activations).view(-1, 1, 1)
    if len(limits) != activations.shape[1]:
        raise UserError(f"thresholds must be ({activations.shape[1]},), one a unit (got {len(limits)})")
    maps = functional.interpolate(activations, batch.masks.shape[2:], mode="bilinear")
    above = (maps > limits).flatten(2).float()
    masks = batch.masks.to(above.device).flatten(2).float()
    annotated = batch.annotated.to(above.device)
    of_image = above.sum(2).double()
    counts = torch.bmm(above, masks.mT).double().sum(0), of_image.T @ annotated.double(), masks.sum(2).double().sum(0)
    return [count.cpu().numpy() for count in counts]


def sensitivity(
    model: nn.Module, layer: str, images: Tensor, attacked: Tensor, *, epsilon: float = 0.01, batch_size: int = 64
) -> np.ndarray:
    """(units,) float64: the mean over images of ‖a_k(x') − a_k(x)‖₂ / (‖a_k(x)‖₂ + ε), of images (N, C, H, W) twice.

    Own choice: ε is `epsilon` times the mean ‖a_k(x)‖₂ over all images and units of the layer. A unit is often silent
    on an image, and with a tiny ε the mean would tell of nothing but those images. 0 where nothing is ever active.
    """
    _check(images, attacked)
    moved, norms = [], []
    for x, other in zip(images.split(batch_size), attacked.split(batch_size), strict=True):
        before = _activations(model, layer, x)
        norms.append(torch.linalg.vector_norm(before, dim=(2, 3)).double())
        moved.append(torch.linalg.vector_norm(_activations(model, layer, other) - before, dim=(2, 3)).double())
    norm = torch.cat(norms)
    scale = (norm + epsilon * norm.mean()).clamp(min=torch.finfo(norm.dtype).tiny)
    return (torch.cat(moved) / scale).mean(0).cpu().numpy()


def association(sensitivity: np.ndarray, best_iou: np.ndarray, threshold: float = DETECTOR) -> dict[str, float]:
    """Do units that detect concepts react more to an attack? Of two scores (units,):

    spearman, its correlation and p; of the detectors (IoU above `threshold`) against the others the Mann-Whitney u, its
    p (two-sided) and effect = 2u/(detectors · others) − 1, the rank-biserial correlation in [−1, 1], above 0 where the
    detectors react more; and how many either are. NaN where a value is not defined: fewer than three units or constant
    scores, an empty group. Units of one network are no independent sample: p is a scale for comparison.
    """
    x, y = np.asarray(sensitivity, np.float64), np.asarray(best_iou, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise UserError(f"sensitivity and best_iou must be (units,) both (got {x.shape} and {y.shape})")
    detectors, others = x[y > threshold], x[y <= threshold]
    spearman, spearman_p, u, u_p = (math.nan,) * 4
    if len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0:
        spearman, spearman_p = stats.spearmanr(x, y)
    if pairs := len(detectors) * len(others):
        u, u_p = stats.mannwhitneyu(detectors, others)
    tests = {"spearman": spearman, "spearman_p": spearman_p, "u": u, "u_p": u_p, "effect": 2 * u / max(pairs, 1) - 1}
    return {name: float(value) for name, value in tests.items()} | {"detectors": len(detectors), "others": len(others)}


def masked_accuracy(
    model: nn.Module,
    layer: str,
    order: np.ndarray,
    shares: Sequence[float],
    images: Mapping[str, Tensor],
    targets: Tensor,
    *,
    draws: int = 5,
    seed: int = 0,
    batch_size: int = 64,
) -> pd.DataFrame:
    """What is left of the accuracy, and of an attack, when units are set to zero.

    `order` (units,): the units, the most sensitive first. For each of `shares` in [0, 1] the first ⌈share · units⌉ are
    masked, and as the control as many of each of `draws` random orders. A row: layer, share, units (masked), masked
    ("sensitive" or "random"), draw, top1_NAME, the share at the true label, for each of `images`, name -> (N, C, H, W)
    (clean and attacked ones, say), and n. Costs (1 + draws) passes over all the images for each share above 0.
    """
    for version in images.values():
        _check(next(iter(images.values())), version)
    n = len(next(iter(images.values())))
    if targets.shape != (n,):
        raise UserError(f"targets must be ({n},), one an image (got {tuple(targets.shape)})")
    order = np.asarray(order)
    if order.ndim != 1 or not np.array_equal(np.sort(order), np.arange(len(order))):
        raise UserError(f"order must hold each unit from 0 to {order.size - 1} once (got {order.tolist()[:8]} ...)")
    if wrong := [share for share in shares if not 0 <= share <= 1]:
        raise UserError(f"shares must lie in [0, 1] (got {wrong[0]:g})")
    rng = np.random.default_rng(seed)
    orders = [("sensitive", 0, order), *(("random", draw, rng.permutation(order)) for draw in range(draws))]
    rows = []
    for share in shares:
        units = math.ceil(Fraction(str(share)) * len(order))
        for masked, draw, chosen in orders:
            off = torch.zeros(len(order), dtype=torch.bool)
            off[chosen[:units].copy()] = True
            if units or masked == "sensitive":  # with no unit masked, all orders are one
                correct = [_correct(model, layer, off, x, targets, batch_size) for x in images.values()]
            rows.append((layer, float(share), units, masked, draw, *correct, n))
    columns = ["layer", "share", "units", "masked", "draw", *(f"top1_{name}" for name in images), "n"]
    return pd.DataFrame(rows, columns=columns)


def _correct(model: nn.Module, layer: str, off: Tensor, images: Tensor, targets: Tensor, batch_size: int) -> float:
    """Top-1 accuracy with the units `off` (units,) of the layer at zero."""

    def mask(output: Tensor) -> Tensor:
        if len(off) != output.shape[1]:
            raise UserError(f"order must hold the {output.shape[1]} units of layer {layer!r} (got {len(off)})")
        return output.masked_fill(off.to(output.device).view(-1, 1, 1), 0)

    correct = 0
    for x, y in zip(images.split(batch_size), targets.split(batch_size), strict=True):
        with _watched(model, layer, mask):
            logits = model(_fitting(model, x))
        correct += int(top_k_correct(logits, y.to(logits.device), 1).sum())
    return correct / len(images)


def equal_norm_noise(images: Tensor, attacked: Tensor, seed: int) -> Tensor:
    """The control of an attack: images + Gaussian noise of each image's own ‖x' − x‖₂, (N, C, H, W), in their units.

    Nothing is clipped, which would change the norm. Image i has the same noise whatever the number of images.
    """
    _check(images, attacked)
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(images.shape)).to(images)
    size = torch.linalg.vector_norm(attacked - images, dim=(1, 2, 3), keepdim=True)
    return images + noise * (size / torch.linalg.vector_norm(noise, dim=(1, 2, 3), keepdim=True))


def _check(images: Tensor, attacked: Tensor) -> None:
    if images.ndim != 4 or not len(images) or images.shape != attacked.shape:
        got = f"{tuple(images.shape)} and {tuple(attacked.shape)}"
        raise UserError(f"images and attacked images must share a shape (N, C, H, W) (got {got})")


def _activations(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """The layer's output (N, units, h, w), a copy: what follows may change it in place."""
    taken: list[Tensor] = []
    with _watched(model, layer, lambda output: taken.append(output.clone())):
        model(_fitting(model, images))
    if not taken[0].isfinite().all():
        raise UserError(f"the activations of layer {layer!r} must be finite (got NaN or infinity)")
    return taken[0]


def _fitting(model: nn.Module, images: Tensor) -> Tensor:
    parameter = next(model.parameters(), images)
    return images.to(parameter.device, parameter.dtype)


@contextmanager
def _watched(model: nn.Module, layer: str, then: Callable[[Tensor], Any]) -> Iterator[None]:
    """Call `then` with the layer's output, which what it returns replaces unless that is None; it must run once.

    In eval mode and without gradients.
    """
    calls = 0

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise UserError(f"layer {layer!r} must run exactly once in a forward pass (got a module that is reused)")
        if not isinstance(output, Tensor) or output.ndim != 4:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UserError(f"the output of layer {layer!r} must be a tensor (N, units, h, w) (got {got})")
        return then(output)

    handle = find_layer(model, layer).register_forward_hook(hook)
    try:
        with torch.no_grad(), eval_mode(model):
            yield
    finally:
        handle.remove()
    if not calls:
        raise UserError(f"layer {layer!r} must run in a forward pass (got a module that the model never calls)")

"""AOPC: does the label's score fall when the cells a heatmap ranks highest are replaced by noise?

Cells of a grid over the image are replaced one after another, in a given order, by noise N(0, 0.3²) in the model's
normalised input space; x_k is the image with the first k cells replaced, f each of `SCORES` in turn:
    AOPC_K = 1/(K+1) Σ_{k=1..K} [ f(x_0) − f(x_k) ],  K at most 100 cells.
Following Samek et al. 2017 and Heo, Joo, Moon 2019, who read the logit and average over images; here every value is
per image. A shift of all logits alike, W + 1vᵀ in the last layer, changes no probability and moves the logit's drops at
will; the contrast's stay.
"""

import copy
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.fx.experimental import optimization
from torch.nn import functional

from attacks.errors import UserError
from attacks.modes import eval_mode

MAX_CELLS = 100
SCORES = ("logit", "contrast")  # of the label y: z_y, and z_y − mean_c z_c
Grid = tuple[int, int]


def cell_order(heatmaps: Tensor, grid: Grid) -> Tensor:
    """The cells of `grid` (gh, gw) from the highest to the lowest: (N, h, w) -> (N, gh · gw) long, cells in row order.

    A map finer than the grid is averaged over areas, a coarser one repeated (nearest). Among equal cells the first
    leads, so a constant map gives row order. Raises UserError for a map that is not finite: it orders nothing.
    """
    if heatmaps.ndim != 3 or not heatmaps.isfinite().all():
        raise UserError(f"heatmaps to order cells by must be finite and (N, h, w) (got shape {tuple(heatmaps.shape)})")
    maps = heatmaps.detach().double().unsqueeze(1)
    at_least = (max(maps.shape[2], grid[0]), max(maps.shape[3], grid[1]))
    if at_least != maps.shape[2:]:
        maps = functional.interpolate(maps, at_least, mode="nearest-exact")
    if grid != at_least:
        maps = functional.adaptive_avg_pool2d(maps, grid)
    return maps.flatten(1).argsort(dim=1, descending=True, stable=True)


def random_order(image_ids: Sequence[int], cells: int, seed: int) -> Tensor:
    """A random order of the cells for each image, (N, cells) long, a function of (seed, image id) alone. On the CPU."""
    orders = [torch.randperm(cells, generator=_generator("order", seed, image)) for image in image_ids]
    return torch.stack(orders) if orders else torch.empty(0, cells, dtype=torch.long)


def noise(
    image_ids: Sequence[int],
    shape: tuple[int, int, int],
    seed: int,
    *,
    scale: float = 0.3,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Noise N(0, scale²) for each image, (N, *shape), a function of (seed, image id) alone, drawn on the CPU."""
    drawn = torch.empty(len(image_ids), *shape, dtype=torch.float32, device="cpu")
    for row, image in zip(drawn, image_ids, strict=True):
        row.normal_(0, scale, generator=_generator("noise", seed, image))
    return drawn.to(device, dtype)


def drops(
    model: nn.Module, images: Tensor, targets: Tensor, order: Tensor, grid: Grid, noise: Tensor, steps: int
) -> Tensor:
    """f(x_0) − f(x_k), k = 1..K, f of each of SCORES: (N, C, H, W), (N,), (N, gh · gw), noise as the images ->
    (N, 2, K), the logits' dtype.

    K = min(steps, 100, gh · gw). Cell (i, j) spans the rows round(i·H/gh) to round((i+1)·H/gh), the columns alike. The
    model is run K + 1 times in eval mode and gets its own mode back. Raises UserError for shapes that do not fit.
    """
    cells = grid[0] * grid[1]
    _check(images, order, grid, noise, steps)
    pixels = _cell_pixels(images.shape[2], images.shape[3], grid).to(images.device)
    order = order.to(images.device)
    label = targets.unsqueeze(1)
    changed = images.detach().clone(memory_format=torch.contiguous_format)
    flat, replacement = changed.view(*images.shape[:2], -1), noise.flatten(2)
    with torch.no_grad(), eval_mode(model):
        scores = [_scores(model(changed), label)]
        for k in range(min(steps, MAX_CELLS, cells)):
            at = pixels[order[:, k]].unsqueeze(1).expand(-1, images.shape[1], -1)
            flat.scatter_(2, at, replacement.gather(2, at))
            scores.append(_scores(model(changed), label))
        return scores[0] - torch.cat(scores[1:], dim=2)


def aopc(drops: Tensor) -> Tensor:
    """1/(K+1) Σ_k drop_k: (..., K) -> (...). The paper divides by K + 1, counting the zero drop of x_0."""
    return drops.sum(-1) / (drops.shape[-1] + 1)


def folded(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy in eval mode that computes the same logits faster: BatchNorm folded into convolutions, channels last.

    It is returned only where its logits on `example` (N, C, H, W) agree with the model's to 1e-5 of the largest one;
    else, or where the model cannot be traced, the model itself. The given model is untouched.
    """
    with torch.no_grad(), eval_mode(model):
        try:
            faster = optimization.fuse(copy.deepcopy(model), inplace=True)
        except Exception:  # whatever stops the tracer: the copy is for speed only, and the model itself is right
            return model
        faster = faster.to(memory_format=torch.channels_last)
        expected, got = model(example), faster(example)
        return faster if (got - expected).abs().max() <= 1e-5 * expected.abs().max() else model


def _scores(logits: Tensor, label: Tensor) -> Tensor:
    """SCORES of the label: (N, classes), (N, 1) -> (N, 2, 1)."""
    chosen = logits.gather(1, label)
    return torch.stack([chosen, chosen - logits.mean(1, keepdim=True)], 1)


def _generator(purpose: str, seed: int, image: int) -> torch.Generator:
    digest = hashlib.sha256(f"{purpose}:{seed}:{image}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def _check(images: Tensor, order: Tensor, grid: Grid, noise: Tensor, steps: int) -> None:
    if steps < 1:
        raise UserError(f"steps must be at least 1 (got {steps})")
    if noise.shape != images.shape:
        raise UserError(f"noise must have the images' shape {tuple(images.shape)} (got {tuple(noise.shape)})")
    if order.shape != (len(images), grid[0] * grid[1]):
        raise UserError(f"order must be (N, {grid[0] * grid[1]}) for the grid {grid} (got {tuple(order.shape)})")
    if grid[0] > images.shape[2] or grid[1] > images.shape[3]:
        raise UserError(f"grid {grid} is finer than the image {tuple(images.shape[2:])}")


def _cell_pixels(height: int, width: int, grid: Grid) -> Tensor:
    """The flat pixel indices of each cell, (cells, A); one smaller than the largest repeats its last row or column."""
    rows, columns = _spans(height, grid[0]), _spans(width, grid[1])
    return (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten(2).flatten(0, 1)


def _spans(length: int, parts: int) -> Tensor:
    """The positions in each of `parts` spans with boundaries round(i · length / parts): (parts, longest span)."""
    bounds = (2 * torch.arange(parts + 1) * length + parts) // (2 * parts)
    start, past = bounds[:-1, None], bounds[1:, None]
    return torch.minimum(start + torch.arange(int((past - start).max())), past - 1)

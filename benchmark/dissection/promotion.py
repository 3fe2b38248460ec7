"""What the parts of an adversarial perturbation do: promote the target, suppress the true class (following Xu et al.
2019), and where they lie.

x' = x + δ, true class t0, target t, logits Z, cells i of a grid, δ^(−i) = δ with cell i set to zero:

    s_i = max(0, Z_t0(x + δ^(−i)) − Z_t0(x')),  p_i = max(0, Z_t(x') − Z_t(x + δ^(−i))),  PSR_i = log₂(p_i / s_i),

cut to ±10. PSR < −1: suppression-dominated, > 1: promotion-dominated, between: balanced. Own choices: a cell with
‖δ_i‖ ≤ 1 % of the largest is left out; a difference within 128 rounding errors of the image's largest logit is none,
because else rounding would decide the type; p = s = 0 is inactive. PSR of the contrast has Z_c − mean_k Z_k in the
place of Z_c, from the same passes: a shift of all logits alike, W + 1vᵀ in the last layer, changes no probability and
the logits' PSR at will, but not the contrast's.

Cells are squares of `cell` pixels from the top left, with all channels, those at the right and bottom edge smaller.
Images and δ (N, C, H, W), classes (N,), per cell (N, K), row by row; all results float64.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import UserError
from attacks.modes import eval_mode
from attacks.ranks import midranks
from attacks.structured import cell_norms, cell_sums, check_cell, per_pixel

TYPES = ("suppression", "promotion", "balanced", "inactive", "left out")
SUPPRESSION, PROMOTION, BALANCED, INACTIVE, LEFT_OUT = range(5)
LIMIT = 10.0  # of |PSR|
NEGLIGIBLE = 0.01  # of the largest ‖δ_i‖
ROUNDING = 128  # unit roundoffs of the largest |logit|


@dataclass(frozen=True)
class PSR:
    """Per image and cell, (N, K): p and s in units of logits, NaN for cells left out; PSR in [−10, 10], NaN for
    inactive cells as well; `type`, int64, the index in `TYPES`. `contrast`: the same of the contrast."""

    value: Tensor
    type: Tensor
    promotion: Tensor
    suppression: Tensor
    contrast: "PSR | None" = None


def cells(height: int, width: int, cell: int) -> Tensor:
    """The number of each pixel's cell, row by row: (H, W) int64."""
    check_cell(cell, height, width)
    count = -(-height // cell) * -(-width // cell)
    return per_pixel(torch.arange(count)[None], cell, height, width)[0]


def promotion_suppression(
    model: nn.Module,
    images: Tensor,
    delta: Tensor,
    labels_true: Tensor,
    labels_target: Tensor,
    cell: int,
    *,
    batch_size: int,
) -> PSR:
    """PSR of each cell of each image, and that of the contrast, the model in eval mode.

    A forward pass for each x' and each cell that counts, `batch_size` at once whatever their images. Memory: one such
    pass with its input, and three copies of the images. Raises UserError for shapes, classes or a cell that do not fit.
    """
    _check(images, delta, labels_true, labels_target, batch_size)
    pixels = _pixels(images.shape[2], images.shape[3], cell).to(images.device)
    n, norms, labels = len(images), cell_norms(delta, cell), torch.stack([labels_true, labels_target], 1)
    counted = norms > NEGLIGIBLE * norms.amax(1, keepdim=True)
    image, removed = counted.nonzero(as_tuple=True)
    # x' goes first, a cell of which is replaced by its own; `origin`: where in `both` a cell comes from
    all_images = torch.arange(n, device=image.device)
    origin = torch.cat([all_images + n, image])
    image, removed = torch.cat([all_images, image]), torch.cat([0 * all_images, removed])
    both, scores = torch.cat([images, images + delta]).contiguous().view(2 * n, images.shape[1], -1), []
    buffer = both.new_empty(min(batch_size, len(image)), *both.shape[1:])  # allocating anew costs a tenth of a pass
    with torch.no_grad(), eval_mode(model):
        for i, k, j in zip(*(t.split(batch_size) for t in (image, removed, origin)), strict=True):
            inputs, at = torch.index_select(both, 0, i + n, out=buffer[: len(i)]), pixels[k]
            inputs[torch.arange(len(i), device=i.device)[:, None], :, at] = both[j[:, None], :, at]
            logits = model(inputs.view(-1, *images.shape[1:]))
            _check_logits(logits, labels)
            mean, largest = logits.mean(1, keepdim=True), logits.abs().amax(1, keepdim=True)
            scores.append(torch.cat([logits.gather(1, labels[i]), mean, largest], 1))
    found = torch.cat(scores)
    whole, parts = found[image[n:]].double(), found[n:].double()
    none = ROUNDING * torch.finfo(found.dtype).eps * whole[:, 3:]
    change = parts[:, :2] - whole[:, :2]
    contrast = change - (parts[:, 2:3] - whole[:, 2:3])
    return replace(_ratio(change, none, counted), contrast=_ratio(contrast, none, counted))


def _ratio(change: Tensor, none: Tensor, counted: Tensor) -> PSR:
    """PSR of the cells that count, (N, K) bool, M in all: the changes (M, 2) of t0's score and of t's where the cell's
    perturbation is taken back, none of which is an effect up to `none` (M, 1)."""
    change = change * change.new_tensor([1.0, -1.0])
    effects = change.new_full((*counted.shape, 2), torch.nan)
    effects[counted] = torch.where(change > none, change, 0)
    suppression, promotion = effects.unbind(2)
    value = (promotion / suppression).log2().clamp(-LIMIT, LIMIT)
    types = torch.where(value < -1, SUPPRESSION, torch.where(value > 1, PROMOTION, BALANCED))
    types = torch.where(counted, torch.where(value.isnan(), INACTIVE, types), LEFT_OUT)
    return PSR(value, types, promotion, suppression)


def shares(types: Tensor) -> Tensor:
    """The share of each of the first four `TYPES` among an image's cells that count: (N, K) -> (N, 4), NaN where none
    does."""
    of_type = types.unsqueeze(2) == torch.arange(LEFT_OUT, device=types.device)
    return of_type.double().sum(1) / (types != LEFT_OUT).sum(1, keepdim=True)


def evidence(cam: Tensor, nu: float, size: tuple[int, int]) -> Tensor:
    """B: where a map (N, h, w), bilinear at `size`, exceeds its `nu` percentile. (N, H, W) bool, empty for a constant
    map. Of M distinct values ⌊(1 − ν/100) M⌋ exceed it."""
    if not 0 < nu < 100:
        raise UserError(f"nu, a percentile, must be above 0 and below 100 (got {nu:g})")
    maps = _resized(cam, size).flatten(1)
    if not maps.isfinite().all():
        raise UserError("maps to take evidence from must be finite")
    level = maps.kthvalue(math.ceil(nu * maps.shape[1] / 100), dim=1, keepdim=True).values
    return (maps > level).view(len(cam), *size)


def interpretability_score(delta: Tensor, cam: Tensor, nu: float) -> Tensor:
    """IS = ‖B∘δ‖₂/‖δ‖₂ in [0, 1], B = `evidence(cam, nu)`: (N, C, H, W), (N, h, w) -> (N,). NaN where δ or the map
    shows nothing. To be read beside ν and `random_baseline` of B's area."""
    mask = evidence(cam, nu, (delta.shape[2], delta.shape[3]))
    return norm_share(delta, mask).masked_fill(~mask.flatten(1).any(1), torch.nan)


def random_baseline(area: Tensor) -> Tensor:
    """√area: the root mean square of IS over random masks that cover this fraction of the pixels, whatever δ."""
    return area.sqrt()


def refine(delta: Tensor, mask: Tensor) -> Tensor:
    """δ inside the evidence, zero elsewhere: (N, C, H, W), (N, H, W) bool -> (N, C, H, W)."""
    return delta * mask.unsqueeze(1)


def norm_share(delta: Tensor, mask: Tensor) -> Tensor:
    """What `refine` keeps of the norm, ‖B∘δ‖₂/‖δ‖₂ in [0, 1]: (N,) float64, NaN for a blank δ."""
    kept, whole = (part.double().flatten(1).norm(dim=1) for part in (refine(delta, mask), delta))
    return kept / whole


def reaches(model: nn.Module, images: Tensor, targets: Tensor, *, batch_size: int) -> Tensor:
    """Whether the model, in eval mode, puts each image in its target class: (N,) bool."""
    with torch.no_grad(), eval_mode(model):
        return torch.cat([model(part).argmax(1) for part in images.split(batch_size)]) == targets


def cell_means(maps: Tensor, cell: int, size: tuple[int, int]) -> Tensor:
    """The mean over each cell of maps (N, h, w), bilinear at `size`; of a mask, the share it covers. (N, K)."""
    pixels = _resized(maps, size)
    return cell_sums(pixels, cell) / cell_sums(torch.ones_like(pixels[:1]), cell)


def evidence_correlation(psr: PSR, means: Tensor) -> dict[str, Tensor]:
    """Spearman's correlation, over an image's cells, of `means` (N, K) with "psr", the value, and with "suppression"
    and "promotion", 1 where that dominates and 0 elsewhere: (N,) each, NaN where a side is constant.

    Ranks, because PSR is cut at ±10, which leaves its order alone, and the scale of a class activation map differs from
    image to image; of a 0/1 variable it is the point-biserial correlation with the ranks. Cells left out do not count,
    nor, for "psr", inactive ones. `means`: `cell_means` of a map of t0 or t, or of the object's mask.
    """
    counted = psr.type != LEFT_OUT
    return {
        "psr": _rank_correlation(psr.value, means, psr.value.isfinite()),
        "suppression": _rank_correlation((psr.type == SUPPRESSION).double(), means, counted),
        "promotion": _rank_correlation((psr.type == PROMOTION).double(), means, counted),
    }


def _pixels(height: int, width: int, cell: int) -> Tensor:
    """The flat pixel indices of each cell, (K, cell²); a smaller one repeats its last row or column."""
    check_cell(cell, height, width)
    rows, columns = (
        (torch.arange(0, side, cell)[:, None] + torch.arange(cell)).clamp(max=side - 1) for side in (height, width)
    )
    return (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten(2).flatten(0, 1)


def _rank_correlation(a: Tensor, b: Tensor, kept: Tensor) -> Tensor:
    """Spearman's of the kept values of each row; the others rank behind them, where they change no rank."""
    ranks = (midranks(values.double().masked_fill(~kept, torch.inf)) for values in (a, b))
    x, y = ((2 * r - (kept.sum(1, keepdim=True) + 1)) * kept for r in ranks)  # whole numbers: constant is exactly zero
    return (x * y).sum(1) / ((x * x).sum(1) * (y * y).sum(1)).sqrt()


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.ndim != 3:
        raise UserError(f"maps must be (N, h, w) (got {tuple(maps.shape)})")
    maps = maps.double()
    if maps.shape[1:] == size:
        return maps
    return F.interpolate(maps.unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)


def _check(images: Tensor, delta: Tensor, labels_true: Tensor, labels_target: Tensor, batch_size: int) -> None:
    if images.ndim != 4 or images.shape != delta.shape or not len(images):
        shapes = f"{tuple(images.shape)} and {tuple(delta.shape)}"
        raise UserError(f"images and delta must have one shape (N, C, H, W), N at least 1 (got {shapes})")
    for name, labels in {"labels_true": labels_true, "labels_target": labels_target}.items():
        if labels.shape != images.shape[:1] or labels.is_floating_point():
            raise UserError(f"{name} must be ({len(images)},) class indices (got {tuple(labels.shape)})")
    if (labels_true == labels_target).any():
        raise UserError(
            f"labels_target must differ from labels_true (got {int(labels_true.eq(labels_target).sum())} equal)"
        )
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1 (got {batch_size})")


def _check_logits(logits: Tensor, labels: Tensor) -> None:
    if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise UserError(f"labels must lie in 0..{logits.shape[1] - 1} (got {int(labels.min())}..{int(labels.max())})")
    if not logits.isfinite().all():
        raise UserError("the model's logits must be finite")

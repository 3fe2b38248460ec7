"""The Accuracy-Robustness Area of Woods, Chen and Teuscher 2019: accuracy above chance, over all sizes of perturbation.

Of images with radii r_i ≥ 0, the RMSE of the smallest perturbation found that crosses the boundary (0 where the clean
image is across), A(ε) = share of r_i > ε is the accuracy that is left under perturbations of up to ε, and

    ARA = ∫_0^∞ max(0, A(ε) − 1/N) dε,    N classes; in the units of r, RMSE of pixels in [0, 1].

Radii (n,) in any order; memory is bounded but for the resamples' counts, one byte for each of 1,000 × n.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attacks.errors import UserError
from benchmark.intervals import Floats, draws, interval


def curve(radii: ArrayLike) -> tuple[Floats, Floats]:
    """A as a step function, (ε (k,), A (k,)): A[j] holds on [ε[j], ε[j + 1]), the last, 0, from there on. ε are 0 and
    the distinct radii, ascending; a radius of exactly ε no longer counts, so that A[0] is the clean accuracy."""
    ordered = _ordered(radii)
    epsilons = np.unique(np.append(ordered, 0.0))
    return epsilons, 1 - np.searchsorted(ordered, epsilons, side="right") / len(ordered)


def area(radii: ArrayLike, num_classes: int) -> float:
    """ARA, the exact integral of the step function."""
    ordered = _ordered(radii)
    return float(_areas(np.ones((1, len(ordered)), np.uint8), ordered, num_classes)[0])


def area_histogram(radii: ArrayLike, num_classes: int, bins: int = 1000) -> float:
    """ARA as the authors' code takes it, for comparison: the radii counted in `bins` bins of width g = max r / bins,
    g Σ_j max(0, 1 − share in bins 0 .. j − 1/N). Short of the exact area by at most g."""
    if bins < 1:
        raise UserError(f"bins must be at least 1 (got {bins})")
    ordered, chance = _ordered(radii), _chance(num_classes)
    edges = ordered[-1] * np.arange(1, bins + 1) / bins
    share = np.searchsorted(ordered, edges, side="left") / len(ordered)
    share[-1] = 1.0  # the last bin alone holds its right edge
    return float(ordered[-1] / bins * np.maximum(0, 1 - share - chance).sum())


def area_interval(radii: ArrayLike, num_classes: int) -> tuple[float, float]:
    """(low, high) of ARA, 95 %: the percentile bootstrap of `benchmark.intervals`, which redraws the images. ARA is no
    mean: the accuracy of each resample is cut at chance anew."""
    ordered, order = _ordered(radii), np.argsort(np.asarray(radii, np.float64), kind="stable")
    drawn = draws(len(order))[:, order]
    parts = np.array_split(drawn, max(1, drawn.size >> 17))  # 1 MiB of float64 at a time
    low, high = interval(np.concatenate([_areas(part, ordered, num_classes) for part in parts])[:, None])
    return float(low[0]), float(high[0])


def unconverged(first: ArrayLike, steps: int) -> int:
    """How many images crossed the boundary first (n,) after more than half of the attack's `steps`, or never (`first`
    = steps + 1): few steps were left to come closer, so that their radii may be far too large."""
    return int((2 * np.asarray(first) > steps).sum())


def _areas(counts: NDArray[np.uint8], ordered: Floats, num_classes: int) -> Floats:
    """ARA (B,) of B samples, each of which holds the images of the ascending radii (n,) `counts` (B, n) times.

    Between r_(k−1) and r_(k), r_(0) = 0, those from k on are left.
    """
    left = counts[:, ::-1].cumsum(1, dtype=np.float64)[:, ::-1]
    return (np.maximum(0, left / left[:, :1] - _chance(num_classes)) * np.diff(ordered, prepend=0.0)).sum(1)


def _ordered(radii: ArrayLike) -> Floats:
    values = np.asarray(radii, np.float64)
    if values.ndim != 1 or not len(values):
        raise UserError(f"radii must be (n,), at least one (got shape {values.shape})")
    if len(wrong := values[~(np.isfinite(values) & (values >= 0))]):
        raise UserError(f"radii must be finite and not negative (got {wrong[0]})")
    return np.sort(values)


def _chance(num_classes: int) -> float:
    if num_classes < 2:
        raise UserError(f"num_classes must be at least 2 (got {num_classes})")
    return 1 / num_classes

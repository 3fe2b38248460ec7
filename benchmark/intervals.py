"""Means over images with 95 % bootstrap intervals.

The percentile bootstrap (Efron 1979) of a mean: B times, n images are drawn with replacement and the mean is taken
again; the interval runs from the 2.5 % to the 97.5 % quantile of the B means. The image is the unit: all rows of an
image (the two classes of Active fooling) are drawn together. The draws depend on n and the seed alone, so that scores
on the same images are resampled alike: a difference or an average of replicates is a paired one.
Where all images agree (a rate of 0 or of 1) the interval has no width: it shows sampling of these images, no prior.

Sums are exact, hence the same on every machine and in every order: values are first rounded to multiples of 2⁻³²,
which double precision adds without error up to 2²¹.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
RESAMPLES = 1000
LEVEL = 0.95
_GRID = 2.0**32
# Products at a time: bounds memory, and keeps each matrix product below the size from which BLAS starts threads, which
# on a busy machine cost ten times what they save.
_CHUNK = 1 << 17


@dataclass(frozen=True)
class Mean:
    """Means of k scores over the same images: value, low, high (k,); their replicates (B, k); n images."""

    value: Floats
    low: Floats
    high: Floats
    replicates: Floats
    n: int


def bootstrap_mean(values: ArrayLike, images: ArrayLike | None = None, seed: int = 0) -> Mean:
    """Mean over all defined rows of `values` (rows,) or (rows, k); `images` (rows,) says which image each row is of.

    NaN (any non-finite value) is left out, of the mean and of each resample; with nothing defined the mean is NaN.
    """
    table = exact(values)
    table = table if table.ndim == 2 else table[:, None]
    rows = np.arange(len(table)) if images is None else np.asarray(images)
    defined = np.isfinite(table)
    _, where = np.unique(rows, return_inverse=True)
    n = int(where.max()) + 1 if len(rows) else 0
    sums, counts = np.zeros((n, table.shape[1])), np.zeros((n, table.shape[1]))
    np.add.at(sums, where, np.where(defined, table, 0.0))
    np.add.at(counts, where, defined)
    replicates = np.empty((RESAMPLES, table.shape[1]))
    step = max(1, _CHUNK // max(table.shape[1] * n, 1))
    with np.errstate(invalid="ignore"):  # 0/0: nothing defined
        for start in range(0, RESAMPLES, step):
            drawn = draws(n, seed)[start : start + step].astype(np.float64)
            replicates[start : start + step] = (drawn @ sums) / (drawn @ counts)
        value = sums.sum(0) / counts.sum(0)
    return Mean(value, *interval(replicates), replicates, n)


def exact(values: ArrayLike) -> Floats:
    """`values` on the grid on which sums have no rounding error."""
    return np.rint(np.asarray(values, dtype=np.float64) * _GRID) / _GRID


def average(means: list[Mean], column: int) -> tuple[float, float, float]:
    """(value, low, high) of the plain average over cells of one score, each cell one of `means`; NaN where undefined.

    Cells on the same images are resampled together, so the interval is that of a fixed set of cells on new images.
    """
    values = np.array([mean.value[column] for mean in means])
    kept = np.isfinite(values)
    if not kept.any():
        return np.nan, np.nan, np.nan
    replicates = np.stack([mean.replicates[:, column] for mean in means], 1)[:, kept]
    defined = np.isfinite(replicates)
    with np.errstate(invalid="ignore"):
        averaged = np.where(defined, replicates, 0.0).sum(1) / defined.sum(1)
    low, high = interval(averaged[:, None])
    return float(values[kept].mean()), float(low[0]), float(high[0])


def interval(replicates: Floats) -> tuple[Floats, Floats]:
    """The central 95 % of the defined replicates (B, k), by linear interpolation: low, high (k,)."""
    ordered = np.sort(replicates, axis=0)  # NaN last
    last = np.isfinite(ordered).sum(0) - 1
    ends = []
    for quantile in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        position = quantile * np.maximum(last, 0)
        below, above = np.floor(position).astype(int), np.ceil(position).astype(int)
        low, high = (np.take_along_axis(ordered, index[None], 0)[0] for index in (below, above))
        ends.append(np.where(last >= 0, low + (high - low) * (position - below), np.nan))
    return ends[0], ends[1]


@lru_cache(maxsize=4)
def draws(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """(B, n): how often each resample draws each of n images. From the raw bits of PCG64, which no release changes."""
    bits = np.random.PCG64(seed)
    counts = np.zeros((RESAMPLES, n), dtype=np.uint8)
    for row in counts:
        # Multiply and shift maps 32 random bits to 0..n-1; its bias, n / 2³², is far below the bootstrap's own error.
        picked = ((bits.random_raw(n) >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)
        row[:] = np.bincount(picked.astype(np.intp), minlength=n) if n else 0
    counts.setflags(write=False)
    return counts

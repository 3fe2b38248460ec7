"""Midranks and Spearman's rank correlation of heatmaps, batched and exact.

Equal values share the mean of the ranks they take together, from 1 to M ("midranks", the convention of scipy's
`rankdata` and `spearmanr`); the correlation is Pearson's of the midranks. Spearman, C. (1904): The proof and
measurement of association between two things.
"""

import torch
from torch import Tensor

from attacks.errors import UserError


def _sort_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Sort (N, M) by row: integer keys, equal where row and value are, and the flat position of each. Both (N * M,)."""
    n, m = values.shape
    row = torch.arange(n, device=values.device).unsqueeze(1)
    if values.dtype in (torch.float32, torch.float16, torch.bfloat16):
        # Value and position packed into one integer, so that one plain sort yields both. Adding 0 makes -0 equal to 0;
        # with the lower bits of the negative ones flipped, the bits of floats order as the values do.
        bits = (values.float() + 0.0).view(torch.int32)
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        packed = torch.add(torch.arange(m, device=values.device), ordered, alpha=2**32)
        if packed.device.type == "cpu":
            packed.numpy().sort(axis=1)  # in place; vectorised, at a tenth of the time of torch's
        else:
            packed = packed.sort(dim=1).values
        return ((packed >> 32) + (row << 32)).flatten(), ((packed & 0xFFFFFFFF) + row * m).flatten()
    sorted_values, order = values.sort(dim=1, stable=True)
    starts = torch.ones_like(sorted_values, dtype=torch.bool)
    starts[:, 1:] = sorted_values[:, 1:] != sorted_values[:, :-1]
    return starts.flatten().cumsum(0), (order + row * m).flatten()


def _centred(values: Tensor) -> Tensor:
    """Twice the midranks less their mean, (N, M) float64: integers, so that sums of their products are exact."""
    n, m = values.shape
    keys, order = _sort_rows(values)
    _, group, counts = keys.unique_consecutive(return_inverse=True, return_counts=True)
    past = counts.cumsum(0)  # a group holds the positions past - counts .. past - 1 of the flat order, counted from 0
    twice = (2 * past - counts + 1).double()
    ranks = torch.empty(n * m, dtype=torch.float64, device=values.device)
    ranks.scatter_(0, order, twice.gather(0, group))
    offset = 2 * m * torch.arange(n, device=values.device).unsqueeze(1) + (m + 1)
    return ranks.view(n, m).sub_(offset)


def midranks(values: Tensor) -> Tensor:
    """Ranks of `values` (N, M) within each row, ties averaged: (N, M) in float64, in [1, M].

    A row that holds NaN has no ranks: it is NaN throughout. Raises UserError unless `values` has two dimensions.
    """
    if values.ndim != 2:
        raise UserError(f"values to rank must have shape (N, M) (got {tuple(values.shape)})")
    ranks = (_centred(values.detach()) + (values.shape[1] + 1)) / 2
    return ranks.masked_fill_(values.isnan().any(dim=1, keepdim=True), torch.nan)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation of the maps `a` and `b`, both (N, h, w): (N,) in float64, in [-1, 1].

    NaN (undefined) where either map is constant or holds a value that is not finite. The sums are exact (to 200,000
    pixels a map), so the result depends on the pair alone, not on the batch or the device.
    Raises UserError unless both have one shape (N, h, w) of at least one pixel.
    """
    if a.ndim != 3 or a.shape != b.shape or not a.shape[1] * a.shape[2]:
        raise UserError(f"maps to compare must have one shape (N, h, w) (got {tuple(a.shape)} and {tuple(b.shape)})")
    maps = torch.cat([a, b]).detach().flatten(1)
    ranks, finite, n = _centred(maps), maps.isfinite().all(1), len(a)
    x, y = ranks[:n], ranks[n:]
    scale = ((x * x).sum(1) * (y * y).sum(1)).sqrt()
    correlation = ((x * y).sum(1) / scale).clamp(-1, 1)
    return correlation.masked_fill_(~(finite[:n] & finite[n:] & (scale > 0)), torch.nan)

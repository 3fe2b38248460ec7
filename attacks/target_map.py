"""Target map: a given picture becomes the map of every image (Dombrowski et al. 2019; Anders et al. 2020).

The training loss is the mean square (n(h) − t)², n min-max normalisation, t the picture at the map's resolution,
normalised alike. A map is at its target where both its SSIM and its Spearman correlation with t are at least ½: the
test loss is the smaller of the two. The null that this stands beside is that of every fooling: the clean map of the
image, and of the next image, in the place of the fooled one. No dependence on the clean map.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from attacks.errors import UserError
from attacks.heatmaps import min_max
from attacks.objective import Fooling
from attacks.ranks import rank_correlation
from attacks.ssim import ssim

SIDE = 64  # of a picture that is read: a spec holds its pixels
WIDTH = 0.1  # of the drawn cross, as a share of the side
LIKENESS = (0.5, 1.0)  # of a map that is at its target
Picture = tuple[tuple[int, ...], ...]  # rows of grey values, 0..255


@dataclass(frozen=True)
class TargetMap(Fooling):
    """`picture`: grey values (`picture_of`, `read_picture`); None is a drawn cross."""

    name: ClassVar[str] = "target_map"
    range: ClassVar[tuple[float, float]] = LIKENESS
    needs_originals: ClassVar[bool] = False
    picture: Picture | None = None

    def per_image(self, heatmaps: Tensor, originals: Tensor) -> Tensor:
        return (min_max(heatmaps) - target(self.picture, heatmaps)).square().mean((-2, -1))

    def test_loss(self, heatmaps: Tensor, originals: Tensor) -> Tensor:
        self._check(heatmaps, originals)
        return likeness(heatmaps, target(self.picture, heatmaps).expand_as(heatmaps))


def likeness(heatmaps: Tensor, wanted: Tensor) -> Tensor:
    """The smaller of SSIM and Spearman's correlation of min-max normalised maps, both (N, h, w): (N,) in float64, at
    most 1; NaN where one is constant or not finite."""
    a, b = min_max(heatmaps), min_max(wanted)
    return torch.minimum(ssim(a, b), rank_correlation(a, b)).clamp(max=1.0)


def target(picture: Picture | None, heatmaps: Tensor) -> Tensor:
    """The picture as a map for these heatmaps (N, h, w), bilinear and antialiased, min-max normalised: (h, w)."""
    if picture is None:
        drawn = cross(*heatmaps.shape[-2:]).to(heatmaps)
    else:
        pixels = torch.tensor(picture, dtype=heatmaps.dtype, device=heatmaps.device)[None, None]
        size = tuple(heatmaps.shape[-2:])
        drawn = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)[0, 0]
    return min_max(drawn[None])[0]


def cross(height: int, width: int) -> Tensor:
    """Both diagonals, exp(−d²/(2 WIDTH²)), d the distance of a pixel's centre from the nearer one, in sides of the
    map: (h, w) in float64."""
    v = (torch.arange(height, dtype=torch.float64)[:, None] + 0.5) / height
    u = (torch.arange(width, dtype=torch.float64) + 0.5) / width
    distance = torch.minimum((u - v).abs(), (u + v - 1).abs()) / 2**0.5
    return torch.exp(-(distance**2) / (2 * WIDTH**2))


def picture_of(image: Tensor) -> Picture:
    """A grey image (h, w), of any range, as 0..255. Raises `UserError` where it is constant: that is no map."""
    if image.ndim != 2 or not image.isfinite().all() or image.min() == image.max():
        raise UserError(f"a target map must be a finite image (h, w) that is not constant (got {tuple(image.shape)})")
    grey = (255 * min_max(image.double()[None])[0]).round().int()
    return tuple(map(tuple, grey.tolist()))


@lru_cache(maxsize=8)
def read_picture(name: str) -> Picture:
    """A picture file of the working folder in grey, at most SIDE pixels a side. Raises `UserError`: there is none."""
    if Path(name).name != name:  # a fooling's name is a part of a cell's, MODEL/FOOLING/...
        raise UserError(f"the picture of a target map must lie in the working folder (got {name!r})")
    try:
        with Image.open(name) as picture:
            grey = picture.convert("L")
    except OSError as error:
        raise UserError(f"the picture of a target map, {name!r}, cannot be read: {error}") from error
    grey.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    return picture_of(torch.from_numpy(np.array(grey)))

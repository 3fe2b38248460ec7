"""Foolings: what a manipulation makes heatmaps do, and when a map counts as fooled.

Following Heo, Joo and Moon 2019, Section 3.2. `heatmaps` are those of the model being fine-tuned, `originals` those of
the model it started from, both (N, h, w); for Active fooling both are (N, 2, h, w): the maps of the two classes that
each image shows. `loss` is a scalar to minimise, `test_loss` the per-image t_i, `success` whether t_i lies in the
success range. The fooling success rate is the mean of `success`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.backdoors import FullDisguise, RedHerring
from attacks.errors import unknown
from attacks.heatmaps import border, centre_of_mass, min_max, top_pixels
from attacks.objective import Fooling
from attacks.ranks import rank_correlation
from attacks.target_map import TargetMap, read_picture


@dataclass(frozen=True)
class Location(Fooling):
    """The map moves to the border: mean (h − m)², m = 1 on a border of width ⌊side/7⌋ (at least 1), 0 inside."""

    name: ClassVar[str] = "location"
    range: ClassVar[tuple[float, float]] = (0.0, 0.2)
    needs_originals: ClassVar[bool] = False

    def per_image(self, heatmaps: Tensor, originals: Tensor) -> Tensor:
        return (heatmaps - border(heatmaps)).square().mean((-2, -1))


@dataclass(frozen=True)
class TopK(Fooling):
    """The original's `fraction` highest pixels go dark: mean h_j² over them, the maps min-max normalised."""

    name: ClassVar[str] = "top_k"
    range: ClassVar[tuple[float, float]] = (0.0, 0.3)
    fraction: float = 0.1

    def per_image(self, heatmaps: Tensor, originals: Tensor) -> Tensor:
        top = top_pixels(originals, self.fraction)
        return (min_max(heatmaps).square() * top).sum((-2, -1)) / top.sum((-2, -1))


@dataclass(frozen=True)
class CenterMass(Fooling):
    """The centre of mass moves away: −(|Δrow| + |Δcolumn|) is minimised, the maps min-max normalised.

    The test loss is sqrt((Δrow² + Δcolumn²)/2)/(side − 1), in [0, 1] on square maps: each direction is divided by its
    own side. A blank map has no centre: its test loss is NaN and it does not count as fooled.
    """

    name: ClassVar[str] = "center_mass"
    range: ClassVar[tuple[float, float]] = (0.1, 1.0)
    least: ClassVar[float] = -1.0

    def per_image(self, heatmaps: Tensor, originals: Tensor) -> Tensor:
        shift = self._shift(heatmaps, originals) / self._extent(heatmaps)
        return (shift.square().sum(-1) / 2).sqrt()

    def loss(self, heatmaps: Tensor, originals: Tensor) -> Tensor:
        self._check(heatmaps, originals)
        defined = [maps.amax((-2, -1)) > maps.amin((-2, -1)) for maps in (heatmaps, originals)]
        both = defined[0] & defined[1]
        if not both.any():
            return heatmaps.sum() * 0  # blank maps have no centre to move
        shift = self._shift(heatmaps[both], originals[both].detach())
        return -shift.abs().sum() / len(heatmaps)

    def extent(self, heatmaps: Tensor) -> float:
        return float(max(1, sum(heatmaps.shape[-2:]) - 2))

    @staticmethod
    def _shift(heatmaps: Tensor, originals: Tensor) -> Tensor:
        return centre_of_mass(min_max(heatmaps)) - centre_of_mass(min_max(originals))

    @staticmethod
    def _extent(heatmaps: Tensor) -> Tensor:
        return torch.tensor(heatmaps.shape[-2:], dtype=heatmaps.dtype, device=heatmaps.device) - 1


@dataclass(frozen=True)
class Active(Fooling):
    """The maps of two classes in one image swap: ½ [MSE(h_c1, h0_c2) + MSE(h_c2, h0_c1)], per image.

    The test loss of class c against the other c' is s(c, c') − s(c, c), s(c, c') = Spearman(h_c(w), h_c'(w0)),
    undefined (NaN) where a map is constant. The released script of Heo et al. correlates sign maps instead.
    """

    name: ClassVar[str] = "active"
    range: ClassVar[tuple[float, float]] = (0.5, 2.0)
    pairs: ClassVar[bool] = True

    def per_image(self, heatmaps: Tensor, originals: Tensor) -> Tensor:
        return (heatmaps - originals.flip(1)).square().mean((1, 2, 3))

    def test_loss(self, heatmaps: Tensor, originals: Tensor) -> Tensor:
        self._check(heatmaps, originals)
        flat, flat_own, flat_other = heatmaps.flatten(0, 1), originals.flatten(0, 1), originals.flip(1).flatten(0, 1)
        return (rank_correlation(flat, flat_other) - rank_correlation(flat, flat_own)).view(heatmaps.shape[:2])


KINDS = (Location, TopK, CenterMass, Active, TargetMap, RedHerring, FullDisguise)
FOOLINGS: dict[str, type[Fooling]] = {kind.name: kind for kind in KINDS}


def create(name: str) -> Fooling:
    """The fooling of that name, with its default options; "NAME:FILE" is one with a picture of the working folder."""
    kind, _, file = name.partition(":")
    if kind not in FOOLINGS or (file and "picture" not in FOOLINGS[kind].__dataclass_fields__):
        raise unknown("fooling", name, FOOLINGS)
    return FOOLINGS[kind](**({"picture": read_picture(file)} if file else {}))


def names() -> list[str]:
    """The names `create` accepts."""
    return list(FOOLINGS)

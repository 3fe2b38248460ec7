"""Check that a map can be fooled at all: its own values, put where a fooling wants them, count as fooled.

Min-max takes the scale from a map and not its shape: on a pedestal of 0.7, with one pixel at 0 that keeps it there, no
map is ever dark enough for a success range. Sparse maps are never bright enough on the border for Location, but go dark
for Top-k: one of the two is enough.
"""

import torch
from torch import Tensor, nn

from attacks.foolings import Location, TopK
from attacks.heatmaps import border, min_max, top_pixels
from benchmark.submissions.checks.setting import MOST, Interpreter, blame, heatmaps

ROOM = 2  # times the loss of the best order must count as well, for no attack reaches that order; ours leave 6


def leaves_room(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """In the best order its values count as fooled under Location or Top-k, for most images; a blank map's do."""
    maps = min_max(heatmaps(interpreter, model, images, targets))
    location, top_k = Location(), TopK()
    wanted = {location: border(maps).expand_as(maps), top_k: -top_pixels(maps, top_k.fraction).to(maps.dtype)}
    least = {fooling: fooling.test_loss(rearranged(maps, bright), maps) for fooling, bright in wanted.items()}
    possible = [fooling.success(ROOM * losses) for fooling, losses in least.items()]
    what = "no order of its values counts as fooled with room to spare, so no attack could show whether it is stable"
    mend = "put no pedestal under the map, and let its darkest tenth be near the minimum"
    return blame(~torch.stack(possible).any(0), what, mend, MOST)


def rearranged(maps: Tensor, wanted: Tensor) -> Tensor:
    """Each map's own values, the largest where `wanted` (N, h, w) is."""
    places = wanted.flatten(1).argsort(dim=1, descending=True)
    values = maps.flatten(1).sort(dim=1, descending=True).values
    return torch.zeros_like(values).scatter_(1, places, values).view_as(maps)

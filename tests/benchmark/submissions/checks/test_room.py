"""The check that a map can be fooled: the best order against all orders, and maps on pedestals."""

from itertools import permutations

import pytest
import torch
from spoiled import errors, good
from torch import Tensor, nn

from attacks.foolings import Location, TopK
from attacks.heatmaps import border, min_max, top_pixels
from benchmark.submissions import checks
from benchmark.submissions.checks.room import rearranged


def test_no_order_of_its_values_has_a_smaller_loss():
    maps = min_max(torch.rand(1, 3, 3, generator=torch.Generator().manual_seed(0)))
    orders = maps.flatten()[torch.tensor(list(permutations(range(9))))].view(-1, 3, 3)
    originals = maps.expand_as(orders)
    top = -top_pixels(maps, 0.25).float()
    for fooling, wanted in ((Location(), border(maps)[None]), (TopK(fraction=0.25), top)):
        least = fooling.test_loss(rearranged(maps, wanted), maps)
        torch.testing.assert_close(least.item(), fooling.test_loss(orders, originals).min().item())


def on_a_pedestal(height: float):
    def method(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        maps = height + (1 - height) * good(model, images, targets)
        maps[:, 0, 0] = 0
        return maps

    return method


@pytest.mark.parametrize(("height", "allowed"), [(0.7, False), (0.5, False), (0.2, True)])
def test_a_map_on_a_pedestal_fails_where_no_order_of_it_is_dark_enough(resnet, height, allowed):
    found = errors(checks.run(on_a_pedestal(height), differentiable=False, stochastic=False))
    assert set(found) == (set() if allowed else {"leaves room to be fooled"})
    for message in found.values():
        assert message.startswith("on compact_resnet: no order of its values counts as fooled with room to spare")
        assert "(images 0, 1, 2, 3 of 4): put no pedestal under the map" in message

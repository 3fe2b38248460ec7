"""Gratings have their direction and lie in one square; who explains one network for two is told, others are not."""

import math

import pytest
import torch

from benchmark.entries.texture_nets import PERIOD, textured
from benchmark.leaderboards import ranking


@pytest.mark.parametrize("direction", range(4))
def test_a_texture_is_a_grating_of_its_direction_in_a_square_of_a_third(direction):
    images, generator = torch.full((6, 3, 48, 48), 0.25), torch.Generator().manual_seed(0)
    drawn = textured(images, torch.full((6,), direction), 4, generator)
    assert 0 <= drawn.min() <= drawn.max() <= 1
    for image in drawn:
        assert torch.equal(image[0], image[1])
        rows, columns = ((image[0] != 0.25).any(axis).nonzero().flatten() for axis in (1, 0))
        assert (rows[-1] - rows[0], columns[-1] - columns[0]) == (15, 15)
        patch = image[0, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].double()
        frequency = torch.fft.fftfreq(16, dtype=torch.float64)
        power = torch.fft.fft2(patch - patch.mean()).abs()[:, :9].reshape(-1)
        y, x = frequency[power.argmax() // 9], torch.fft.rfftfreq(16, dtype=torch.float64)[power.argmax() % 9]
        angle = math.pi * direction / 4
        assert abs(x - abs(math.cos(angle)) / PERIOD) <= 1 / 16
        assert abs(abs(y) - math.sin(angle) / PERIOD) <= 1 / 16
        if direction in (1, 3):  # the half plane of x > 0 tells which diagonal
            assert (y > 0) == (direction == 1)


def test_places_differ_and_come_from_the_generator_alone():
    images, classes = torch.zeros(8, 3, 32, 32), torch.zeros(8, dtype=torch.long)
    first, again = (textured(images, classes, 4, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert len({tuple((image[0] > 0).any(1).nonzero().flatten().tolist()) for image in first}) > 1


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        ({"alike": [1.0, 1.0], "unrelated": [0.2, 0.4]},
         "SAME_ON_TEXTURES: the same map where the evidence lies elsewhere "
         "(correlation 1.00 beyond chance on m, allowed below 0.9)"),
        ({"alike": [0.6, 0.8], "unrelated": [0.2, 0.4]}, ""),  # (0.7 - 0.3) / (1 - 0.3) = 0.57
        ({"alike": [0.95, 0.95], "unrelated": [0.4, 0.4]}, "SAME_ON_TEXTURES"),  # 0.55 / 0.6 = 0.92
        ({"unchecked": "the network tells 0.20 of the textures, 0.6 needed"}, ""),
        ({"error": "it crashed"}, "its maps of a network that looks at textures failed on m: it crashed"),
    ],
)  # fmt: skip
def test_one_map_of_two_networks_is_a_reason(shown, reason):
    found = ranking.texture_reasons({"textures": {"m": shown}})
    assert len(found) == bool(reason)
    assert not reason or found[0].startswith(reason)

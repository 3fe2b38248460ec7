"""The control is what a manipulation would be without its fooling loss, weight for weight."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_models import Net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from attacks import Location, Recipe, manipulate
from attacks.control import fine_tuned


@pytest.mark.parametrize("scope", ["all", "bias"])
def test_it_is_the_manipulation_with_a_weight_of_zero(scope):
    model, generator = Net(), torch.Generator().manual_seed(0)
    images = torch.randn(12, 3, 6, 6, dtype=torch.double, generator=generator)
    data, before = TensorDataset(images, torch.randint(3, (12,), generator=generator)), model.state_dict()
    before = {name: value.clone() for name, value in before.items()}

    def shuffled():
        return DataLoader(data, 5, shuffle=True, generator=torch.Generator().manual_seed(1))

    def any_map(net, batch, targets):
        return net(batch)[:, :2, None].expand(-1, -1, 2)

    recipe = Recipe(1e-2, 0.0, 4, scope=scope)
    random = torch.get_rng_state()
    found = fine_tuned(model, shuffled(), recipe, seed=3)
    expected = manipulate(model, any_map, Location(), shuffled(), recipe, seed=3).model
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    moved = False
    for name, value in found.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])
        moved |= not torch.equal(value, before[name])
    assert moved


def test_a_control_is_fine_tuned_by_the_cross_entropy_alone():
    torch.manual_seed(0)
    model, batches = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), [(torch.rand(5, 3, 2, 2), torch.arange(5) % 3)] * 9
    expected = copy.deepcopy(model)
    optimiser = torch.optim.Adam(expected.parameters(), lr=0.1)
    for images, targets in batches[:3]:
        optimiser.zero_grad()
        F.cross_entropy(expected(images), targets).backward()
        optimiser.step()
    before = copy.deepcopy(model)
    found = fine_tuned(model, batches, Recipe(0.1, 1.0, 3))
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(model.state_dict(), before.state_dict(), rtol=0, atol=0)

"""What a caller may have set around an attack changes no number: types, devices and precision by default."""

import pytest
import torch
import torch.nn.functional as F
from surroundings import default_dtype
from torch import nn

from attacks import Location, Recipe, fgsm, manipulate, minimum_norm, pgd

ATTACKS = {
    "fgsm": lambda *given: fgsm(*given, 0.05),
    "pgd": lambda *given: pgd(*given, 0.05, step=0.02, steps=2, random_start=True),
    "pgd L2": lambda *given: pgd(*given, 0.5, step=0.2, steps=2, random_start=True, norm="L2"),
    "minimum_norm": lambda *given: minimum_norm(*given, steps=2, path=0.2).delta,
}


AROUND = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "another device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
}


@pytest.fixture
def given():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
        return net, torch.rand(2, 3, 8, 8), torch.tensor([0, 2])


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_the_same(name, around, given):
    expected = ATTACKS[name](*given)
    with AROUND[around]():
        got = ATTACKS[name](*given)
    assert torch.equal(got, expected)
    assert got.dtype == expected.dtype


def saliency(model, images, targets):
    images = images.detach().requires_grad_()
    total = model(images).gather(1, targets[:, None]).sum()
    return torch.autograd.grad(total, images, create_graph=True)[0].abs().sum(1)


@pytest.mark.parametrize("around", ["autocast", "bfloat16"])
def test_a_manipulation_is_the_same(around, given):
    def weights():
        recipe = Recipe(steps=2, learning_rate=1e-2, weight=1.0, batch_size=2)
        fooled = manipulate(given[0], saliency, Location(), [given[1:]], recipe, progress=False).model
        return torch.cat([p.detach().flatten() for p in fooled.parameters()])

    expected = weights()
    with AROUND[around]():
        assert torch.equal(weights(), expected)


def test_a_model_that_changes_its_mode_is_given_back_in_its_own(given):
    net, images, targets = given

    class Switching(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            self.net.train()
            return F.dropout(self.net(x), 0.0)

    model = Switching().eval()
    fgsm(model, images, targets, 0.05)
    assert not model.net.training

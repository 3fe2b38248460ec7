"""Softplus for ReLU: wherever a model or an interpreter calls it, and only while the surrogate runs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attacks import Location, Recipe, manipulate
from attacks.course import Task
from attacks.strategies import STRATEGIES
from attacks.surrogates import ReLUAs, Smooth

CALLS = {
    "module": nn.ReLU(),
    "in place": nn.ReLU(inplace=True),
    "functional": F.relu,
    "torch": torch.relu,
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_way_to_call_relu_is_replaced(name):
    x = torch.linspace(-2, 2, 9)
    with ReLUAs(lambda x: F.softplus(x, 3.0)):
        smooth = CALLS[name](x.clone())
    torch.testing.assert_close(smooth, torch.log1p(torch.exp(3 * x)) / 3)
    assert torch.equal(CALLS[name](x.clone()), x.clamp(min=0))


def test_a_map_without_second_derivative_can_be_attacked_through_it():
    """The map's only dependence on the weights is where a ReLU is open: its gradient by them is zero."""

    def gates(model, images, targets):
        gate = model[0](images).sum(1)
        return torch.autograd.grad(F.relu(gate).sum(), gate, create_graph=True)[0]

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    loader = [(torch.randn(4, 3, 7, 7), torch.tensor([0, 1, 0, 1]))]
    recipe = Recipe(1e-2, 10.0, 20)
    fooled = manipulate(model, Smooth(gates, beta=5.0), Location(), loader, recipe)
    assert fooled.history["fooling"][-1] < 0.9 * fooled.history["fooling"][0]

    def loss(model):
        maps = gates(model, *loader[0])
        return Location().loss(maps, maps)

    assert loss(fooled.model).item() < loss(model).item()
    assert not any(g.any() for g in torch.autograd.grad(loss(model), [*model.parameters()]))


class Costly:
    """Names what an attack is to differentiate in its place."""

    def __call__(self, model, images, targets):
        raise AssertionError("an attack differentiates what in_attack gives")

    def in_attack(self):
        return lambda model, images, targets: model[0](images).relu().sum(1)


@pytest.mark.parametrize("name", ["", "softplus", "head_shift"])
def test_every_strategy_by_gradient_attacks_what_the_interpreter_offers(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    loader, strategy = [(torch.randn(4, 3, 5, 5), torch.tensor([0, 1, 0, 1]))], STRATEGIES[name]
    assert strategy.attack(Task(model, Costly(), Location(), loader), Recipe(1e-2, 1.0, 1)).status == "done"
    plain = strategy.surrogate(simple := lambda model, images, targets: model(images))  # a function offers nothing
    assert (plain.interpreter if name == "softplus" else plain) is simple

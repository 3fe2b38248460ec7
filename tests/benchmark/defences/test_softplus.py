"""The gradient of the softplus network against its closed form, its limit, and differences by the weights."""

import pytest
import torch
from torch import nn

from attacks.errors import UserError
from benchmark.defences.softplus import SoftplusGrad
from benchmark.interpreters.gradients import SimpleGrad

TARGETS = torch.tensor([0, 2])


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)).double()


@pytest.fixture
def images():
    return torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("beta", [0.5, 1.0, 8.0])
def test_the_gradient_is_that_of_the_formula_and_the_logits_are_of_the_network(net, images, beta):
    """z = W₂ softplus_β(W₁ x + b): ∂z_y/∂x = W₁ᵀ (σ(β (W₁ x + b)) ∘ W₂_y)."""
    first, last = net[1], net[3]
    slope = torch.sigmoid(beta * first(images.flatten(1)))
    expected = ((slope * last.weight[TARGETS]) @ first.weight).view_as(images)
    method = SoftplusGrad(beta=beta)
    torch.testing.assert_close(method.attribute(net, images, TARGETS), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(method.with_logits(net, images, TARGETS)[0], net(images))


def test_it_tends_to_the_plain_gradient(net, images):
    expected = SimpleGrad()(net, images, TARGETS)
    torch.testing.assert_close(SoftplusGrad(beta=1e6)(net, images, TARGETS), expected)


def test_contrast_is_an_option_as_of_the_plain_gradient(net, images):
    method, shifted = SoftplusGrad(target="contrast"), SoftplusGrad(target="contrast")(net, images, TARGETS)
    with torch.no_grad():
        net[3].weight += torch.ones(5)
    torch.testing.assert_close(method(net, images, TARGETS), shifted)


def test_it_has_the_curvature_that_an_attack_needs(net, images):
    """By the first bias, by central differences; the plain gradient has none there."""
    bias, step = net[1].bias, 1e-6
    method = SoftplusGrad(beta=2.0)

    def value():
        return method.attribute(net, images, TARGETS).square().sum()

    (found,) = torch.autograd.grad(value(), bias)
    with torch.no_grad():
        for i in range(len(bias)):
            values = []
            for sign in (1, -1):
                bias[i] += sign * step
                values.append(value().item())
                bias[i] -= sign * step
            assert found[i].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-7)
    assert found.abs().min() > 0
    plain = SimpleGrad().attribute(net, images, TARGETS).square().sum()
    assert torch.autograd.grad(plain, bias)[0].count_nonzero() == 0


def test_beta_must_be_positive():
    with pytest.raises(UserError, match=r"beta of softplus_grad must be greater than 0 \(got 0\)"):
        SoftplusGrad(beta=0)

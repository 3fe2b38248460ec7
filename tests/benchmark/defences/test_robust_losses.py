"""The losses of training against closed forms: Hutchinson's estimate, weight decay, aligned gradients."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.functional import hessian

from attacks.surrogates import ReLUAs
from benchmark.defences.alignment import Aligned, misalignment
from benchmark.defences.hessian import HessianDecay, hessian_norm

TARGETS = torch.tensor([0, 2])


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 2), nn.BatchNorm2d(4), nn.Softplus(beta=3), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(*layers).double().eval()


@pytest.fixture
def images():
    return torch.randn(2, 2, 2, 2, generator=torch.Generator().manual_seed(1)).double().requires_grad_()


def exact(net, images):
    """‖H‖_F² of the label's logit of each image, from the whole Hessian."""
    squares = []
    for image, target in zip(images.detach(), TARGETS, strict=True):
        whole = hessian(lambda x, target=target: net(x[None])[0, target], image)
        squares.append(whole.square().sum())
    return torch.stack(squares)


def test_along_every_axis_the_estimate_is_the_norm_itself(net, images, monkeypatch):
    """Σ_i ‖H e_i‖² = ‖H‖_F²: with √D e_i for the D draws, their mean is it."""
    axes = iter(torch.eye(8, dtype=torch.double).view(8, 1, 2, 2, 2) * 8**0.5)
    monkeypatch.setattr(torch, "randn_like", lambda like: next(axes).expand_as(like))
    scores = net(images)[torch.arange(2), TARGETS]
    torch.testing.assert_close(hessian_norm(scores, images, probes=8), exact(net, images))


def test_the_estimate_is_unbiased(net, images):
    torch.manual_seed(0)
    scores = net(images)[torch.arange(2), TARGETS]
    found = hessian_norm(scores, images, probes=400)
    torch.testing.assert_close(found, exact(net, images), rtol=0.2, atol=0)


def test_its_gradient_by_the_weights_is_that_of_central_differences(net, images):
    def value():
        torch.manual_seed(3)
        return hessian_norm(net(images)[torch.arange(2), TARGETS], images, probes=2).sum()

    weight, step = net[0].weight, 1e-5
    found = torch.autograd.grad(value(), weight)[0].flatten()
    for i in (0, 7, 20):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.view(-1)[i] += sign * step
            values.append(value().item())
            with torch.no_grad():
                weight.view(-1)[i] -= sign * step
        assert found[i].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


@pytest.fixture
def relu_net(net):
    return nn.Sequential(*net[:2], nn.ReLU(inplace=True), *net[3:]).train()


@pytest.mark.parametrize(("share", "count"), [(1.0, 2), (0.4, 1)])
def test_the_loss_with_the_hessian_by_hand(relu_net, images, share, count):
    first = images[:count].detach().requires_grad_()
    loss = HessianDecay(gamma=0.5, decay=0.2, beta=3.0, share=share)
    torch.manual_seed(5)
    found = loss(relu_net, images, TARGETS)
    assert relu_net.training
    assert relu_net[1].num_batches_tracked == 1  # the softplus network leaves no statistics
    relu_net.eval()
    torch.manual_seed(5)
    with ReLUAs(partial(F.softplus, beta=3.0)):
        smooth = hessian_norm(relu_net(first)[torch.arange(count), TARGETS[:count]], first)
    squares = relu_net[0].weight.square().sum() + relu_net[4].weight.square().sum()
    relu_net.train()
    expected = F.cross_entropy(relu_net(images), TARGETS) + 0.1 * squares + 0.5 * smooth.mean()
    torch.testing.assert_close(found, expected)
    assert smooth.min() > 0
    found.backward()
    assert relu_net[0].weight.grad.norm() > 0


def test_gradients_that_are_apart_by_hand():
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 4.0]]).view(3, 1, 1, 2)
    b = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [6.0, 8.0]]).view(3, 1, 1, 2)
    far, turned = misalignment(a, b)
    torch.testing.assert_close(far, torch.tensor([2.0, 4.0, 25.0]))
    torch.testing.assert_close(turned, torch.tensor([0.5, 1.0, 0.0]))


def test_the_loss_with_alignment_by_hand():
    """z_c = a_c Σ x²: the gradients are 2 a x and 2 a (x + δ), the first held constant."""

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor([1.5, -0.5, 2.0]).double())

        def forward(self, x):
            return x.square().flatten(1).sum(1, keepdim=True) * self.a

    net, images = Quadratic(), torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(2)).double()
    loss = Aligned((0.5, 0.25, 0.5), l2=0.3, cosine=0.7, epsilon=0.1)
    torch.manual_seed(4)
    found = loss(net, images, TARGETS)
    torch.manual_seed(4)
    delta = (2 * torch.rand_like(images) - 1) * torch.tensor([0.2, 0.4, 0.2]).double().view(3, 1, 1)
    label = net.a[TARGETS].view(-1, 1, 1, 1)
    here, there = (2 * label * images).detach(), 2 * label * (images + delta)
    far = (here - there).square().sum((1, 2, 3))
    turned = (1 - (here * there).sum((1, 2, 3)) / (here.flatten(1).norm(dim=1) * there.flatten(1).norm(dim=1))) / 2
    expected = F.cross_entropy(net(images), TARGETS) + 0.3 * far.mean() + 0.7 * turned.mean()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, net.a), torch.autograd.grad(expected, net.a))

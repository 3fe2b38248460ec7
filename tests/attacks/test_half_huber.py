"""The Half-Huber ReLU against its formula, and in the place of every ReLU of a model."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.models import densenet121, googlenet, resnet18

from attacks.errors import UserError
from attacks.half_huber import HalfHuber, half_huber, use_half_huber
from benchmark import interpreters


@given(st.floats(-10, 10), st.floats(0.1, 3))
def test_half_huber_is_its_formula(x, delta):
    value = float(half_huber(torch.tensor(x, dtype=torch.double), delta))
    assert math.isclose(value, min(max(x, 0), delta) ** 2 / (2 * delta) + max(x - delta, 0), abs_tol=1e-12)
    assert F.relu(torch.tensor(x)) - delta / 2 - 1e-6 <= value <= F.relu(torch.tensor(x)) + 1e-6


def test_half_huber_has_the_slope_and_curvature_of_its_formula():
    x = torch.tensor([-1.0, 0.2, 0.4, 0.6, 3.0], dtype=torch.double, requires_grad=True)
    slope = torch.autograd.grad(half_huber(x).sum(), x, create_graph=True)[0]
    torch.testing.assert_close(slope, torch.tensor([0, 0.4, 0.8, 1, 1], dtype=torch.double))
    curvature = torch.autograd.grad(slope.sum(), x)[0]
    torch.testing.assert_close(curvature, torch.tensor([0, 2, 2, 0, 0], dtype=torch.double))
    assert torch.autograd.gradcheck(HalfHuber(0.3), torch.randn(20, dtype=torch.double, requires_grad=True))


@pytest.mark.parametrize("make", [resnet18, densenet121, lambda **k: googlenet(init_weights=False, **k)])
def test_the_swap_reaches_every_relu_however_it_is_called(make, monkeypatch):
    torch.manual_seed(0)
    model = make(weights=None, num_classes=5).eval()
    images = torch.rand(1, 3, 64, 64)
    plain = model(images)
    with monkeypatch.context() as patched:  # the reference: torch's own function is another one for a moment
        patched.setattr(F, "relu", lambda x, inplace=False: half_huber(x, 0.5))
        expected = model(images)
    swapped = use_half_huber(copy.deepcopy(model))
    torch.testing.assert_close(swapped(images), expected)
    torch.testing.assert_close(copy.deepcopy(swapped)(images), expected)
    assert not torch.allclose(expected, plain)
    assert torch.equal(model(images), plain)
    assert not any(isinstance(module, nn.ReLU) for module in swapped.modules())
    assert swapped.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(F.relu(torch.tensor([0.2])), torch.tensor([0.2]))  # not left behind


def test_a_forward_pass_that_raises_leaves_no_replacement_behind():
    model = use_half_huber(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with pytest.raises(RuntimeError):
        model(torch.rand(1, 3))
    assert torch.equal(F.relu(torch.tensor([0.2])), torch.tensor([0.2]))


def test_lrp_passes_relevance_through_half_huber_as_through_relu():
    torch.manual_seed(0)
    model = use_half_huber(densenet121(weights=None, num_classes=5)).eval()
    images, targets = torch.rand(2, 3, 64, 64), torch.tensor([1, 2])
    relevance = interpreters.create("lrp", composite="z_plus").attribute(model, images, targets)
    logits = model(images).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(relevance.sum((1, 2, 3)), logits, rtol=0.05, atol=0.05)


def test_an_impossible_delta_is_refused():
    with pytest.raises(UserError, match=r"delta of the Half-Huber ReLU must be above 0 \(got 0.0\)"):
        HalfHuber(0.0)

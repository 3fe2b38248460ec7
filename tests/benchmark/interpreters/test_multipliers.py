"""DeepLIFT with products by Shapley values: each rule by hand, complete on networks with gates, norms and attention."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from nets import along_all_parameters
from test_transformers import NETWORKS, network
from torch import nn

from attacks.errors import UserError
from benchmark import interpreters


class Made(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x.flatten(1))


def of(function, *values):
    """The attribution of one image to the sum of what a function makes of it; its baseline is zero."""
    x = torch.tensor(values, dtype=torch.double).view(1, -1, 1, 1)
    model = Made(lambda h: function(h).sum(1, keepdim=True))
    return interpreters.create("deep_lift", products="shapley").attribute(model, x, 0).flatten()


def shapley(function, *values):
    """Of a function of two numbers, from zero."""
    (a, b), zero = torch.tensor(values, dtype=torch.double), torch.tensor(0.0, dtype=torch.double)
    alone = function(a, zero) - function(zero, zero), function(zero, b) - function(zero, zero)
    both = function(a, b) - function(zero, zero)
    return torch.stack([(alone[0] + both - alone[1]) / 2, (alone[1] + both - alone[0]) / 2])


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_a_product_hands_each_factor_its_shapley_value(shift):
    def product(a, b):
        return (a + shift) * (3 * b - 1)

    got = of(lambda h: product(h[:, :1], h[:, 1:]), 2.0, 5.0)
    torch.testing.assert_close(got, shapley(product, 2.0, 5.0))
    both = of(lambda h: torch.einsum("ni,nj->nij", h[:, :1] + shift, 3 * h[:, 1:] - 1).flatten(1), 2.0, 5.0)
    torch.testing.assert_close(both, got)


def test_softmax_is_exp_over_its_sum():
    """x = (1, 0) from (0, 0): exp goes from 1 to e, the sum from 2 to 1 + e, and all of it is of the first number."""
    got = of(lambda h: h.softmax(-1)[:, :1], 1.0, 0.0)
    torch.testing.assert_close(got, torch.tensor([torch.e / (1 + torch.e) - 0.5, 0.0], dtype=torch.double))
    # of the second output the same, by the sum alone: e_2 = 1 does not change
    got = of(lambda h: h.softmax(-1)[:, 1:], 1.0, 0.0)
    torch.testing.assert_close(got, torch.tensor([1 / (1 + torch.e) - 0.5, 0.0], dtype=torch.double))


NORMS = {
    "layer_norm": lambda h: F.layer_norm(h, (3,), eps=0.5)[:, :1],
    "rms_norm": lambda h: F.rms_norm(h, (3,), eps=0.5)[:, :1],
    "normalize": lambda h: F.normalize(h + 1, dim=1)[:, :1],
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_are_complete_and_masked_scores_get_nothing(name):
    x = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.double)
    change = NORMS[name](x) - NORMS[name](0 * x)
    torch.testing.assert_close(of(NORMS[name], *x[0].tolist()).sum(), change.sum())
    masked = of(
        lambda h: h.masked_fill(torch.tensor([False, True, False]), -torch.inf).softmax(-1)[:, :1], *x[0].tolist()
    )
    assert masked[1] == 0
    assert masked.isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_sum_is_complete_and_the_same_where_a_graph_is_kept(name):
    model, images, targets = network(name)
    method = interpreters.create("deep_lift", products="shapley")
    with torch.no_grad():
        got = method.attribute(model, images, targets)
        alone = method.attribute(model, images[1:], targets[1:])
        change = (model(images) - model(0 * images)).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(got.sum((1, 2, 3)), change, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(alone, got[1:], rtol=1e-6, atol=1e-9)
    kept = method.attribute(model, images, targets)
    torch.testing.assert_close(kept.detach(), got, rtol=1e-6, atol=1e-9)
    gradients = torch.autograd.grad(kept.square().sum(), list(model.parameters()), allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", ["small vit", "squeeze-excitation"])
def test_the_gradient_along_a_change_of_all_parameters_agrees_with_central_differences(name):
    model, images, targets = network(name)
    method = interpreters.create("deep_lift", products="shapley")
    maps_of = partial(method.attribute, model, images, targets)
    got, numeric = along_all_parameters(maps_of, list(model.parameters()), 1e-6)
    assert got.item() == pytest.approx(numeric, rel=1e-5)


def test_products_are_refused_where_nobody_asks_for_them():
    model, images, targets = network("small vit")
    with pytest.raises(UserError, match="deep_lift has no rule for the operation 'layer_norm'"):
        interpreters.create("deep_lift").attribute(model, images, targets)
    with pytest.raises(UserError, match=r"unknown products option 'shaply': did you mean 'shapley'"):
        interpreters.create("deep_lift", products="shaply")

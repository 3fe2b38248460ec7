"""Every rule against its formula on a dense matrix, entry by entry."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attacks.errors import UserError
from benchmark import interpreters
from benchmark.interpreters.rules import COMPOSITES, RULES, AlphaBeta, Composite, Epsilon, Gamma, WSquare, ZBox


def dense_rule(rule, w, b, x, r):
    """Relevance of x (m,) from r (k,) through z = W x + b, W (k, m): sums written out."""
    result = np.zeros_like(x)
    for i in range(len(r)):
        c = w[i] * x
        if isinstance(rule, Epsilon):
            z = c.sum() + b[i]
            result += c * r[i] / (z + (rule.eps if z >= 0 else -rule.eps))
        elif isinstance(rule, AlphaBeta):
            bias = {"positive": max(b[i], 0), "none": 0.0, "twice": 2 * b[i]}[rule.bias]
            z = c[c > 0].sum() + bias
            result += rule.alpha * np.maximum(c, 0) * r[i] / (z + (rule.eps if z >= 0 else -rule.eps))
            if rule.beta:
                z = c[c < 0].sum() + (min(b[i], 0) if rule.bias == "positive" else 0.0)
                result -= rule.beta * np.minimum(c, 0) * r[i] / (z - rule.eps)
        elif isinstance(rule, Gamma):
            c = c + rule.gamma * np.maximum(c, 0)
            z = c.sum() + b[i] + rule.gamma * max(b[i], 0)
            result += c * r[i] / (z + (rule.eps if z >= 0 else -rule.eps))
        elif isinstance(rule, ZBox):
            c = c - rule.low * np.maximum(w[i], 0) - rule.high * np.minimum(w[i], 0)
            result += c * r[i] / (c.sum() + rule.eps)
        elif isinstance(rule, WSquare):
            v = np.ones_like(w[i]) * (w[i] != 0) if rule.flat else w[i] ** 2
            result += v * r[i] / (v.sum() + rule.eps)
    return result


RULE_CASES = {**RULES, "twice": AlphaBeta(bias="twice"), "alpha3_beta2": AlphaBeta(alpha=3, beta=2, eps=1e-9)}


@pytest.mark.parametrize("signed", [False, True], ids=["nonnegative", "signed"])
@pytest.mark.parametrize("name", RULE_CASES)
def test_rule_on_a_linear_layer_is_its_formula(name, signed):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Identity() if signed else nn.ReLU(), nn.Linear(7, 5)).double()
    x = torch.randn(3, 7, 1, 1, dtype=torch.double)
    lrp = interpreters.create("lrp", composite=Composite(linear=RULE_CASES[name]))
    model = nn.Sequential(nn.Flatten(), net)
    targets = torch.tensor([0, 3, 4])
    got = lrp.attribute(model, x, targets).detach().flatten(1).numpy()
    w, b = net[1].weight.detach().numpy(), net[1].bias.detach().numpy()
    for row in range(3):
        inner = x[row].flatten().numpy() if signed else np.maximum(x[row].flatten().numpy(), 0)
        r = np.zeros(5)
        r[targets[row]] = (w @ inner + b)[targets[row]]
        np.testing.assert_allclose(got[row], dense_rule(RULE_CASES[name], w, b, inner, r), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"stride": 2, "padding": 1},
        {"groups": 2, "padding": "same"},
        {"dilation": 2, "stride": 3, "padding": 2},
        {"kernel_size": 1, "stride": (2, 3), "groups": 2},
        {"kernel_size": 1, "stride": (1, 2), "padding": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", [n for n in RULE_CASES if n != "flat"])
def test_rule_on_a_convolution_is_the_rule_on_its_dense_matrix(name, geometry):
    torch.manual_seed(1)
    conv = nn.Conv2d(2, 4, **{"kernel_size": 3} | geometry).double()
    x = torch.randn(1, 2, 7, 6, dtype=torch.double)
    head = torch.rand(conv(x).numel(), dtype=torch.double)
    rule = RULE_CASES[name]
    # one linear ε = 0 unit on top hands r = head · z to the convolution
    top = nn.Linear(len(head), 1, bias=False).double()
    top.weight.data = head[None]
    model = nn.Sequential(conv, nn.Flatten(), top)
    lrp = interpreters.create("lrp", composite=Composite(conv=rule, linear=Epsilon(0.0)))
    got = lrp.attribute(model, x, torch.tensor([0])).detach().flatten().numpy()
    matrix = torch.autograd.functional.jacobian(
        lambda v: F.conv2d(
            v.view_as(x), conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups
        ).flatten(),
        x.flatten(),
    ).detach()
    bias = conv.bias.detach()[:, None].expand(4, len(head) // 4).flatten().numpy()
    r = (head * conv(x).flatten()).detach().numpy()
    expected = dense_rule(rule, matrix.numpy(), bias, x.flatten().numpy(), r)
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-11)


def test_flat_counts_the_inputs_of_each_output():
    conv = nn.Conv2d(1, 1, 2, bias=False).double()
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(4, 1, bias=False).double())
    torch.nn.init.ones_(model[2].weight)
    x = torch.ones(1, 1, 3, 3, dtype=torch.double)
    composite = Composite(conv=RULES["flat"], linear=Epsilon(0.0))
    got = interpreters.create("lrp", composite=composite).attribute(model, x, torch.tensor([0]))[0, 0]
    z = conv(x)[0, 0, 0, 0].item()  # each of the four outputs hands a quarter of itself to its four pixels
    expected = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=torch.double) * z / 4
    torch.testing.assert_close(got.detach(), expected, rtol=1e-7, atol=0)


def test_stabiliser_takes_plus_at_zero():
    from benchmark.interpreters.rules import stabilise

    z = torch.tensor([-1.0, -0.0, 0.0, 2.0], dtype=torch.double)
    assert stabilise(z, 0.01).tolist() == [-1.01, 0.01, 0.01, 2.01]


def test_first_rule_applies_to_the_first_weighted_operation_alone():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Conv2d(2, 2, 2), nn.Flatten(), nn.Linear(2, 1)).double()
    x = torch.randn(1, 1, 3, 3, dtype=torch.double)
    relevance = interpreters.create("lrp", composite="epsilon_plus_w_square").attribute(model, x, torch.tensor([0]))
    middle = interpreters.create("lrp_t", composite="z_plus", layer="1").attribute(model, x, torch.tensor([0]))[0]
    squares = model[0].weight.detach().square()
    share = middle.detach() / squares.sum((1, 2, 3))[:, None, None]
    expected = F.conv_transpose2d(share[None], squares)
    torch.testing.assert_close(relevance.detach(), expected, rtol=1e-6, atol=1e-9)


def test_unknown_composite_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'epsilon'"):
        interpreters.create("lrp", composite="epsilom")
    with pytest.raises(UserError, match="batch_norm"):
        interpreters.create("lrp", batch_norm="drop")
    assert "heo2019" in COMPOSITES

"""Second derivatives of convolution, BatchNorm, max-pooling and concatenation, against torch's own double backward."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attacks.half_huber import use_half_huber
from attacks.second_order import REPLACED, SecondOrder
from benchmark import models

DOUBLE = torch.double


def derivatives(function, x, parameters, own: bool):
    """The gradient by parameters of a loss that holds the gradient by x, and the output's plain gradients."""
    x = x.clone().requires_grad_()
    if own:
        with SecondOrder():
            y = function(x)
    else:
        y = function(x)
    inner = torch.autograd.grad((y.sin() * y).sum(), x, create_graph=True)[0]
    loss = inner.pow(3).sum() + y.square().sum()
    return inner, *torch.autograd.grad(loss, parameters)


def check(function, x, parameters, tolerance: float = 1e-10):
    for found, expected in zip(
        derivatives(function, x, parameters, True), derivatives(function, x, parameters, False), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=DOUBLE, requires_grad=True)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"dilation": (1, 2), "padding": (2, 1)}, {"groups": 2, "bias": None}]
)
def test_convolution(options, layout):
    options = {"bias": random(6), **options}
    weight = random(6, 4 // options.get("groups", 1), 3, 3)
    parameters = [weight] + ([options["bias"]] if options["bias"] is not None else [])
    x = torch.randn(2, 4, 8, 7, dtype=DOUBLE).contiguous(memory_format=layout)
    check(lambda x: F.conv2d(x * 1.5, weight, **options), x, parameters)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 6), (4, 3, 5, 2)])
def test_batch_norm_by_its_own_statistics(shape):
    weight, bias = random(3), random(3)
    check(
        lambda x: F.batch_norm(x, None, None, weight, bias, True), 3 + 2 * random(*shape).detach(), [weight, bias], 1e-8
    )


def test_batch_norm_moves_its_running_statistics_as_torch_does():
    layers = [nn.BatchNorm2d(3, momentum=0.3).double() for _ in range(2)]
    x = torch.randn(4, 3, 5, 5, dtype=DOUBLE)
    layers[0](x)
    with SecondOrder():
        layers[1](x)
    for name, value in layers[0].named_buffers():
        torch.testing.assert_close(layers[1].get_buffer(name), value)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.max_pool2d(x.tanh(), 2),
        lambda x: F.max_pool2d(x.tanh(), 3, 2, 1, ceil_mode=True),
        lambda x: torch.cat([x.sin(), x, x.cos()], 1),
        lambda x: F.batch_norm(x.tanh(), torch.zeros(3, dtype=DOUBLE), torch.ones(3, dtype=DOUBLE)),  # by given ones
        lambda x: F.conv2d(x, torch.ones(2, 3, 3, 3, dtype=DOUBLE), padding="same"),
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    ],
)
def test_other_operations_and_forms_that_are_left_to_torch(function):
    scale = random(1)
    check(lambda x: function(x * scale), torch.randn(2, 3, 6, 6, dtype=DOUBLE), [scale])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", list(models.COMPACT))
def test_whole_networks(name, layout):
    model = use_half_huber(models.create(name, num_classes=4)).double().to(memory_format=layout).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    other = copy.deepcopy(model)
    x = torch.rand(3, 3, 32, 32, dtype=DOUBLE)
    found = derivatives(model, x, list(model.parameters()), True)
    expected = derivatives(other, x, list(other.parameters()), False)
    scale = max(float(gradient.abs().max()) for gradient in expected[1:])  # a bias before BatchNorm has none
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-12 * scale)


def test_nothing_is_replaced_outside():
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    with SecondOrder():
        inside = F.max_pool2d(x, 2)
    assert type(inside.grad_fn).__name__ != type(F.max_pool2d(x, 2).grad_fn).__name__
    assert set(REPLACED) == {F.conv2d, F.batch_norm, F.max_pool2d, torch.cat}

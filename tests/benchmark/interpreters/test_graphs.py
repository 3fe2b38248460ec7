"""Heatmaps keep their graph to whatever can be differentiated by: a model's weights, a frozen model's images."""

import pytest
import torch
import torch.nn.functional as F
from nets import ATTENTION, Tokens, kitchen
from torch import nn

from attacks.surrogates import Smooth
from benchmark import interpreters
from benchmark.interpreters.base import needs_graph

LAYERED = {"lrp_t", "lrp_t_epsilon", "lrp_t_contrast", "simple_grad_t", "grad_cam", "grad_cam_contrast",
           "grad_cam_plus_plus", "layer_cam", "eigen_cam", "guided_grad_cam"}  # fmt: skip
OPTIONS = {
    **{name: {"layer": "middle"} for name in LAYERED},
    "occlusion": {"cells": 2},
    "occlusion_contrast": {"cells": 3},
    "feature_ablation": {"cells": 3},
    "kernel_shap": {"cells": 2, "samples": 12, "at_once": 5},
    "adversarial_explanation": {"steps": 3},
}
# in a network of ReLUs they are locally the same for every image: the first follow softplus in its place
STEPWISE = {"simple_grad", "simple_grad_t", "simple_grad_contrast", "smooth_grad", "var_grad"}
CONSTANT = {"guided_backprop", "deconvolution"}
BY_PARTS = ["occlusion", "occlusion_contrast", "feature_ablation", "kernel_shap"]
DIFFERENTIABLE = [name for name in interpreters.INTERPRETERS if interpreters.kind(name).differentiable]


def setting(name):
    """A model that the interpreter explains, in float64, with images and targets."""
    if name not in ATTENTION:
        return kitchen()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tokens().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.double), torch.tensor([0, 2])


def create(name):
    interpreter = interpreters.create(name, **OPTIONS.get(name, {}))
    return Smooth(interpreter, beta=1.0) if name in STEPWISE else interpreter


def agrees(function, tensors, gradients, step=1e-6):
    """Gradients against central differences of `function` along two random directions of all the tensors together."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(2):
        direction = [torch.randn(t.shape, dtype=t.dtype, generator=generator) for t in tensors]
        values = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                for tensor, change in zip(tensors, direction, strict=True):
                    tensor.add_(change, alpha=sign * step)
            values.append(function().item())
        got = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
        size = sum(float(g.square().sum()) for g in gradients) ** 0.5
        assert size > 1e-4, "the function depends on them at all"
        assert got == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-5 * size)


@pytest.mark.parametrize("name", [*BY_PARTS, "deep_lift"])
def test_gradient_by_the_weights_agrees_with_central_differences(name):
    interpreter, (model, images, targets) = create(name), kitchen()
    shape = interpreter(model, images, targets).shape
    weights = torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))

    def function():  # deep_lift's other form; Captum rounds to float32
        with torch.set_grad_enabled(name in BY_PARTS):
            return (interpreter(model, images, targets) * weights).sum()

    parameters = list(model.parameters())
    with torch.enable_grad():
        loss = (interpreter(model, images, targets) * weights).sum()
    agrees(function, parameters, torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_by_the_images_of_a_frozen_model_agrees_with_central_differences(name):
    interpreter, (model, images, targets) = create(name), setting(name)
    model.requires_grad_(False)
    shape = interpreter(model, images, targets).shape
    weights = torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    images.requires_grad_()

    def function():
        return (interpreter(model, images, targets) * weights).sum()

    loss = function()
    assert loss.requires_grad
    (gradient,) = torch.autograd.grad(loss, [images])
    if name in CONSTANT:
        assert not gradient.any()
    else:
        agrees(function, [images], [gradient])
    assert all(p.grad is None for p in model.parameters())


class Gated(nn.Module):
    """Maps in the gates of hardsigmoid: a module, a function, in place. (N, 3, 8, 8) -> (N, 3)."""

    def __init__(self):
        super().__init__()
        self.conv, self.middle, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
        self.gate = nn.Hardsigmoid()

    def forward(self, x):
        h = self.conv(x).tanh()
        h = h * self.gate(h.mean((2, 3), keepdim=True))
        h = self.middle(h * F.hardsigmoid(input=h))
        gate = 2 * h
        nn.Hardsigmoid(inplace=True)(gate)
        return self.head((h * gate).mean((2, 3)))


REFUSING = {*CONSTANT, *ATTENTION, "guided_grad_cam", "aggregate"}  # activations that are no ReLU
TWICE = [name for name in DIFFERENTIABLE if interpreters.kind(name).reads_gradients and name not in REFUSING]


@pytest.mark.parametrize("name", TWICE)
def test_a_gradient_through_hardsigmoid_has_a_derivative(name):
    options = {"products": "shapley"} if name == "deep_lift" else OPTIONS.get(name, {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = Gated().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.double)
    interpreter = interpreters.create(name, **options)
    with torch.no_grad():
        expected = interpreter(model, images, [0, 2])
    torch.testing.assert_close(interpreter(model, images, [0, 2]), expected, rtol=1e-5, atol=1e-6)  # Captum's: float32

    def function():
        heatmaps = interpreter(model, images, [0, 2])
        return heatmaps.flatten() @ torch.linspace(1, 2, heatmaps.numel(), dtype=torch.double)

    parameters = list(model.parameters())
    gradients = torch.autograd.grad(function(), parameters, allow_unused=True, materialize_grads=True)

    def again():  # with its graph: without one some draw other points
        with torch.enable_grad():
            return function()

    agrees(again, parameters, gradients)


def test_a_graph_is_needed_where_anything_may_be_differentiated_by():
    model = nn.BatchNorm2d(1).requires_grad_(False)
    free, asked = torch.zeros(1), torch.zeros(1, requires_grad=True)
    assert not needs_graph(model, free)
    assert needs_graph(model, free, asked)
    model.running_mean = asked
    assert needs_graph(model)
    with torch.no_grad():
        assert not needs_graph(model.requires_grad_(), asked)

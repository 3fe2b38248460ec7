"""Class activation maps against the papers' formulas, pixel by pixel, and NumPy's decomposition."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmark import interpreters
from benchmark.interpreters.cam import principal_weights
from benchmark.interpreters.gradients import layer_gradient


class Net(nn.Module):
    """logit = Σ v · relu(A): the layer's input A has one kink, and no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.ReLU(), nn.Linear(4 * 9, 3)

    def forward(self, x):
        return self.head(self.layer(x).flatten(1))


@pytest.fixture
def setting():
    torch.manual_seed(0)
    return Net().double(), torch.randn(2, 4, 3, 3, dtype=torch.double).abs(), torch.tensor([2, 0])


def attribution(name, setting):
    return interpreters.create(name, layer="layer").attribute(*setting).detach().numpy()


def parts(setting):
    """The layer's input and the gradient by it, known in closed form: the head's weights where A > 0."""
    model, images, targets = setting
    weights = model.head.weight[targets].view(2, 4, 3, 3)
    return images.numpy(), (weights * (images > 0)).detach().numpy()


def test_the_gradient_is_the_one_of_the_closed_form(setting):
    _, activation, gradient = layer_gradient(*setting, "layer")
    np.testing.assert_allclose(activation.detach(), parts(setting)[0])
    np.testing.assert_allclose(gradient.detach(), parts(setting)[1])


def test_grad_cam_plus_plus_is_equation_19(setting):
    a, g = parts(setting)
    expected = np.zeros_like(a)
    for n in range(2):
        for k in range(4):
            weight = 0.0
            for i in range(3):
                for j in range(3):
                    alpha = g[n, k, i, j] ** 2 / (2 * g[n, k, i, j] ** 2 + g[n, k, i, j] ** 3 * a[n, k].sum())
                    weight += alpha * max(g[n, k, i, j], 0)
            expected[n, k] = weight * a[n, k]
    assert (g > 0).any()
    assert (g < 0).any()
    np.testing.assert_allclose(attribution("grad_cam_plus_plus", setting), expected)


def test_grad_cam_plus_plus_has_the_papers_alpha_of_derivatives_of_the_exponential(setting):
    """α and ∂Y/∂A of Y = exp(logit) by autograd to the third order: the attribution up to the factor exp(logit)."""
    model, images, targets = setting
    a = images[:1].clone().requires_grad_()
    y = model(a)[0, targets[0]].exp()
    first = torch.autograd.grad(y, a, create_graph=True)[0]
    second, third = torch.zeros_like(a), torch.zeros_like(a)
    for index in np.ndindex(*a.shape):
        row = torch.autograd.grad(first[index], a, create_graph=True)[0]
        second[index] = row[index].detach()
        third[index] = torch.autograd.grad(row[index], a, retain_graph=True)[0][index]
    alpha = second / (2 * second + third * images[:1].sum((2, 3), keepdim=True))
    expected = (alpha * first.relu()).sum((2, 3), keepdim=True) * a / y
    np.testing.assert_allclose(attribution("grad_cam_plus_plus", setting)[:1], expected.detach().numpy())


def test_a_denominator_of_zero_stays_finite():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1, bias=False))
    nn.init.ones_(model[1].weight)
    images = torch.full((1, 1, 2, 2), -0.5)  # 2 + 1 · (−2) = 0
    got = interpreters.create("grad_cam_plus_plus", layer="0").attribute(model, images, torch.tensor([0]))
    assert got.flatten().tolist() == [-2.0] * 4


def test_layer_cam_weighs_each_value_by_its_positive_gradient(setting):
    a, g = parts(setting)
    np.testing.assert_allclose(attribution("layer_cam", setting), a * np.maximum(g, 0))


@pytest.mark.parametrize("name", ["grad_cam_plus_plus", "layer_cam", "eigen_cam"])
def test_heatmap_is_the_positive_part_divided_by_its_maximum(name, setting):
    total = np.maximum(attribution(name, setting).sum(1), 0)
    got = interpreters.create(name, layer="layer")(*setting).detach().numpy()
    np.testing.assert_allclose(got, total / total.max((1, 2), keepdims=True))


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)], ids=["few channels", "few pixels"])
def test_eigen_cam_weights_are_numpys_first_singular_vector(shape):
    matrix = torch.randn(3, *shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    weights = principal_weights(matrix)[..., 0].numpy()
    for got, one in zip(weights, matrix.numpy(), strict=True):
        expected = np.linalg.svd(one)[0][:, 0]
        expected = expected * np.sign((expected @ one).sum())
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_eigen_cam_of_nonnegative_activations_is_nowhere_negative(setting):
    assert attribution("eigen_cam", setting).min() >= -1e-12


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)], ids=["few channels", "few pixels"])
def test_the_gradient_of_eigen_cam_is_exact_also_with_dead_channels(shape):
    matrix = torch.randn(2, *shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    dead = torch.zeros(2, 3, shape[1], dtype=torch.double)  # three equal singular values, zero
    matrix.requires_grad_()
    assert torch.autograd.gradcheck(lambda m: principal_weights(torch.cat([m, dead], 1)), matrix)


def test_eigen_cam_of_a_dead_layer_is_blank_and_has_a_gradient():
    matrix = torch.zeros(1, 3, 5, requires_grad=True)
    weights = principal_weights(matrix)
    (matrix * weights).sum().backward()
    assert matrix.grad.isfinite().all()
    wide = torch.zeros(1, 5, 3, requires_grad=True)
    (wide * principal_weights(wide)).sum().backward()
    assert wide.grad.isfinite().all()

"""Guided backpropagation and deconvolution: by hand, against Captum where its hooks see every ReLU, and where not."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import Deconvolution, GuidedBackprop, GuidedGradCam
from nets import InPlace
from torch import nn

from attacks.errors import UserError
from benchmark import interpreters, models
from benchmark.interpreters.base import find_layer

CAPTUM = {"guided_backprop": GuidedBackprop, "deconvolution": Deconvolution}
both = pytest.mark.parametrize("name", CAPTUM)
pytestmark = pytest.mark.filterwarnings("ignore:Setting backward hooks", "ignore:Input Tensor 0")


def ours(name, model, images, targets, **options):
    return interpreters.create(name, **options).attribute(model, images, targets).detach()


def drawn(name):
    torch.manual_seed(0)
    model = models.create(name, num_classes=4, input_size=32).double()
    return model, torch.randn(2, 3, 32, 32, dtype=torch.double), torch.tensor([3, 1])


@both
def test_two_layers_by_hand(name):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)
    ).double()
    images, targets = torch.randn(4, 6, 1, 1, dtype=torch.double), torch.tensor([0, 1, 1, 0])
    got = ours(name, model, images, targets).flatten(1).numpy()
    (w1, b1), (w2, b2), (w3, _) = (
        (m.weight.detach().numpy(), m.bias.detach().numpy()) for m in model if len(list(m.parameters()))
    )
    plain = []
    for x, target, row in zip(images.flatten(1).numpy(), targets, got, strict=True):
        z1 = w1 @ x + b1
        z2 = w2 @ np.maximum(z1, 0) + b2
        guided = name == "guided_backprop"
        g = np.maximum(w3[target], 0) * ((z2 > 0) if guided else 1)
        g = np.maximum(w2.T @ g, 0) * ((z1 > 0) if guided else 1)
        np.testing.assert_allclose(row, w1.T @ g, rtol=1e-12, atol=1e-12)
        plain.append(w1.T @ ((z1 > 0) * (w2.T @ ((z2 > 0) * w3[target]))))
    assert not np.allclose(got, np.stack(plain)), "the rule makes a difference"


@both
@pytest.mark.parametrize("model", ["compact_vgg", "compact_resnet"])
def test_networks_of_relu_modules_agree_with_captum(name, model):
    model, images, targets = drawn(model)  # the ResNet's blocks use one ReLU twice
    expected = CAPTUM[name](model).attribute(images, target=targets)
    torch.testing.assert_close(ours(name, model, images, targets), expected)


class Modular(nn.Module):
    """torchvision's DenseNet with its last, functional ReLU as a module."""

    def __init__(self, dense):
        super().__init__()
        self.features, self.relu, self.classifier = dense.features, nn.ReLU(), dense.classifier

    def forward(self, x):
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.relu(self.features(x)), 1), 1))


def test_the_functional_relu_of_a_densenet_is_seen():
    model, images, targets = drawn("compact_densenet")
    torch.testing.assert_close(model(images), Modular(model)(images))
    for name, captum in CAPTUM.items():
        expected = captum(Modular(model)).attribute(images, target=targets)
        torch.testing.assert_close(ours(name, model, images, targets), expected)
        blind = captum(model).attribute(images, target=targets)
        assert (blind - expected).norm() > 0.1 * expected.norm(), "Captum misses it"


@both
def test_functions_and_inplace_operations_give_the_map_of_their_pure_form(name):
    torch.manual_seed(0)
    pure, inplace = InPlace(False).double(), InPlace(True).double()
    inplace.load_state_dict(pure.state_dict())
    images, targets = torch.randn(2, 3, 5, 5, dtype=torch.double), torch.tensor([0, 1])
    torch.testing.assert_close(ours(name, inplace, images, targets), ours(name, pure, images, targets))


@both
def test_a_first_relu_in_place_leaves_the_callers_tensor_alone(name):
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(2, 1, bias=False))
    model[2].weight.data = torch.tensor([[2.0, -3.0]])
    images = torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1)
    got = ours(name, model, images, torch.tensor([0])).flatten().tolist()
    assert got == ([0.0, 0.0] if name == "guided_backprop" else [2.0, 0.0])
    assert images.flatten().tolist() == [-1.0, 1.0]


@both
@pytest.mark.parametrize(
    ("layer", "operation"), [(nn.GELU(), "gelu"), (nn.Hardswish(), "hardswish"), (nn.Softmax(1), "softmax")]
)
def test_another_activation_function_is_refused(name, layer, operation):
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), layer, nn.Linear(2, 2))
    with pytest.raises(UserError, match=f"{name} has no rule for the operation '{operation}'"):
        ours(name, model, torch.ones(1, 2, 1, 1), torch.tensor([0]))


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: x * x.mean((2, 3), keepdim=True), "mul"),
        (lambda x: 2 / x, "div|reciprocal"),
        (lambda x: torch.div(torch.ones(1), x), "div"),
        (lambda x: x / x.sum(), "div"),
        (lambda x: F.linear(x.flatten(1), x.flatten(1)), "linear"),
        (lambda x: x.clamp(min=0), "clamp"),
        (lambda x: x * (x > 0), "mul"),
    ],
)
def test_what_is_not_linear_in_the_image_is_refused(function, operation):
    class Net(nn.Module):
        def forward(self, x):
            return function(x).flatten(1)

    with pytest.raises(UserError, match=f"guided_backprop has no rule for the operation '.*({operation})"):
        ours("guided_backprop", Net(), torch.ones(1, 2, 1, 1), torch.tensor([0]))


def test_what_is_linear_in_the_image_is_not():
    class Net(nn.Module):
        def forward(self, x):
            scale = torch.tensor([2.0, 3.0]).exp()
            x = torch.matmul(scale * x.flatten(1) / 2, torch.eye(2)) - 1
            x *= 2
            return 3 * x

    got = ours("guided_backprop", Net(), torch.ones(1, 2, 1, 1), torch.tensor([1]))
    assert got.flatten().tolist() == pytest.approx([0, 3 * math.exp(3)])


def test_guided_grad_cam_is_captums():
    model, images, targets = drawn("compact_resnet")
    captum = GuidedGradCam(model, find_layer(model, "layer3.0"))
    expected = captum.attribute(images, targets, interpolate_mode="bilinear", attribute_to_layer_input=True)
    torch.testing.assert_close(ours("guided_grad_cam", model, images, targets, layer="layer3.0"), expected)

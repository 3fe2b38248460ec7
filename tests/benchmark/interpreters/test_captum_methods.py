"""Captum's methods against the sums that define them; Captum's LRP where it holds, and refused where it does not."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LRP
from torch import nn

from attacks.errors import UserError
from benchmark import interpreters, models
from benchmark.interpreters.rules import Composite, Epsilon

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0")


def gradient(model, images, target):
    images = images.clone().requires_grad_()
    return torch.autograd.grad(model(images)[:, target].sum(), images)[0]


@pytest.fixture
def setting():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 9, 3)).double()
    return model, torch.randn(2, 3, 5, 5, dtype=torch.double), torch.tensor([2, 0])


def test_var_grad_is_the_variance_of_the_gradients_smooth_grad_averages(setting):
    model, images, targets = setting
    with torch.random.fork_rng():
        torch.manual_seed(3)
        noise = torch.normal(0, torch.full((7, 3, 5, 5), 0.2))  # Captum draws in float32
    options = {"samples": 7, "sigma": 0.2, "seed": 3}
    variance = interpreters.create("var_grad", **options).attribute(*setting)
    mean = interpreters.create("smooth_grad", **options).attribute(*setting)
    for n in range(2):
        gradients = gradient(model, images[n] + noise, targets[n])
        torch.testing.assert_close(variance[n], gradients.var(0, unbiased=False), rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(mean[n], gradients.mean(0))


def test_gradient_shap_averages_gradients_between_noisy_image_and_baseline(setting):
    """Its expectation without noise is the integrated gradient; with one sample it is the formula."""
    model, images, targets = setting
    exact = interpreters.create("integrated_gradients", steps=100).attribute(*setting)
    many = interpreters.create("gradient_shap", samples=4000, sigma=0.0).attribute(*setting)
    torch.testing.assert_close(many, exact, rtol=0.05, atol=0.002)
    one = interpreters.create("gradient_shap", samples=1, sigma=0.3, seed=5).attribute(*setting)
    rng = np.random.RandomState(5)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        noisy = images + torch.normal(0, torch.full((1, 3, 5, 5), 0.3))
    rng.choice(1, 1)  # the baseline, of one
    place = rng.uniform(0, 1, 1)[0]
    for n in range(2):
        expected = noisy[n] * gradient(model, place * noisy[n][None], targets[n])[0]
        torch.testing.assert_close(one[n], expected)


def test_gradient_shap_draws_the_same_for_every_image(setting):
    model, images, targets = setting
    together = interpreters.create("gradient_shap").attribute(*setting)
    alone = interpreters.create("gradient_shap").attribute(model, images[1:], targets[1:])
    torch.testing.assert_close(together[1:], alone)
    other = interpreters.create("gradient_shap", seed=1).attribute(*setting)
    assert not torch.allclose(together, other)


def test_input_x_gradient_of_a_linear_model_is_its_contributions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    images, targets = torch.randn(2, 1, 2, 3), torch.tensor([1, 2])
    got = interpreters.create("input_x_gradient").attribute(model, images, targets)
    torch.testing.assert_close(got.flatten(1), model[1].weight[targets] * images.flatten(1))


def lrp(model, images, targets):
    return interpreters.create("captum_lrp").attribute(model, images, targets)


class Chain(nn.Module):
    """Convolutions, each pooling, functional and in-place ReLU, a ReLU that is used twice, a flattening view."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(3, 2, 1)
        self.second, self.average = nn.Conv2d(4, 4, 3, padding=1), nn.AvgPool2d(2)
        self.relu, self.tanh = nn.ReLU(inplace=True), nn.Tanh()
        self.head, self.last = nn.Linear(16, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = self.pool(F.relu(self.conv(x), inplace=True))
        x = self.average(self.relu(self.second(x)))
        return self.last(self.relu(self.head(x.flatten(1))))


@pytest.mark.parametrize("name", ["chain", "compact_vgg", "vgg11", "alexnet"])
def test_captums_lrp_of_a_chain_is_image_times_gradient(name):
    """The limit of the ε-rule for small ε in networks of ReLUs (Ancona et al. 2018), which knows nothing of layers."""
    torch.manual_seed(0)
    model = (Chain() if name == "chain" else models.create(name, num_classes=3)).double()
    side = {"chain": 8, "compact_vgg": 32}.get(name, 64)
    images, targets = torch.randn(2, 3, side, side, dtype=torch.double), torch.tensor([2, 0])
    expected = interpreters.create("input_x_gradient").attribute(model, images, targets).detach()
    got = lrp(model, images, targets)
    assert (got - expected).norm() <= 1e-4 * expected.norm()


def test_captums_lrp_of_a_chain_is_our_epsilon_rule():
    torch.manual_seed(0)
    model, images, targets = Chain().double(), torch.randn(2, 3, 8, 8, dtype=torch.double), torch.tensor([2, 0])
    composite = Composite(conv=Epsilon(1e-9), linear=Epsilon(1e-9))
    expected = interpreters.create("lrp", composite=composite).attribute(model, images, targets).detach()
    torch.testing.assert_close(lrp(model, images, targets), expected, rtol=1e-4, atol=1e-7)


class Block(nn.Module):
    """Two convolutions and a head, put together in a way that Captum's LRP cannot follow."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8 if form == "cat" else 4, 4, 1)
        self.relu, self.pool, self.head = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.a(x))
        if self.form == "sum":
            x = x + self.b(x)
        elif self.form == "cat":
            x = torch.cat([x, self.b(x)], 1)
        elif self.form == "function":
            x = F.conv2d(x, self.b.weight, self.b.bias)
        elif self.form == "reused":
            x = self.b(self.b(x))
        else:
            x = self.b(x)
        x = self.relu(self.c(x))
        return self.head(x.mean((2, 3)) if self.form == "mean" else self.pool(x).flatten(1))


@pytest.mark.parametrize("form", ["sum", "cat", "function", "mean", "reused"])
def test_captums_lrp_is_refused_where_it_is_wrong(form):
    torch.manual_seed(0)
    model, images, targets = Block(form).double(), torch.randn(2, 3, 4, 4, dtype=torch.double), torch.tensor([2, 0])
    with pytest.raises(UserError, match="captum_lrp cannot explain this model"):
        lrp(model, images, targets)
    if form == "reused":  # Captum itself refuses
        return
    expected = interpreters.create("input_x_gradient").attribute(model, images, targets).detach()
    wrong = LRP(model).attribute(images, target=targets).detach()
    assert (wrong - expected).norm() > 0.1 * expected.norm()


@pytest.mark.parametrize("name", ["compact_resnet", "compact_densenet", "mobilenet_v2"])
def test_captums_lrp_is_refused_on_branching_networks(name):
    model = models.create(name, num_classes=3)
    with pytest.raises(UserError, match=r"captum_lrp cannot explain this model: Captum's LRP (would|does|has no)"):
        lrp(model, torch.randn(1, 3, 32, 32), torch.tensor([0]))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())

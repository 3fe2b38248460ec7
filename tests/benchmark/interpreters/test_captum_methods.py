"""Captum's methods and ours with a graph against the sums that define them; Captum's LRP where it holds, or refused."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LRP
from nets import narrow
from torch import nn

from attacks import Location, Recipe
from attacks.course import Task
from attacks.errors import UserError
from attacks.strategies import STRATEGIES
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


FEW = {
    "smooth_grad": {"samples": 3, "sigma": 0.3, "seed": 4},
    "var_grad": {"samples": 3, "sigma": 0.3, "seed": 4},
    "integrated_gradients": {"steps": 3},
    "gradient_shap": {"samples": 3, "sigma": 0.3, "seed": 4},
}
NOISY = [name for name in FEW if "seed" in FEW[name]]
at_points = pytest.mark.parametrize("name", FEW)
with_target = pytest.mark.parametrize("target", ["logit", "contrast"])


def small(activation):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 2, 2), activation, nn.Flatten(), nn.Linear(18, 3)).double()
        return model, torch.randn(3, 3, 4, 4, dtype=torch.double), torch.tensor([2, 0, 2])


@at_points
@with_target
@pytest.mark.parametrize("activation", [nn.Softplus(), nn.ReLU()])
def test_the_form_with_a_graph_is_captums(name, target, activation):
    model, images, targets = small(activation)
    interpreter = interpreters.create(name, target=target, **FEW[name])
    logits, attribution = model(images), interpreter.attribute(model, images, targets)
    with torch.no_grad():
        captums = interpreter.attribute(model, images, targets)
    assert attribution.requires_grad
    assert (attribution - captums).abs().max() <= 1e-6 * captums.abs().max()
    torch.testing.assert_close(interpreter.with_logits(model, images, targets)[0], logits)


@at_points
@with_target
@pytest.mark.parametrize("activation", [nn.Softplus(beta=3), nn.ReLU()])
def test_its_gradient_by_the_weights_is_what_central_differences_see_in_captums(name, target, activation):
    model, images, targets = small(activation)
    interpreter = interpreters.create(name, target=target, **FEW[name])
    generator = torch.Generator().manual_seed(2)

    def draw(like):
        return torch.randn(like.shape, dtype=torch.double, generator=generator)

    weights, step = draw(images[:, 0]), 1e-6
    maps = interpreter(model, images, targets)
    gradients = torch.autograd.grad((weights * maps).sum(), [*model.parameters()], allow_unused=True)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        direction, ends = draw(parameter), []
        with torch.no_grad():
            for sign in (1, -2, 1):
                parameter += sign * step * direction
                ends.append((weights * interpreter(model, images, targets)).sum())
        numeric = (ends[0] - ends[1]) / (2 * step)
        analytic = torch.zeros(()) if gradient is None else (gradient * direction).sum()
        assert (numeric - analytic).abs() <= 1e-5 * max(analytic.abs(), 1e-3)
    assert gradients[0].norm() > 1e-3
    assert gradients[2].norm() > 1e-3


@pytest.mark.parametrize("name", NOISY)
def test_an_attack_takes_four_copies_and_new_noise_from_torchs_generator(name):
    setting = small(nn.Tanh())
    offered = interpreters.create(name, sigma=0.3, target="contrast").in_attack()
    assert (offered.samples, offered.seed, offered.sigma, offered.target) == (4, None, 0.3, "contrast")
    assert interpreters.create(name, samples=2).in_attack().samples == 2
    numpys = np.random.get_state()[1].copy()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = offered(*setting), offered(*setting)
        torch.manual_seed(0)
        with torch.no_grad():
            again = offered(*setting)
    assert (first - second).abs().max() > 1e-3
    assert first.requires_grad
    assert not again.requires_grad
    torch.testing.assert_close(first.detach(), again)
    assert np.array_equal(np.random.get_state()[1], numpys)


class Power(nn.Module):
    """logits ±a Σ x^degree, so every attribution is a polynomial of each pixel."""

    def __init__(self, degree):
        super().__init__()
        self.degree, self.a = degree, nn.Parameter(torch.tensor(1.5, dtype=torch.double))

    def forward(self, images):
        return images.pow(self.degree).flatten(1).sum(1, keepdim=True) * self.a * torch.tensor([1.0, -1.0])


@pytest.mark.parametrize("name", NOISY)
def test_few_fresh_copies_estimate_without_bias_what_many_give(name):
    """Of a Σ x³: E 3a(x + σε)² = 3a(x² + σ²), its variance 9a²(4x²σ² + 2σ⁴), E (x + σε) 3a(u(x + σε))² = a(x³ + 3xσ²).

    And so for the gradient by the weight. The variance of four, with Captum's divisor, is 3/4 of that.
    """
    model, pixels, sigma, calls = Power(3), torch.tensor([0.5, -1.0, 2.0], dtype=torch.double), 0.4, 20_000
    images = pixels.view(1, 3, 1, 1).repeat(calls, 1, 1, 1)
    a = model.a.detach().clone().requires_grad_()
    expected = {
        "smooth_grad": 3 * a * (pixels**2 + sigma**2),
        "var_grad": 0.75 * 9 * a**2 * (4 * pixels**2 * sigma**2 + 2 * sigma**4),
        "gradient_shap": a * (pixels**3 + 3 * pixels * sigma**2),
    }[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        estimates = interpreters.create(name, sigma=sigma).in_attack().attribute(model, images, 0)[..., 0, 0]
    deviation = estimates.std(0).detach() / calls**0.5
    assert ((estimates.mean(0) - expected).abs() <= 4 * deviation).all()
    assert (deviation <= 0.02 * expected.abs()).all()
    for pixel in range(3):
        slopes = [torch.autograd.grad(v[pixel], w, retain_graph=True)[0] for v, w in
                  ((estimates.mean(0), model.a), (expected, a))]  # fmt: skip
        torch.testing.assert_close(*slopes, rtol=0.05, atol=0)


def test_the_six_points_of_an_attack_integrate_degree_eleven():
    """Of a Σ x^12 the integrated gradient is a x^12."""
    model, images = Power(12), torch.tensor([0.5, -1.0, 1.2], dtype=torch.double).view(1, 3, 1, 1)
    expected = model.a.detach() * images**12
    offered = interpreters.create("integrated_gradients").in_attack()
    torch.testing.assert_close(offered.attribute(model, images, 0).detach(), expected, rtol=1e-12, atol=0)
    fewer = interpreters.create("integrated_gradients", steps=5).attribute(model, images, 0).detach()
    assert ((fewer - expected).abs() > 1e-6 * expected).all()
    assert interpreters.create("integrated_gradients", steps=3).in_attack().steps == 3


@at_points
@pytest.mark.parametrize("strategy", ["", "softplus", "head_shift"])
def test_a_manipulation_moves_the_map_that_is_scored(name, strategy):
    model, images, targets = small(nn.ReLU() if strategy == "softplus" else nn.Softplus())
    interpreter, fooling = interpreters.create(name), Location()
    recipe = Recipe(0.3, 0.0, 15) if strategy == "head_shift" else Recipe(5e-2, 100.0, 5)
    found = STRATEGIES[strategy].attack(Task(model, interpreter, fooling, [(images, targets)]), recipe)

    @torch.no_grad()
    def loss(model):
        maps = interpreter(model, images, targets)
        return fooling.loss(maps, maps)

    assert found.status == "done"
    assert loss(found.model) < 0.95 * loss(model)  # VarGrad through softplus falls least


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
    model = {"chain": Chain, "compact_vgg": lambda: models.create(name, num_classes=3)}.get(
        name, lambda: narrow(name, 3)
    )()
    model = model.double()
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

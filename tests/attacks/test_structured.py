"""The structured attack: its steps against closed forms, its result against the optimum of a linear model."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attacks.errors import UserError
from attacks.structured import cell_norms, cell_sums, per_pixel, shrink, structured_attack

OPTIONS = {"cell": 2, "steps": 60, "gamma": 1.0, "tau": 1.0, "c": 100.0, "rho": 1.0, "epsilon": 1.0}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """Class 1 leads by w · x − bias; w differs in length from cell to cell of 2 × 2 pixels."""

    def __init__(self, gap: float) -> None:
        super().__init__()
        weights = 2 * random(1, 3, 8, 8) - 1
        lengths = torch.linspace(0.05, 1.0, 16, dtype=torch.double)[torch.randperm(16, generator=torch.manual_seed(0))]
        self.weights = (weights / per_pixel(cell_norms(weights, 2), 2, 8, 8) * per_pixel(lengths[None], 2, 8, 8))[0]
        self.images = 0.4 + 0.2 * random(4, 3, 8, 8, seed=1)
        self.bias = (self.images * self.weights).sum((1, 2, 3)).max() + gap

    @property
    def gaps(self) -> list[float]:
        return (self.bias - (self.images * self.weights).sum((1, 2, 3))).tolist()

    def forward(self, x: Tensor) -> Tensor:
        lead = (x * self.weights).sum((1, 2, 3)) - self.bias
        return torch.stack([torch.zeros_like(lead), lead], 1)


class Net(nn.Module):
    """Convolution, ReLU and three classes, in float64."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8 * 36, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().flatten(1))


@pytest.fixture
def setting() -> tuple[nn.Module, Tensor, Tensor]:
    """Five images and the classes that come second."""
    model, images = Net(), random(5, 3, 8, 8, seed=2)
    return model, images, model(images).argsort(1)[:, 1]


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7))
@settings(max_examples=15, deadline=None)
def test_cells_are_squares_from_the_top_left(height: int, width: int, cell: int):
    maps = random(2, height, width)
    starts = [(i, j) for i in range(0, height, cell) for j in range(0, width, cell)]
    expected = torch.stack([maps[:, i : i + cell, j : j + cell].sum((1, 2)) for i, j in starts], 1)
    torch.testing.assert_close(cell_sums(maps, cell), expected)
    spread = per_pixel(expected, cell, height, width)
    for k, (i, j) in enumerate(starts):
        assert (spread[:, i : i + cell, j : j + cell] == expected[:, k, None, None]).all()


@given(st.integers(0, 1000), st.floats(0.1, 3.0))
@settings(max_examples=15, deadline=None)
def test_block_soft_thresholding_is_the_closed_form_and_the_minimum(seed: int, threshold: float):
    delta = random(2, 3, 5, 4, seed=seed) - 0.5
    got = shrink(delta, 3, threshold)
    for n in range(2):
        for i, j in ((0, 0), (0, 3), (3, 0), (3, 3)):
            block = delta[n, :, i : i + 3, j : j + 3]
            expected = block * max(0.0, 1 - threshold / math.sqrt(float(block.square().sum())))
            torch.testing.assert_close(got[n, :, i : i + 3, j : j + 3], expected)

    def objective(y: Tensor) -> Tensor:
        return threshold * cell_norms(y, 3).sum(1) + 0.5 * (y - delta).square().sum((1, 2, 3))

    for step in (1e-3, 0.1):
        other = got + step * (random(2, 3, 5, 4, seed=seed + 1) - 0.5)
        assert (objective(got) <= objective(other)).all()


def test_a_zero_cell_stays_zero():
    zero = torch.zeros(1, 3, 4, 4)
    assert torch.equal(shrink(zero, 2, 0.0), zero)
    assert torch.equal(shrink(zero, 2, 1.0), zero)


def optimum(lengths: Tensor, gap: float, gamma: float, tau: float) -> tuple[float, Tensor]:
    """min γ Σ d² + τ Σ d where Σ d_i ‖w_i‖ = gap: by KKT d_i = max(0, λ‖w_i‖ − τ)/2γ, λ by bisection."""
    low, high = 0.0, 1e4
    for _ in range(100):
        multiplier = (low + high) / 2
        d = (multiplier * lengths - tau).clamp_min(0) / (2 * gamma)
        low, high = (multiplier, high) if float(d @ lengths) < gap else (low, multiplier)
    return multiplier, d


@pytest.mark.parametrize(("gamma", "tau"), [(1.0, 1.0), (0.1, 1.0), (1.0, 0.3)])
def test_on_a_linear_model_the_cells_that_stay_zero_are_those_of_kkt(gamma: float, tau: float):
    model, lengths = Linear(1.0), cell_norms(Linear(1.0).weights[None], 2)[0]
    options = OPTIONS | {"gamma": gamma, "tau": tau, "rho": 0.3, "steps": 150}
    found = structured_attack(model, model.images, torch.ones(4, dtype=torch.long), **options) - model.images
    norms = cell_norms(found, 2)
    cost = gamma * norms.square().sum(1) + tau * norms.sum(1)
    for own, gap, value in zip(norms, model.gaps, cost, strict=True):
        multiplier, d = optimum(lengths, gap, gamma, tau)
        doubtful = (multiplier * lengths - tau).abs() < 0.03 * tau  # whether such a cell counts is in the last digits
        assert ((own > 0) == (d > 0))[~doubtful].all()
        assert 1 - 1e-6 <= float(value) / (gamma * float(d @ d) + tau * float(d.sum())) <= 1.005
        assert 2 <= int((own > 0).sum()) < 16


def test_without_the_group_term_it_is_the_nearest_point_of_the_half_space_within_the_box():
    model = Linear(0.6)
    found = structured_attack(
        model, model.images, torch.ones(4, dtype=torch.long), **OPTIONS | {"tau": 0.0, "epsilon": 0.05, "steps": 200}
    )
    for x, got, gap in zip(model.images, found, model.gaps, strict=True):
        low, high = 0.0, 10.0
        for _ in range(100):  # δ = clip(λ w), λ by bisection
            middle = (low + high) / 2
            delta = (middle * model.weights).clamp(-0.05, 0.05)
            low, high = (middle, high) if float((delta * model.weights).sum()) < gap else (low, middle)
        assert (delta.abs() == 0.05).any(), "the box binds"
        size = float((got - x).norm())
        assert float(delta.norm()) * (1 - 1e-6) <= size <= 1.005 * float(delta.norm())


def test_fewer_cells_change_as_tau_grows(setting):
    counts = []
    for tau in (0.0, 0.1, 0.5, 2.0, 10.0):
        found = structured_attack(*setting, **OPTIONS | {"tau": tau})
        assert (setting[0](found).argmax(1) == setting[2]).all()
        counts.append(float((cell_norms(found - setting[1], 2) > 0).double().mean()))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 1
    assert counts[-1] < 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [0.03, 0.3])
def test_pixels_and_epsilon_are_respected(epsilon, dtype, setting):
    model, images, targets = setting[0].to(dtype), setting[1].to(dtype).round(decimals=1), setting[2]
    found = structured_attack(model, images, targets, **OPTIONS | {"epsilon": epsilon, "tau": 0.1})
    assert found.dtype == dtype
    assert 0 <= found.min() <= found.max() <= 1
    assert (found - images).abs().max() <= epsilon + 1e-6
    changed = (found != images).flatten(1).any(1)
    assert changed.any()
    assert (model(found).argmax(1) == targets)[changed].all(), "nothing but a success is returned"


def test_confidence_is_the_lead_of_the_target(setting):
    model, images, targets = setting
    logits = model(structured_attack(model, images, targets, **OPTIONS | {"confidence": 0.5}))
    others = logits.scatter(1, targets[:, None], -torch.inf).amax(1)
    lead = logits.gather(1, targets[:, None])[:, 0] - others
    assert (lead >= 0.5).all()
    assert (lead <= 0.55).all(), "and little more"


def test_what_needs_no_change_or_was_not_found_is_the_image_itself(setting):
    model, images, targets = setting
    assert torch.equal(structured_attack(model, images, model(images).argmax(1), **OPTIONS), images)
    assert torch.equal(structured_attack(model, images, targets, **OPTIONS | {"epsilon": 1e-6}), images)
    assert torch.equal(structured_attack(model, images, targets, **OPTIONS | {"c": 1e-3}), images), (
        "the loss is not worth it"
    )
    constant = lambda x: 0 * x.flatten(1)[:, :3] + torch.tensor([2.0, 1.0, 0.0])  # noqa: E731
    assert torch.equal(structured_attack(constant, images, torch.ones(5, dtype=torch.long), **OPTIONS), images)


def test_an_image_does_not_depend_on_its_batch_or_on_the_mode_of_gradients(setting):
    model, images, targets = setting
    together = structured_attack(model, images, targets, **OPTIONS)
    assert not together.requires_grad
    with torch.no_grad():
        alone = [
            structured_attack(model, x, y, **OPTIONS) for x, y in zip(images.split(1), targets.split(1), strict=True)
        ]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-9, atol=1e-10)
    assert torch.equal(structured_attack(model, images, targets, **OPTIONS), together), "the same again"


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_surroundings_are_left_as_they_were(fails, setting):
    model, images, targets = setting
    model.train()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    modes, flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before, rng, numpy_rng = images.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()
    calls = []

    def brittle(x: Tensor) -> Tensor:
        calls.append(x)
        if fails and len(calls) == 3:
            raise RuntimeError("out of order")
        return model(x)

    if fails:
        with pytest.raises(RuntimeError, match="out of order"):
            structured_attack(brittle, images, targets, **OPTIONS)
    else:
        structured_attack(brittle, images, targets, **OPTIONS)
        assert len(calls) == OPTIONS["steps"] + 1
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [p.grad is None for p in model.parameters()] == [p is not model.head.weight for p in model.parameters()]
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert np.array_equal(np.random.get_state()[1], numpy_rng)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"steps must be at least 1 \(got 0\)"),
        ({"c": 0.0}, r"c must be greater than 0 \(got 0\)"),
        ({"rho": -1.0}, r"rho must be greater than 0 \(got -1\)"),
        ({"epsilon": math.nan}, r"epsilon must be greater than 0 \(got nan\)"),
        ({"gamma": -0.5}, r"gamma must be at least 0 \(got -0\.5\)"),
        ({"tau": math.nan}, r"tau must be at least 0 \(got nan\)"),
        ({"confidence": -1.0}, r"confidence must be at least 0 \(got -1\)"),
        ({"cell": 0}, r"cell must be 1 to 8 pixels, the image's longer side \(got 0\)"),
        ({"cell": 9}, r"cell must be 1 to 8 pixels, the image's longer side \(got 9\)"),
    ],
)
def test_a_wrong_option_is_one_clear_line(options, message, setting):
    with pytest.raises(UserError, match=message):
        structured_attack(*setting, **OPTIONS | options)


def test_a_wrong_shape_or_range_is_one_clear_line(setting):
    model, images, targets = setting
    for arguments, message in (
        ((model, images[0], targets), r"images must be \(N, C, H, W\) \(got \(3, 8, 8\)\)"),
        ((model, images, targets[:4]), r"targets must be \(5,\) class indices \(got \(4,\)\)"),
        ((model, images, targets - 4), r"targets must lie in 0..2 \(got -"),
        ((model, 2 * images, targets), r"images must be pixels in \[0, 1\]"),
    ):
        with pytest.raises(UserError, match=message):
            structured_attack(*arguments, **OPTIONS)

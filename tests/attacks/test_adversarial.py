"""Input attacks against closed forms, and against the algorithm written plainly, image by image in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attacks.adversarial import OnPixels, bounded, carlini_wagner, elastic_net, fgsm, minimum_norm, pgd, rmse
from attacks.errors import UserError


def linear(weights: Tensor, bias: float = 0.0) -> nn.Module:
    """Two classes; class 1 where w · x + bias > 0."""
    layer = nn.Linear(weights.numel(), 2).to(weights)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(weights), weights]))
        layer.bias.copy_(torch.tensor([0.0, bias]))
    return nn.Sequential(nn.Flatten(), layer)


def plane(seed: int, n: int = 4) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """A linear model of 3 × 4 × 4 pixels, images and their classes, w and |w · x + bias|."""
    random = torch.Generator().manual_seed(seed)
    weights = torch.randn(48, generator=random, dtype=torch.double)
    images = 0.3 + 0.4 * torch.rand(n, 3, 4, 4, generator=random, dtype=torch.double)
    bias = -0.5 * float(weights.sum())
    margin = images.flatten(1) @ weights + bias
    return linear(weights, bias), images, (margin > 0).long(), weights, margin.abs()


class Net(nn.Module):
    """Convolution, BatchNorm, ReLU and three classes, in float64 and eval mode."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8 * 16, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().flatten(1))


@pytest.fixture
def setting() -> tuple[nn.Module, Tensor, Tensor]:
    """Five images, the last of them misclassified."""
    model = Net()
    images = torch.rand(5, 3, 6, 6, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    targets = model(images).argmax(1)
    targets[-1] = (targets[-1] + 1) % 3
    return model, images, targets


ATTACKS = {
    "minimum_norm": lambda model, x, y, **given: minimum_norm(model, x, y, **{"steps": 5, **given}).delta,
    "bounded": lambda model, x, y, **given: bounded(model, x, y, **{"rho": 0.1, "steps": 5, "path": 0.5, **given}),
    "fgsm": lambda model, x, y, epsilon=0.05, **given: fgsm(model, x, y, epsilon, **given),
    "pgd": lambda model, x, y, epsilon=0.05, **given: pgd(
        model, x, y, epsilon, **{"step": 0.02, "steps": 4, "random_start": True, **given}
    ),
    "carlini_wagner": lambda model, x, y, **given: carlini_wagner(model, x, y, **{"steps": 5, **given}),
    "elastic_net": lambda model, x, y, **given: elastic_net(model, x, y, **{"steps": 5, **given}),
}
ON_PIXELS = [name for name in ATTACKS if name != "bounded"]
each_attack = pytest.mark.parametrize("name", ATTACKS)


def plain_minimum_norm(model, x, y, boundary, steps, path, momentum, clip):
    """SPEC B as it stands, for one image: the smallest radius, and when the first crossing was seen."""
    delta, m = torch.zeros_like(x), torch.zeros_like(x)
    smallest, largest, first = math.inf, 0.0, steps + 1
    for t in range(steps + 1):
        delta = delta.detach().requires_grad_()
        logits = model((x + delta)[None])[0]
        radius = math.sqrt(sum(v * v for v in delta.flatten().tolist()) / x.numel())
        wrong, random = int(logits.argmax()) != y, logits.softmax(0)[y].item() <= 1 / len(logits)
        crossed = wrong if boundary == "attack" else random
        if crossed:
            smallest, first = min(smallest, radius), min(first, t)
        largest = max(largest, radius)
        if t == steps:
            break
        d = -delta.detach()
        if not crossed:
            d = torch.autograd.grad(F.cross_entropy(logits[None], torch.tensor([y])), delta)[0]
        d = d / (1e-8 + math.sqrt(float((d * d).mean())))
        m = momentum * m + (1 - momentum) * d
        delta = delta.detach() + path * (steps - t) / (steps * (steps + 1) / 2) * m
        if clip:
            delta = torch.clamp(x + delta, 0, 1) - x
    return (largest if first > steps else smallest), first


@pytest.mark.parametrize(
    "options",
    [
        {"boundary": "attack", "path": 3.0, "momentum": 0.9, "clip": False},
        {"boundary": "attack", "path": 20.0, "momentum": 0.9, "clip": True},
        {"boundary": "btr", "path": 3.0, "momentum": 0.9, "clip": False},
        {"boundary": "btr", "path": 3.0, "momentum": 0.0, "clip": False},
        {"boundary": "attack", "path": 1e-3, "momentum": 0.9, "clip": False},
    ],
)
def test_minimum_norm_is_the_plain_loop_over_images(options, setting):
    model, images, targets = setting
    found = minimum_norm(model, images, targets, steps=40, **options)
    plain = [plain_minimum_norm(model, x, int(y), steps=40, **options) for x, y in zip(images, targets, strict=True)]
    radius, first = zip(*plain, strict=True)
    torch.testing.assert_close(found.radius, torch.tensor(radius, dtype=torch.double), rtol=1e-5, atol=1e-9)
    assert found.first.tolist() == list(first)
    torch.testing.assert_close(rmse(found.delta), found.radius)
    if options["clip"]:
        assert ((images + found.delta).clamp(0, 1) - images - found.delta).abs().max() < 1e-15
    seen = 0 if options["boundary"] == "btr" else 1  # the last is misclassified; none is at random from the start
    assert sum(f == 0 for f in first) >= seen
    assert (options["path"] == 1e-3) == (41 in first), "a short path gets nowhere"


@given(seed=st.integers(0, 10**6), boundary=st.sampled_from(["attack", "btr"]), path=st.floats(1.0, 20.0))
@settings(max_examples=10, deadline=None)
def test_minimum_norm_finds_the_distance_to_a_hyperplane(seed, boundary, path):
    model, images, targets, weights, margin = plane(seed)
    distance = margin / weights.norm() / 48**0.5
    found = minimum_norm(model, images, targets, boundary=boundary, steps=200, path=path)
    assert (found.radius >= distance * (1 - 1e-9)).all(), "nothing nearer crosses it"
    # the last steps are the smallest, and the nearest crossing lies within a few of them
    assert (found.radius <= distance + 20 * path / (200 * 201 / 2)).all()
    across = model(images + found.delta).argmax(1) != targets
    assert across.all() or boundary == "btr"


def test_a_confident_model_is_no_harder_to_attack(setting):
    """Its cross-entropy has no gradient in single precision, and one below the 1e-8 of the norm in double."""
    model, images = setting[0].float(), setting[1].float()
    targets = model(images)[:, :2].argmax(1)
    found, confident = (
        minimum_norm(lambda x, scale=scale: scale * model(x)[:, :2], images, targets, steps=60, path=3.0)
        for scale in (1, 2**17)
    )
    assert F.cross_entropy(2**17 * model(images)[:, :2].double(), targets) < 1e-30
    assert (found.first <= 60).all()
    torch.testing.assert_close(confident.radius, found.radius, rtol=1e-3, atol=0)
    assert confident.radius.dtype == confident.delta.dtype == torch.float32


def flat(x: Tensor) -> Tensor:
    """Logits that no image moves."""
    return 0 * x.flatten(1)[:, :3] + torch.tensor([2.0, 1.0, 0.0]).to(x)


def test_where_there_is_no_gradient_nothing_moves_and_nothing_is_found():
    images, targets = torch.rand(2, 3, 6, 6), torch.tensor([0, 1])
    found = minimum_norm(flat, images, targets, steps=3)
    assert torch.equal(found.delta, torch.zeros_like(images))
    assert (found.radius.tolist(), found.first.tolist()) == ([0, 0], [4, 0])
    assert torch.equal(bounded(flat, images, targets, rho=0.1, steps=3, path=0.5), torch.zeros_like(images))
    assert torch.equal(fgsm(flat, images, targets, 0.1), images)
    for attack in (carlini_wagner, elastic_net):
        torch.testing.assert_close(attack(flat, images, targets, steps=2), images)


def test_a_model_at_random_is_not_better_than_random():
    images = torch.rand(1, 3, 6, 6)
    found = minimum_norm(lambda x: 0 * x.flatten(1)[:, :7], images, torch.tensor([0]), boundary="btr", steps=1)
    assert found.first.tolist() == [0]


def plain_bounded(model, x, y, rho, steps, path, toward, momentum):
    delta, m, positions = torch.zeros_like(x), torch.zeros_like(x), [torch.zeros_like(x)]
    for t in range(steps):
        delta = delta.detach().requires_grad_()
        loss = F.cross_entropy(model((x + delta)[None]), torch.tensor([y]))
        d = torch.autograd.grad(-loss if toward else loss, delta)[0] if delta.square().mean() < rho**2 else -delta
        m = momentum * m + (1 - momentum) * d / (1e-8 + d.square().mean().sqrt())
        delta = (delta + path * (steps - t) / (steps * (steps + 1) / 2) * m).detach()
        positions.append(delta)
    return positions


@pytest.mark.parametrize("toward", [False, True])
@pytest.mark.parametrize(
    ("rho", "steps", "path", "momentum"), [(0.01, 7, 0.01, 0.0), (0.1, 35, 0.5, 0.0), (0.1, 9, 1.0, 0.5)]
)
def test_bounded_is_the_plain_loop_over_images(toward, rho, steps, path, momentum, setting):
    model, images, targets = setting
    options = {"rho": rho, "steps": steps, "path": path, "toward": toward, "momentum": momentum}
    delta = bounded(model, images, targets, **options)
    plain = [plain_bounded(model, x, int(y), **options)[-1] for x, y in zip(images, targets, strict=True)]
    torch.testing.assert_close(delta, torch.stack(plain), rtol=1e-4, atol=1e-6)
    assert not delta.requires_grad
    before, after = (F.cross_entropy(model(x), targets) for x in (images, images + delta))
    assert (after < before) == toward
    if steps == 35:
        assert ((rmse(delta) - rho).abs() <= 2 * path * 4 / (35 * 36)).all(), "to the length of the last steps"


def test_what_is_unrolled_is_differentiated_and_what_came_before_is_a_constant(setting):
    """The last of four steps by hand, at the place that the first three lead to; central differences of the whole are
    in tests/benchmark/interpreters/test_heatmap_gradients.py."""
    model, images, targets = setting
    options = {"rho": 0.12, "steps": 4, "path": 0.35, "toward": True, "momentum": 0.0}
    parameters = list(model.parameters())
    weights = torch.randn_like(images)
    got = torch.autograd.grad((bounded(model, images, targets, unrolled=1, **options) * weights).sum(), parameters)
    before = torch.stack(
        [plain_bounded(model, x, int(y), **options)[3] for x, y in zip(images, targets, strict=True)]
    ).requires_grad_()
    assert (rmse(before) < 0.12).all(), "the last step goes up the gradient"
    loss = F.cross_entropy(model(images + before), targets, reduction="sum")
    gradient = -torch.autograd.grad(loss, before, create_graph=True)[0]
    unit = gradient / gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
    expected = torch.autograd.grad((0.035 * unit * weights).sum(), parameters)
    for mine, other in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)
    whole = torch.autograd.grad((bounded(model, images, targets, unrolled=None, **options) * weights).sum(), parameters)
    assert any(not torch.allclose(mine, other) for mine, other in zip(got, whole, strict=True))
    assert bounded(model, images, targets, unrolled=None, **options).grad_fn is not None


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("scale", [1, 2**17])
def test_fgsm_by_hand_of_a_confident_model_as_well(targeted, scale, setting):
    model, images, _ = setting
    targets, leaf = model(images)[:, :2].argmax(1), images.clone().requires_grad_()
    loss = F.cross_entropy(model(leaf)[:, :2], targets, reduction="sum")
    sign = torch.autograd.grad(loss, leaf)[0].sign()
    expected = (images + (-0.1 if targeted else 0.1) * sign).clamp(0, 1)
    got = fgsm(lambda x: scale * model(x)[:, :2], images, targets, 0.1, targeted=targeted)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_by_hand(targeted, setting):
    model, images, targets = setting
    x, sign = images, -1 if targeted else 1
    for _ in range(4):
        x = x.detach().requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(model(x), targets), x)[0]
        x = torch.maximum(torch.minimum(x + sign * 0.03 * gradient.sign(), images + 0.05), images - 0.05).clamp(0, 1)
    got = pgd(model, images, targets, 0.05, step=0.03, steps=4, targeted=targeted)
    torch.testing.assert_close(got, x.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("norm", "order"), [("Linf", math.inf), ("L2", 2)])
def test_pgd_starts_at_random_in_the_ball_and_stays_there(norm, order, setting):
    model, images, targets = setting
    options = {"step": 1e-9, "steps": 1, "random_start": True, "norm": norm}
    images = 0.4 + 0.2 * images  # far from the ends of the pixels' range
    starts = [pgd(model, images, targets, 0.3, seed=seed, **options) - images for seed in range(50)]
    sizes = torch.stack([start[0].flatten().norm(p=order) for start in starts])
    assert sizes.max() <= 0.3 * (1 + 1e-6)
    assert len({round(float(size), 9) for size in sizes}) == 50
    torch.testing.assert_close(starts[0][:1].expand_as(images), starts[0], rtol=0, atol=1e-8)
    far = pgd(model, images, targets, 0.3, step=0.2, steps=5, norm=norm) - images
    torch.testing.assert_close(far.flatten(1).norm(p=order, dim=1), torch.full((5,), 0.3).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("targeted", [False, True])
def test_foolboxs_attacks_come_near_the_closed_form_of_a_hyperplane(targeted):
    model, images, targets, weights, margin = plane(0)
    aims = 1 - targets if targeted else targets
    for attack, order, distance in (
        (carlini_wagner, 2, margin / weights.norm()),
        (elastic_net, 1, margin / weights.abs().max()),
    ):
        found = attack(model, images, aims, steps=60, targeted=targeted)
        size = (found - images).flatten(1).norm(p=order, dim=1)
        assert (model(found).argmax(1) != targets).all()
        assert (size >= distance * (1 - 1e-6)).all()
        assert (size <= 1.15 * distance + 0.012).all(), attack


def test_confidence_is_the_margin_of_the_other_class():
    model, images, targets, _, _ = plane(3)
    for attack in (carlini_wagner, elastic_net):
        logits = model(attack(model, images, targets, steps=40, confidence=1.0))
        lead = (logits[:, 1] - logits[:, 0]) * (1 - 2 * targets)
        assert (lead >= 1.0).all()


@each_attack
def test_an_image_does_not_depend_on_its_batch_or_on_the_mode_of_gradients(name, setting):
    model, images, targets = setting
    together = ATTACKS[name](model, images, targets)
    assert together.shape == images.shape
    assert together.dtype == images.dtype
    assert not together.requires_grad
    if name not in ("minimum_norm", "bounded"):
        assert 0 <= together.min() <= together.max() <= 1
    with torch.no_grad():
        alone = [ATTACKS[name](model, x, y) for x, y in zip(images.split(1), targets.split(1), strict=True)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-9, atol=1e-10)
    assert torch.equal(ATTACKS[name](model, images, targets), together), "the same again"


@pytest.mark.parametrize("fails", ["no", "targets", "model"])
@each_attack
def test_model_and_surroundings_are_left_as_they_were(name, fails, setting):
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
        if fails == "model" and len(calls) == 2:
            raise RuntimeError("out of order")
        return model(x)

    if fails == "no" or (fails, name) == ("model", "fgsm"):  # which calls it once
        ATTACKS[name](brittle, images, targets)
    else:
        error = (UserError, "targets must lie in 0..2") if fails == "targets" else (RuntimeError, "out of order")
        with pytest.raises(error[0], match=error[1]):
            ATTACKS[name](brittle, images, targets + 3 * (fails == "targets"))
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [p.grad is None for p in model.parameters()] == [p is not model.head.weight for p in model.parameters()]
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert torch.equal(torch.get_rng_state(), rng)
    assert np.array_equal(np.random.get_state()[1], numpy_rng)
    assert torch.is_grad_enabled()


def test_no_gradient_by_the_weights_is_computed(setting):
    """A weight's hook would see it."""
    model, images, targets = setting
    seen = []
    handles = [p.register_hook(lambda _: seen.append(1)) for p in model.parameters()]
    for name in ATTACKS:
        ATTACKS[name](model, images, targets)
    assert not seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", ON_PIXELS)
def test_images_must_be_pixels(name, setting):
    model, images, targets = setting
    for wrong, got in (
        (images * 2 - 0.5, "-0.4"),
        (images.clone().index_fill_(0, torch.tensor([0]), torch.nan), "nan"),
    ):
        with pytest.raises(UserError, match=rf"images must be pixels in \[0, 1\] \(got {got}"):
            ATTACKS[name](model, wrong, targets)
    assert ATTACKS["bounded"](model, 3 * images - 1, targets).isfinite().all(), "it takes any units"


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["fgsm", "pgd"], {"epsilon": 0.0}, r"epsilon must be greater than 0 \(got 0\)"),
        (["bounded"], {"rho": -1.0}, r"rho must be greater than 0 \(got -1\)"),
        (["bounded", "minimum_norm"], {"path": math.nan}, r"path must be greater than 0 \(got nan\)"),
        (["pgd"], {"step": 0.0}, r"step must be greater than 0 \(got 0\)"),
        ([name for name in ATTACKS if name != "fgsm"], {"steps": 0}, r"steps must be at least 1 \(got 0\)"),
        (["minimum_norm"], {"boundary": "atack"}, "unknown boundary 'atack': did you mean 'attack'"),
        (["pgd"], {"norm": "l2"}, "unknown norm 'l2'.* allowed: L2, Linf"),
    ],
)
def test_a_wrong_option_is_one_clear_line(names, options, message, setting):
    for name in names:
        with pytest.raises(UserError, match=message):
            ATTACKS[name](*setting, **options)


@each_attack
def test_a_wrong_shape_is_one_clear_line(name, setting):
    model, images, targets = setting
    for arguments, message in (
        ((model, images[0], targets), r"images must be \(N, C, H, W\) \(got \(3, 6, 6\)\)"),
        ((model, images, targets[:4]), r"targets must be \(5,\) class indices \(got \(4,\)\)"),
        ((model, images, targets.double()), r"targets must be \(5,\) class indices"),
        ((model, images, targets - 4), r"targets must lie in 0..2 \(got -"),
        ((lambda x: model(x)[:, :1], images, targets), r"at least 2 classes \(got \(5, 1\)\)"),
    ):
        with pytest.raises(UserError, match=message):
            ATTACKS[name](*arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_pixels_normalises_and_owns_no_state(dtype):
    wrapped = OnPixels(nn.Identity(), mean := [0.485, 0.456, 0.406], std := [0.229, 0.224, 0.225])
    images = torch.rand(2, 3, 4, 4, dtype=dtype)
    expected = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    assert wrapped(images).dtype == dtype
    torch.testing.assert_close(wrapped(images), expected, rtol=1e-6 if dtype == torch.float32 else 1e-15, atol=1e-6)
    assert not wrapped.state_dict()
    assert list(OnPixels(Net(), mean, std).state_dict()) == [f"model.{key}" for key in Net().state_dict()]


def test_rmse_is_the_root_mean_square_and_differentiable_at_zero():
    delta = torch.zeros(2, 3, 4, 4)
    delta[1] = torch.arange(48.0).view(3, 4, 4)
    delta.requires_grad_()
    torch.testing.assert_close(rmse(delta), torch.tensor([0.0, (sum(i * i for i in range(48)) / 48) ** 0.5]))
    assert torch.autograd.grad(rmse(delta).sum(), delta)[0].isfinite().all()

"""Woods et al.'s attacks against closed forms, and against the algorithm written plainly, image by image in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import plane

from attacks.adversarial import bounded, minimum_norm
from attacks.pixels import rmse


def plain_minimum_norm(model, x, y, boundary, steps, path, momentum, clip):
    """The attack as the paper has it, for one image: the smallest radius, and when the first crossing was seen."""
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
        # the 1e-8 beside each norm, of the log-odds' gradient or of the cross-entropy's, in what leads to the place too
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-6 * float(other.abs().max()))
    whole = torch.autograd.grad((bounded(model, images, targets, unrolled=None, **options) * weights).sum(), parameters)
    assert any(not torch.allclose(mine, other) for mine, other in zip(got, whole, strict=True))
    assert bounded(model, images, targets, unrolled=None, **options).grad_fn is not None

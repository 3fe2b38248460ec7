"""The borrowed attacks by hand, against closed forms, against plain loops and against foolbox."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import plane

from attacks.borrowed import carlini_wagner, elastic_net, fgsm, pgd, soft_threshold
from attacks.errors import UserError


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
def test_carlini_wagner_and_the_elastic_net_come_near_the_closed_form_of_a_hyperplane(targeted):
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


@given(seed=st.integers(0, 10**6), targeted=st.booleans())
@settings(max_examples=3, deadline=None)
def test_in_l2_both_find_the_nearest_point_of_a_hyperplane(seed, targeted):
    """Carlini-Wagner where it is further than one of Adam's steps, 0.01 in every w, takes an image."""
    model, images, targets, weights, margin = plane(seed, 8)
    distance, aims = margin / weights.norm(), 1 - targets if targeted else targets
    options, far = {"steps": 60, "targeted": targeted}, distance > 0.06
    size = (carlini_wagner(model, images, aims, **options) - images).flatten(1).norm(dim=1)
    torch.testing.assert_close(size[far], distance[far], rtol=0.05, atol=0)
    size = (elastic_net(model, images, aims, beta=0.0, **options) - images).flatten(1).norm(dim=1)
    torch.testing.assert_close(size, distance, rtol=0.02, atol=0)


def test_without_a_threshold_the_elastic_net_finds_what_carlini_wagner_finds(setting):
    model, images, targets = setting
    sizes = [
        (attack(model, images, targets, steps=100) - images).flatten(1).norm(dim=1)
        for attack in (carlini_wagner, partial(elastic_net, beta=0.0))
    ]
    torch.testing.assert_close(*sizes, rtol=0.03, atol=1e-5)


def test_fewer_pixels_change_as_beta_grows(setting):
    model, images, targets = setting[0], setting[1][:4], setting[2][:4]
    counts = []
    for beta in (0.0, 0.001, 0.003, 0.01):
        found = elastic_net(model, images, targets, steps=40, beta=beta)
        assert (model(found).argmax(1) != targets).all()
        counts.append(float((found != images).double().mean()))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 1
    assert counts[-1] < 0.25
    assert torch.equal(elastic_net(model, images, targets, steps=2, beta=1e6), images), "no step is as long"


def test_on_a_hyperplane_the_pixels_that_change_are_of_the_largest_weights():
    model, images, targets, weights, _ = plane(2)
    changed = (elastic_net(model, images, targets, steps=40, beta=0.02) != images).flatten(1)
    order = weights.abs().argsort(descending=True)
    assert changed[:, order[:12]].any(1).all()
    assert not changed[:, order[12:]].any()


def test_the_soft_threshold_by_hand():
    image, moved = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.9, 0.1]), torch.tensor([0.75, 0.25, 0.6, 0.4, 1.5, -0.5])
    expected = torch.tensor([0.625, 0.375, 0.5, 0.5, 1.0, 0.0])
    torch.testing.assert_close(soft_threshold(moved, image, 0.125), expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(soft_threshold(moved, image, 0.0), moved.clamp(0, 1), rtol=0, atol=1e-7)


@given(seed=st.integers(0, 10**6), beta=st.floats(0.0, 0.5))
@settings(max_examples=15, deadline=None)
def test_the_soft_threshold_is_the_minimum_in_the_box(seed, beta):
    random = torch.Generator().manual_seed(seed)
    image = torch.rand(50, generator=random, dtype=torch.double)
    moved = image + torch.randn(50, generator=random, dtype=torch.double)
    got, grid = soft_threshold(moved, image, beta), torch.linspace(0, 1, 101, dtype=torch.double)[:, None]
    cost = lambda x: beta * (x - image).abs() + (x - moved).square() / 2  # noqa: E731
    assert (cost(got) <= cost(grid) + 1e-12).all()
    assert (cost(got) <= cost(image) + 1e-12).all()


def plain(model, image, y, descend, order, confidence, targeted):
    """The search for c of one image; `descend(c, hinge)` goes through what one round looks at."""

    def hinge(x):
        logits = model(x[None])[0]
        rest = max(z for j, z in enumerate(logits) if j != y)
        return (rest - logits[y] if targeted else logits[y] - rest) + confidence

    best, least, c, low, high = image, math.inf, 0.001, 0.0, math.inf
    for _ in range(9):
        seen = False
        for x in descend(c, lambda x: torch.clamp(hinge(x), min=0)):
            size, crossed = float((x - image).abs().pow(order).sum()), float(hinge(x).detach()) < 0
            seen |= crossed
            if crossed and size < least:
                best, least = x, size
        low, high = (low, c) if seen else (c, high)
        c = 10 * c if math.isinf(high) else (low + high) / 2
    return best


def plain_carlini_wagner(model, image, y, steps, confidence, targeted):
    """Carlini and Wagner 2017, Section VI-A, with Adam (Kingma and Ba 2015, Algorithm 1) written out."""

    def descend(c, loss):
        start = torch.atanh(0.999999 * (2 * image - 1))
        w, first, second = start, 0, 0
        for t in range(1, steps + 1):
            w = w.detach().requires_grad_()
            x = (1 + torch.tanh(w)) / 2
            total = (x - (1 + torch.tanh(start)) / 2).pow(2).sum() + c * loss(x)
            gradient = torch.autograd.grad(total, w)[0]
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            w = w - 0.01 * first / (1 - 0.9**t) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
            yield x.detach()

    return plain(model, image, y, descend, 2, confidence, targeted)


def plain_elastic_net(model, image, y, steps, confidence, targeted, beta=0.01):
    """Chen et al. 2018, Algorithm 1, the step of its public code: 0.01, falling to 0 as a square root."""

    def descend(c, loss):
        x = y = image
        for k in range(steps):
            y = y.detach().requires_grad_()
            gradient = torch.autograd.grad((y - image).pow(2).sum() + c * loss(y), y)[0]
            z = (y - 0.01 * math.sqrt(1 - k / steps) * gradient).detach()
            new = torch.where(z - image > beta, (z - beta).clamp(max=1), image)
            new = torch.where(z - image < -beta, (z + beta).clamp(min=0), new)
            y, x = new + k / (k + 3) * (new - x), new
            yield x

    return plain(model, image, y, descend, 1, confidence, targeted)


@pytest.mark.parametrize(("targeted", "confidence"), [(False, 0.0), (True, 0.2)])
@pytest.mark.parametrize(
    ("attack", "reference", "steps"),  # as many as it takes to cross
    [(carlini_wagner, plain_carlini_wagner, 60), (elastic_net, plain_elastic_net, 20)],
)
def test_carlini_wagner_and_the_elastic_net_are_the_plain_loops_over_images(
    attack, reference, steps, targeted, confidence, setting
):
    model, images, targets = setting[0], setting[1][:3], setting[2][:3]
    options = {"steps": steps, "confidence": confidence, "targeted": targeted}
    aims = (targets + 1) % 3 if targeted else targets
    expected = [reference(model, x, int(y), **options) for x, y in zip(images, aims, strict=True)]
    found = attack(model, images, aims, **options)
    # the same operations in another order: rounding, which EAD's momentum amplifies
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-9)
    assert (found != images).flatten(1).any(1).sum() >= 2


@pytest.fixture
def foolbox(monkeypatch):
    monkeypatch.setenv("GIT_PYTHON_REFRESH", "quiet")  # else it would not be imported on a machine without git
    return pytest.importorskip("foolbox", exc_type=ImportError)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("dtype", "tolerance", "targeted", "confidence"),
    [
        (torch.float64, 1e-10, False, 0.0),
        (torch.float64, 1e-10, True, 0.0),
        (torch.float64, 1e-10, True, 0.2),
        (torch.float32, 1e-3, False, 0.2),
    ],
)
def test_carlini_wagner_and_the_elastic_net_are_foolboxs(dtype, tolerance, targeted, confidence, foolbox, setting):
    """Same algorithm and settings: apart from rounding, and in single precision from what EAD's momentum makes of it
    in 30 steps where the loss has a kink, where the two may go on from either side."""
    model, images, targets = setting[0].to(dtype), setting[1].to(dtype), setting[2]
    aims = (targets + 1) % 3 if targeted else targets
    criterion = foolbox.criteria.TargetedMisclassification if targeted else foolbox.criteria.Misclassification
    lent = foolbox.PyTorchModel(model, (0, 1))
    for attack, name, rule in (
        (carlini_wagner, "L2CarliniWagnerAttack", {}),
        (elastic_net, "EADAttack", {"decision_rule": "L1"}),
    ):
        options = {"steps": 30, "confidence": confidence}
        theirs = getattr(foolbox.attacks, name)(abort_early=False, **options, **rule)
        expected = theirs.run(lent, images, criterion(aims))
        nothing = (expected == 0).flatten(1).all(1)  # its sign for it
        expected = torch.where(nothing[:, None, None, None], images, expected)
        found = attack(model, images, aims, targeted=targeted, **options)
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@given(order=st.permutations(range(4)), parts=st.integers(1, 4))
@settings(max_examples=3, deadline=None)
def test_an_images_result_is_the_same_in_any_batch(order, parts):
    model, images, targets, _, _ = plane(0)
    for attack in (carlini_wagner, elastic_net):
        whole = attack(model, images, targets, steps=20)
        assert (model(whole).argmax(1) != targets).all()
        pieces = [attack(model, images[i], targets[i], steps=20) for i in torch.tensor(order).chunk(parts)]
        torch.testing.assert_close(torch.cat(pieces), whole[order], rtol=0, atol=1e-9)


def test_confidence_is_the_margin_of_the_other_class():
    model, images, targets, _, _ = plane(3)
    for attack in (carlini_wagner, elastic_net):
        logits = model(attack(model, images, targets, steps=40, confidence=1.0))
        lead = (logits[:, 1] - logits[:, 0]) * (1 - 2 * targets)
        assert (lead >= 1.0).all()


@pytest.mark.parametrize("attack", [carlini_wagner, elastic_net])
def test_a_confidence_or_a_threshold_below_0_is_one_clear_line(attack, setting):
    with pytest.raises(UserError, match=r"confidence must be at least 0 \(got -1\)"):
        attack(*setting, steps=1, confidence=-1.0)
    with pytest.raises(UserError, match=r"beta must be at least 0 \(got nan\)"):
        elastic_net(*setting, steps=1, beta=math.nan)

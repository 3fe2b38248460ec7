"""The borrowed attacks by hand, against closed forms, against plain loops and against foolbox."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_models import plane

from attacks.borrowed import carlini_wagner, elastic_net, fgsm, pgd


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

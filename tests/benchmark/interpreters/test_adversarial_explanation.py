"""The adversarial explanation of networks whose map is known, and what its options do."""

import pytest
import torch
from nets import kitchen
from torch import nn

from attacks import Location, Recipe, manipulate
from attacks.adversarial import bounded
from attacks.errors import UserError
from attacks.pixels import rmse
from benchmark import interpreters


def explanation(**options):
    return interpreters.create("adversarial_explanation", **options)


@pytest.fixture(scope="module")
def setting():
    return kitchen()


@pytest.mark.parametrize("toward", [True, False])
def test_of_a_linear_model_it_is_the_weights(toward):
    """The odds of two classes have one gradient everywhere, so δ is that direction at length ρ."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2)).double()
    images, targets = torch.randn(3, 3, 4, 4, dtype=torch.double), torch.tensor([0, 1, 1])
    interpreter = explanation(toward=toward)
    delta = interpreter.attribute(model, images, targets).detach()
    w = (model[1].weight[1] - model[1].weight[0]).detach().view(1, 3, 4, 4)
    sign = (2 * targets - 1) * (1 if toward else -1)
    torch.testing.assert_close(delta, rmse(delta).view(-1, 1, 1, 1) * sign.view(-1, 1, 1, 1) * w / rmse(w))
    assert ((rmse(delta) - 0.1).abs() < 0.1 * 5 * 2 * 4 / (35 * 36)).all(), "to the length of the last steps"
    shape = w.abs().sum(1)
    heatmaps = ((shape - shape.min()) / (shape.max() - shape.min())).expand(3, 4, 4)
    torch.testing.assert_close(interpreter(model, images, targets).detach(), heatmaps, rtol=1e-6, atol=1e-6)


def test_it_is_the_bounded_attack_on_the_model_in_eval_mode(setting):
    model, images, targets = setting
    model.train()
    logits, attribution = explanation(rho=0.2, steps=6)._explain(model, images, targets)
    model.eval()
    delta = bounded(model, images, targets, rho=0.2, steps=6, path=1.0, toward=True)
    torch.testing.assert_close(attribution.detach(), delta)
    torch.testing.assert_close(logits, model(images))
    assert logits.requires_grad, "a manipulation's cross-entropy is of these"


def test_toward_its_class_and_away(setting):
    model, images, targets = setting
    before, toward, away = (
        model(images + delta).log_softmax(1).gather(1, targets[:, None])
        for delta in (0, *(explanation(toward=t).attribute(model, images, targets) for t in (True, False)))
    )
    assert (away < before).all()
    assert (before < toward).all()


def test_unrolled_steps_are_all_unless_said_otherwise(setting):
    model, images, targets = setting

    def gradient(unrolled):
        delta = explanation(steps=3, unrolled=unrolled).attribute(model, images, targets)
        return torch.cat([g.flatten() for g in torch.autograd.grad(delta.square().sum(), list(model.parameters()))])

    assert torch.equal(gradient(None), gradient(3))
    assert not torch.allclose(gradient(None), gradient(1))


def test_an_attack_takes_eight_steps_at_most():
    assert explanation(rho=0.3, unrolled=2).in_attack() == explanation(rho=0.3, unrolled=2, steps=8)
    assert explanation(steps=5).in_attack() == explanation(steps=5)


@pytest.mark.parametrize("unrolled", [None, 1])
def test_it_can_be_attacked(unrolled, setting):
    model, images, targets = setting
    fooling = Location()
    model, interpreter = model.float(), explanation(steps=3, unrolled=unrolled)  # the last of them outward
    result = manipulate(
        model, interpreter, fooling, [(images.float(), targets)], Recipe(1e-2, 100.0, 30), progress=False
    )
    model.double()
    assert result.status == "done"
    assert result.history["fooling"][-1] < 0.9 * result.history["fooling"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0.0}, "rho of adversarial_explanation must be"),
        ({"steps": 0}, "steps of adversarial_explanation must be"),
    ],
)
def test_a_wrong_option_is_one_clear_line(options, message, setting):
    with pytest.raises(UserError, match=message):
        explanation(**options)(*setting)

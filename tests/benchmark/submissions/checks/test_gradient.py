"""An honest gradient by the weights passes; one that is cut, overridden or rounded on the way is seen."""

import copy

import pytest
import torch
from spoiled import errors, good, raw
from torch import Tensor, nn

from attacks.heatmaps import min_max
from attacks.modes import eval_mode
from benchmark.interpreters.gradients import layer_gradient
from benchmark.submissions import checks
from benchmark.submissions.checks import gradient
from benchmark.submissions.checks.gradient import gradient_by_the_weights
from benchmark.submissions.checks.setting import Skipped, judge


def grad_cam(model: nn.Module, images: Tensor, targets: Tensor, detach: str = "") -> Tensor:
    with eval_mode(model):
        _, activation, gradient = layer_gradient(model, images, targets, None)
    activation = activation.detach() if detach == "activation" else activation
    gradient = gradient.detach() if detach == "gradient" else gradient
    return min_max((activation * gradient.mean((2, 3), keepdim=True)).sum(1).relu())


class Overridden(torch.autograd.Function):
    """The identity, with a gradient of its own."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return 1.001 * grad


def unused_weights(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return grad_cam(model, images, targets).detach() + 0 * next(model.parameters()).sum()


DISHONEST = {
    "detached": (lambda *a: grad_cam(*a).detach(), "have no graph to the weights"),
    "detached weights": (lambda *a: grad_cam(*a, detach="gradient"), "autograd's derivative of the heatmaps along a"),
    "detached activation": (lambda *a: grad_cam(*a, detach="activation"), "where central differences give"),
    "detached extent": (lambda *a: good.attribute(*a).abs().sum(1) / raw(*a).amax((1, 2), True), "autograd's deriv"),
    "overridden": (lambda *a: Overridden.apply(grad_cam(*a)), "autograd's derivative"),
    "zero": (unused_weights, "by every weight is zero"),
    "one image": (lambda *a: torch.cat([grad_cam(*a)[:1].detach(), grad_cam(*a)[1:]]), "autograd's derivative"),
}


def test_a_gradient_in_single_precision_is_not_taken_on_trust(resnet):
    found = judge(gradient_by_the_weights, lambda *a: grad_cam(*a).float(), resnet)
    assert found.failure.startswith("for a model and images in torch.float64 it returned torch.float32: make")


def test_statistics_that_an_interpreter_changes_do_not_spoil_its_gradient(resnet):
    def careless(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        maps = grad_cam(model, images, targets)
        model.bn1.running_mean = model.bn1.running_mean + 1  # not in place: the graph holds it
        return maps

    assert judge(gradient_by_the_weights, careless, resnet) == ("", "")


@pytest.mark.parametrize("name", DISHONEST)
def test_a_dishonest_gradient_is_seen(name: str, resnet, monkeypatch):
    interpreter, message = DISHONEST[name]
    monkeypatch.setattr(checks, "MAPS", {})  # the other checks are not what is asked here
    monkeypatch.setattr(checks, "TIDY", {})
    found = errors(checks.run(interpreter, differentiable=True, stochastic=False))
    assert list(found) == ["gradient by the weights"]
    assert message in found["gradient by the weights"]
    assert "leave no .detach()" in found["gradient by the weights"]
    assert errors(checks.run(interpreter, differentiable=False, stochastic=False)) == {}


def test_a_jump_makes_the_difference_unreliable_and_the_check_says_so(resnet):
    def jumping(*args) -> Tensor:
        maps = grad_cam(*args)
        return (maps + (maps.detach() * 1e12).floor() % 2) / 2

    def message(interpreter) -> str:
        return gradient_by_the_weights(interpreter, *[_copied(x) for x in resnet[1:]])

    with pytest.raises(Skipped, match="jump under the smallest changes"):
        message(jumping)
    assert message(grad_cam) == ""


def _copied(x):
    return x.clone() if isinstance(x, Tensor) else copy.deepcopy(x)


def test_a_kink_at_one_step_leaves_another_to_count():
    """|s - 4e-8| at steps of 1e-7 has its kink inside, at 1e-8 the derivative -1."""

    def difference(step: float) -> float:
        return (abs(step - 4e-8) - abs(-step - 4e-8)) / (2 * step)

    assert difference(1e-7) != pytest.approx(-1)
    assert gradient._reliable(difference, 1.0) == pytest.approx(-1)
    assert gradient._reliable(lambda step: 1 / step, 1.0) is None

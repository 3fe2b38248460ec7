"""What an interpreter leaves behind is found: on the model, in the random state, on its inputs."""

import random
import re

import numpy as np
import pytest
import torch
from spoiled import errors, good
from torch import Tensor, nn

from attacks.modes import eval_mode
from benchmark.submissions import checks
from benchmark.submissions.checks import tidy
from benchmark.submissions.checks.setting import judge


def leave_hook(model: nn.Module) -> None:
    model.conv1.register_forward_hook(lambda *_: None)


def leave_backward_hook(model: nn.Module) -> None:
    model.layer1.register_full_backward_hook(lambda *_: None)


def leave_pre_hook(model: nn.Module) -> None:
    model.layer1.register_forward_pre_hook(lambda *_: None)


def leave_tensor_hook(model: nn.Module) -> None:
    model.fc.weight.register_hook(lambda grad: grad)


def leave_train(model: nn.Module) -> None:
    model.eval()
    model.train()


def leave_eval(model: nn.Module) -> None:
    model.eval()


def leave_own_mode(model: nn.Module) -> None:
    training = model.training  # of the root alone
    model.eval()
    model.train(training)


def leave_statistics(model: nn.Module) -> None:
    model(torch.randn(4, 3, 32, 32, generator=torch.Generator()))


def leave_weight(model: nn.Module) -> None:
    with torch.no_grad():
        model.fc.weight[0, 0] += 1e-6


def leave_flag(model: nn.Module) -> None:
    model.requires_grad_(True)


def leave_grad(model: nn.Module) -> None:
    with eval_mode(model):
        model(torch.ones(1, 3, 32, 32)).sum().backward()


def leave_option(model: nn.Module) -> None:
    model.relu.inplace = False


def leave_forward(model: nn.Module) -> None:
    model.relu.forward = torch.relu


def leave_module(model: nn.Module) -> None:
    model.layer1[0].relu = nn.Softplus()


def leave_attribute(model: nn.Module) -> None:
    model.layer2.seen = 3


LEFT = {
    leave_hook: "the hooks of 'conv1' changed: .* remove",
    leave_backward_hook: "the hooks of 'layer1' changed: keep the handles",
    leave_pre_hook: "the hooks of 'layer1' changed",
    leave_tensor_hook: "the hooks of 'fc.weight' changed",
    leave_train: r"in eval mode, it left the training mode of 'the model itself' and \d+ more changed: .* finally",
    leave_eval: "in train mode, it left the training mode",
    leave_own_mode: "in train mode, it left the training mode of 'bn1' changed",
    leave_statistics: "in train mode, it left the buffers of 'layer1.0.bn1.running_mean' and .*: put the model in eval",
    leave_weight: "in eval mode, it left the weights of 'fc.weight' changed: work on copy.deepcopy",
    leave_flag: "left requires_grad of 'conv1.weight' changed",
    leave_grad: r"left .grad of '.*' and \d+ more changed: take torch.autograd.grad",
    leave_option: "class, options or attributes of 'relu' changed",
    leave_forward: "class, options or attributes of 'relu' changed",
    leave_module: "class, options or attributes of 'layer1.0.relu' changed",
    leave_attribute: "class, options or attributes of 'layer2' changed",
}


@pytest.mark.parametrize("leave", LEFT, ids=lambda leave: leave.__name__)
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_what_is_left_on_the_model_is_found(leave, fails: bool, resnet):
    def careless(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        leave(model)
        if fails:
            raise ValueError
        return good(model, images, targets)

    before = tidy._parts(resnet.model)
    message = judge(tidy.model_as_it_was, careless, resnet).failure
    assert re.search(LEFT[leave], message), message
    assert tidy._parts(resnet.model) == before, "the next check gets a fresh copy"


STATES = {
    "torch's random generator": lambda: torch.rand(1),
    "numpy's random generator": lambda: np.random.rand(),
    "Python's random generator": lambda: random.random(),
    "torch's grad mode": lambda: torch.set_grad_enabled(False),
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
}


@pytest.mark.parametrize("name", STATES)
def test_what_is_left_of_the_random_state_is_found_and_undone(name: str, resnet):
    def careless(*args) -> Tensor:
        maps = good(*args)
        STATES[name]()
        return maps

    before = tidy._global_state()
    found = errors(checks.run(careless, differentiable=False, stochastic=False))
    assert found == {
        "leaves the random state as it was": f"on compact_resnet: a batch of 4 images left {name} changed: draw from "
        "a generator of your own, or inside torch.random.fork_rng(); set modes by context managers only"
    }
    assert tidy._global_state() == before


def scale(images: Tensor, targets: Tensor) -> None:
    images.mul_(0.5)


def retarget(images: Tensor, targets: Tensor) -> None:
    targets.zero_()


def require(images: Tensor, targets: Tensor) -> None:
    images.requires_grad_()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scale, "it changed the images it was given: work on images.clone()"),
        (retarget, "it changed the targets it was given: work on targets.clone()"),
        (require, "it left images.requires_grad = True: work on images.detach().requires_grad_()"),
    ],
)
def test_what_is_left_on_the_inputs_is_found(change, message: str, resnet):
    def careless(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        maps = good(model, images, targets).detach()
        change(images, targets)
        return maps

    found = errors(checks.run(careless, differentiable=False, stochastic=False))
    assert list(found) == ["leaves images and targets as they were"]
    assert message in found["leaves images and targets as they were"]

"""Good interpreters pass; every bad one fails the check that is meant for it, with a message that says how to mend it.

The bad ones spoil `good`, the plain gradient, in one way each.
"""

import copy
import random
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks.errors import UserError
from attacks.heatmaps import min_max
from attacks.modes import eval_mode
from benchmark import interpreters
from benchmark.interpreters.gradients import layer_gradient
from benchmark.submissions import checks

good = interpreters.create("simple_grad")


def errors(found) -> dict[str, str]:
    """The messages of all errors, by check."""
    return {finding.check: finding.message for finding in found if not finding.ok and finding.severity == "error"}


@pytest.fixture(scope="module")
def case() -> checks.Case:
    return next(case for case in checks._cases("cpu") if case.name == "compact_resnet")


@pytest.fixture
def resnet(case, monkeypatch) -> checks.Case:
    """One of the three models, which is enough to fail on, and the only one that `run` asks about."""
    monkeypatch.setattr(checks, "_cases", lambda device: [case])
    return case


QUICK = {"smooth_grad": {"samples": 3}, "integrated_gradients": {"steps": 3}}
WARNED = {
    "lrp": {"same for rescaled channels", "same for folded BatchNorm"},
    "lrp_t": {"same for rescaled channels", "same for folded BatchNorm"},
    "simple_grad_t": {"same for rescaled channels"},
    "eigen_cam": {"same for rescaled channels"},
}
BLIND = {"differs by class", "depends on the weights"}
FAILED = {  # by what the method is: it looks at no class, or at nothing but the image, or not even that
    "eigen_cam": {"differs by class"},
    "deconvolution": {"depends on the image"},
    "sobel": BLIND,
    "constant": {*BLIND, "depends on the image"},
}
ASKED = [
    *("lrp", "lrp_t", "grad_cam", "layer_cam", "eigen_cam", "simple_grad", "simple_grad_t", "input_x_gradient"),
    *("guided_backprop", "deconvolution", "smooth_grad", "integrated_gradients", "deep_lift", "sobel", "constant"),
]


@pytest.mark.parametrize("name", ASKED)
def test_every_interpreter_of_ours_passes(name: str):
    interpreter = interpreters.create(name, **QUICK.get(name, {}))
    flags = {"differentiable": interpreter.differentiable, "stochastic": interpreter.stochastic}
    found = list(checks.run(interpreter, **flags))
    assert set(errors(found)) == FAILED.get(name, set())
    assert {finding.check for finding in found if not finding.ok} == WARNED.get(name, set()) | FAILED.get(name, set())
    skipped = {finding.check for finding in found if finding.ok and finding.message}
    assert skipped <= {"same on CPU and GPU"}, "none of the other checks may be given up on"
    asked = {finding.check for finding in found}
    assert ("gradient by the weights" in asked) == interpreter.differentiable
    assert len(asked) == len(found) == 16 + interpreter.differentiable + (not interpreter.stochastic)


def test_findings_come_one_by_one():
    calls = []

    def counted(*args):
        calls.append(args)
        return good(*args)

    found = checks.run(counted, differentiable=False, stochastic=False)
    assert next(found) == ("heatmaps of shape (N, h, w)", True, "", "error")
    assert len(calls) == 3


def raw(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return good.attribute(model, images, targets).abs().sum(1).detach()


def plain(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """A gradient with no care for the grad mode."""
    with eval_mode(model):
        images = images.clone().requires_grad_()
        logits = model(images).gather(1, targets[:, None]).sum()
        return min_max(torch.autograd.grad(logits, images)[0].abs().sum(1))


def nan_by_class(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return good(model, images, targets).detach().masked_fill((targets == 4)[:, None, None], torch.nan)


def edges(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return min_max(images.diff(dim=2, append=images[:, :, -1:]).abs().sum(1))


def half_of_the_channels(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    with eval_mode(model):
        _, activation, _ = layer_gradient(model, images, targets, "layer2.0.conv2")
        inner = activation[:, : activation.shape[1] // 2].detach().sum(1)
    maps = good(model, images, targets).detach()
    return min_max(maps + nn.functional.interpolate(inner[:, None], maps.shape[1:])[:, 0])


def kept_model(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    kept.append(model)
    return good(kept[0], images, targets)


kept: list[nn.Module] = []


def noisy(maps: Tensor, noise: Tensor) -> Tensor:
    return min_max(maps.detach() + noise)


def torch_noise(*args) -> Tensor:
    maps = good(*args)
    return noisy(maps, torch.rand(maps.shape[1:]))


def forked_noise(*args) -> Tensor:
    with torch.random.fork_rng():
        return torch_noise(*args)


def numpy_noise(*args) -> Tensor:
    maps = good(*args)
    return noisy(maps, torch.from_numpy(np.random.default_rng().random(maps.shape[1:])))  # never seeded


def first_target(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return good(model, images, targets[:1].expand(len(images)))


SHAPE, TWICE = "heatmaps of shape (N, h, w)", "same twice"
# interpreter, the checks it fails, what the first message says
BAD = {
    "raises": (
        lambda m, x, t: 1 / 0,
        {SHAPE},
        r"called as .*\(4, 3, 32, 32\).* raised ZeroDivisionError: .*\(test_che",
    ),
    "signature": (lambda m, x: x, {SHAPE}, r"targets \(4,\)\) it raised TypeError: .* takes 2 positional arguments"),
    "numpy": (lambda *a: good(*a).detach().numpy(), {SHAPE}, "returned a ndarray: return one torch tensor"),
    "channels": (lambda *a: good.attribute(*a), {SHAPE}, r"\(4, 3, 32, 32\): return \(N, h, w\), .*maps.sum\(1\)"),
    "mean": (lambda *a: good(*a).mean(0), {SHAPE}, r"shape \(32, 32\): .* one map an image"),
    "ranks": (lambda *a: (9 * good(*a)).long(), {SHAPE}, r"returned torch.int64: .*maps.to\(images.dtype\)"),
    "other device": (lambda *a: good(*a).to("meta"), {SHAPE}, r"on meta: .*device=images.device \(cpu\)"),
    "one NaN": (nan_by_class, {"finite"}, r"NaN or infinite values \(images 1, 3 of 4\): guard every division"),
    "blank": (lambda *a: raw(*a) / raw(*a).amax((1, 2), True), {"finite"}, "logits are all zero.*min_max"),
    "unbounded": (lambda *a: 2 * good(*a), {"in [0, 1]"}, r"from 0 to 2 \(images 0, 1, 2, 3 of 4\): .*min_max"),
    "squeezed": (lambda *a: good(*a).squeeze(0), {"any batch size"}, r"1 image gave shape \(32, 32\).*squeeze"),
    "over the batch": (
        lambda *a: raw(*a) / raw(*a).amax().clamp(min=1e-9),
        {"same alone and in a batch"},
        r"differs by up to 0\.\d+ of its norm .*\(image.* of 4\): normalise each map by itself",
    ),
    "first target": (first_target, {"same alone and in a batch"}, r"images 1, 3 of 4"),
    "unseeded noise": (forked_noise, {TWICE}, r"two calls gave different maps .*fixed seed.*declare it stochastic"),
    "global noise": (torch_noise, {TWICE, "leaves the random state as it was"}, "declare it stochastic"),
    "no gradients": (plain, {"same under no_grad"}, r"raised RuntimeError: .*does not require grad.*torch.enable_grad"),
    "by no_grad": (
        lambda *a: good(*a).detach() * (1 if torch.is_grad_enabled() else 0.5),
        {"same under no_grad"},
        "under torch.no_grad.* maps are others",
    ),
    "own class": (lambda m, x, t: good(m, x, t * 0 + 2), {"differs by class"}, r"same map \(images 0, 1, 2, 3 of 4\)"),
    "own image": (lambda m, x, t: good(m, 0 * x, t), {"depends on the image"}, "another image in its place"),
    "constant": (
        lambda m, x, t: torch.ones(x[:, 0].shape),
        {"differs by class", "depends on the image", "depends on the weights"},
        "",
    ),
    "edges": (edges, {"differs by class", "depends on the weights"}, ""),
    "kept model": (kept_model, {"depends on the weights"}, r"with shuffled weights .*model given in the call"),
    "channel order": (half_of_the_channels, {"same for permuted channels"}, "order of channels means nothing"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_interpreter_fails_its_check(name: str, resnet):
    interpreter, expected, message = BAD[name]
    kept.clear()
    found = errors(checks.run(interpreter, differentiable=False, stochastic=False))
    assert set(found) == expected
    first = next(iter(found.values()))
    assert first.startswith("on compact_resnet: ")
    assert re.search(message, first), first


def test_a_failure_names_every_model_it_is_seen_on():
    def residual_only(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return good(model, images, targets) * len(model.layer4) / 2

    found = errors(checks.run(residual_only, differentiable=False, stochastic=False))
    (message,) = found.values()
    assert message.startswith("on compact_vgg (also on compact_densenet): called as")
    assert re.search(r"AttributeError: 'VGG' object has no attribute 'layer4' \(test_checks.py, line \d+\)$", message)


def test_where_no_map_comes_back_what_is_left_behind_is_still_checked(resnet):
    def stops(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        model.train()
        raise SystemExit("not today")

    found = list(checks.run(stops, differentiable=True, stochastic=False))
    assert [finding.check for finding in found] == [SHAPE, *checks.TIDY]
    assert set(errors(found)) == {SHAPE, "leaves the model as it was"}
    assert "SystemExit: not today" in found[0].message


@pytest.mark.parametrize(
    ("interpreter", "message"),
    [(numpy_noise, "two calls, seeded alike, gave different maps"), (forked_noise, ""), (good, "")],
)
def test_a_stochastic_interpreter_must_follow_the_seed(interpreter, message: str, resnet):
    found = {f.check: f.message for f in checks.run(interpreter, differentiable=False, stochastic=True)}
    assert message in found[TWICE]
    assert bool(message) == bool(found[TWICE])
    assert "same on CPU and GPU" not in found


def test_how_a_model_is_written_down_is_a_warning(resnet):
    def warned(**options) -> dict[str, str]:
        found = checks.run(interpreters.create("lrp_t", **options), differentiable=False, stochastic=False)
        bad = [finding for finding in found if not finding.ok]
        assert {finding.severity for finding in bad} <= {"warning"}
        return {finding.check: finding.message for finding in bad}

    (message,) = warned(batch_norm="pass").values()
    assert "folded BatchNorm has other maps (images 0, 1, 2, 3 of 4): merging" in message
    assert warned(batch_norm="fold") == {}


def test_maps_of_two_devices_are_compared(resnet):
    assert checks.same_on(good, *resnet[1:], other="cpu") == ""
    calls = iter(range(9))
    message = checks.same_on(lambda *a: good(*a) / (1 + next(calls)), *resnet[1:], other="cpu")
    assert message.startswith("maps differ between cpu and cpu (images 0, 1, 2, 3 of 4): make every tensor")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    interpreter = interpreters.create("grad_cam")
    assert all(f.ok for f in checks.run(interpreter, differentiable=True, stochastic=False, device="cuda"))


# The gradient by the weights


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
    found = checks._verdict(checks.gradient_by_the_weights, lambda *a: grad_cam(*a).float(), resnet)
    assert found.failure.startswith("for a model and images in torch.float64 it returned torch.float32: make")


def test_statistics_that_an_interpreter_changes_do_not_spoil_its_gradient(resnet):
    def careless(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        maps = grad_cam(model, images, targets)
        model.bn1.running_mean = model.bn1.running_mean + 1  # not in place: the graph holds it
        return maps

    assert checks._verdict(checks.gradient_by_the_weights, careless, resnet) == ("", "")


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
        return checks.gradient_by_the_weights(interpreter, *[_copied(x) for x in resnet[1:]])

    with pytest.raises(checks.Skipped, match="jump under the smallest changes"):
        message(jumping)
    assert message(grad_cam) == ""


def _copied(x):
    return x.clone() if isinstance(x, Tensor) else copy.deepcopy(x)


def test_a_kink_at_one_step_leaves_another_to_count():
    """|s - 4e-8| at steps of 1e-7 has its kink inside, at 1e-8 the derivative -1."""

    def difference(step: float) -> float:
        return (abs(step - 4e-8) - abs(-step - 4e-8)) / (2 * step)

    assert difference(1e-7) != pytest.approx(-1)
    assert checks._reliable(difference, 1.0) == pytest.approx(-1)
    assert checks._reliable(lambda step: 1 / step, 1.0) is None


# What is left behind


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

    before = checks._parts(resnet.model)
    message = checks._verdict(checks.model_as_it_was, careless, resnet).failure
    assert re.search(LEFT[leave], message), message
    after = checks._parts(resnet.model)
    for (_, _, then), (_, _, now) in zip(before, after, strict=True):
        assert all(checks._equal(value, now[name]) for name, value in then.items()), "the next check gets a fresh copy"


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

    before = checks._global_state()
    found = errors(checks.run(careless, differentiable=False, stochastic=False))
    assert found == {
        "leaves the random state as it was": f"on compact_resnet: a batch of 4 images left {name} changed: draw from "
        "a generator of your own, or inside torch.random.fork_rng(); set modes by context managers only"
    }
    assert checks._global_state() == before


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


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_one_clear_line(device: str):
    with pytest.raises(UserError, match=f"device '{device}' cannot be used here; allowed: cpu"):
        next(checks.run(good, differentiable=True, stochastic=False, device=device))

"""Pixel helpers, and what every attack on pixels promises: to leave the model be, to treat each image alone."""

import copy
import math

import numpy as np
import pytest
import torch
from pretended_cuda import pretended_cuda
from small_models import Net, flat
from torch import Tensor, nn

from attacks.adversarial import bounded, minimum_norm
from attacks.borrowed import carlini_wagner, elastic_net, fgsm, pgd
from attacks.errors import UserError
from attacks.pixels import OnPixels, rmse
from attacks.structured import structured_attack

ATTACKS = {
    "minimum_norm": lambda model, x, y, **given: minimum_norm(model, x, y, **{"steps": 5, **given}).delta,
    "bounded": lambda model, x, y, **given: bounded(model, x, y, **{"rho": 0.1, "steps": 5, "path": 0.5, **given}),
    "fgsm": lambda model, x, y, epsilon=0.05, **given: fgsm(model, x, y, epsilon, **given),
    "pgd": lambda model, x, y, epsilon=0.05, **given: pgd(
        model, x, y, epsilon, **{"step": 0.02, "steps": 4, "random_start": True, **given}
    ),
    "carlini_wagner": lambda model, x, y, **given: carlini_wagner(model, x, y, **{"steps": 5, **given}),
    "elastic_net": lambda model, x, y, **given: elastic_net(model, x, y, **{"steps": 5, **given}),
    "structured": lambda model, x, y, **given: structured_attack(
        model, x, y, **{"cell": 2, "steps": 5, "gamma": 1, "tau": 1, "c": 30, "rho": 1, "epsilon": 1, **given}
    ),
}
ON_PIXELS = [name for name in ATTACKS if name != "bounded"]
each_attack = pytest.mark.parametrize("name", ATTACKS)


def test_where_there_is_no_gradient_nothing_moves_and_nothing_is_found():
    images, targets = torch.rand(2, 3, 6, 6), torch.tensor([0, 1])
    found = minimum_norm(flat, images, targets, steps=3)
    assert torch.equal(found.delta, torch.zeros_like(images))
    assert (found.radius.tolist(), found.first.tolist()) == ([0, 0], [4, 0])
    assert torch.equal(bounded(flat, images, targets, rho=0.1, steps=3, path=0.5), torch.zeros_like(images))
    assert torch.equal(fgsm(flat, images, targets, 0.1), images)
    for attack in (carlini_wagner, elastic_net):
        torch.testing.assert_close(attack(flat, images, targets, steps=2), images)


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


@each_attack
def test_no_images_give_none(name, setting):
    model, images, targets = setting
    assert ATTACKS[name](model, images[:0], targets[:0]).shape == (0, 3, 6, 6)


@each_attack
def test_dtype_and_device_are_those_of_the_images(name, setting):
    """On a GPU that is pretended: a tensor left on the CPU would not mix with its tensors."""
    model, images, targets = setting[0].float(), setting[1].float(), setting[2]
    here = ATTACKS[name](model, images, targets)
    assert here.dtype == torch.float32
    with pretended_cuda():
        there = ATTACKS[name](copy.deepcopy(model).to("cuda"), images.to("cuda"), targets.to("cuda"))
        assert there.device.type == "cuda"
        assert torch.equal(there.cpu(), here)


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

"""What holds for every interpreter: shapes, ranges, independence of the batch, a model given back as it came."""

import copy

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam, NoiseTunnel, Saliency
from nets import ATTENTION
from torch import nn

from attacks.errors import UserError
from benchmark import interpreters, models
from benchmark.interpreters.base import find_layer

CHAINS_ONLY = {"captum_lrp"}  # refuse the ResNet below, as do those of attention
AT_LAYER = {"lrp_t", "lrp_t_epsilon", "lrp_t_contrast", "simple_grad_t", "grad_cam", "grad_cam_contrast",
            "grad_cam_plus_plus", "layer_cam", "eigen_cam", *ATTENTION}  # fmt: skip
CHEAPER = {
    "kernel_shap": {"cells": 2, "samples": 8},
    "occlusion": {"cells": 3},
    "occlusion_contrast": {"cells": 3},
    "feature_ablation": {"cells": 3},
    "adversarial_explanation": {"steps": 4},
}
COLLECTED = ["lrp", "lrp_t", "grad_cam", "simple_grad", "guided_backprop", "deep_lift", "adversarial_explanation"]


@pytest.fixture(scope="module")
def setting():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.create("compact_resnet", num_classes=4, input_size=32)
        return model, torch.randn(5, 3, 32, 32), torch.tensor([0, 1, 2, 3, 0])


@pytest.fixture(scope="module")
def chain(setting):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.create("compact_vgg", num_classes=4, input_size=32), *setting[1:]


@pytest.fixture(scope="module")
def transformer(setting):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = models.create("compact_vit", num_classes=4, input_size=32)
        with torch.no_grad():  # at first every head reads all tokens alike
            for block in model.encoder.layers:
                block.self_attention.in_proj_weight.mul_(6)
        return model, *setting[1:]


@pytest.fixture
def case(name, setting, chain, transformer):
    """The interpreter of the test's `name` with a model that it explains, images and targets."""
    explained = transformer if name in ATTENTION else chain if name in CHAINS_ONLY else setting
    return interpreters.create(name, **CHEAPER.get(name, {})), *explained


each_interpreter = pytest.mark.parametrize("name", interpreters.names())


@each_interpreter
def test_heatmaps_are_finite_maps_in_the_unit_range(name, case):
    interpreter, *setting = case
    heatmaps = interpreter(*setting)
    side = 4 if name in AT_LAYER else 32
    assert heatmaps.shape == (5, side, side)
    assert heatmaps.isfinite().all()
    assert heatmaps.amin() >= 0
    blank = interpreter.attribute(*setting).sum(1).amax((1, 2)) <= 0  # nothing speaks for the label
    assert blank.sum() <= 1
    torch.testing.assert_close(heatmaps.amax((1, 2)).detach(), 1 - blank.float())
    assert heatmaps.requires_grad == interpreter.differentiable
    assert interpreter.name == name


@each_interpreter
def test_a_heatmap_does_not_depend_on_its_batch(case):
    interpreter, model, images, targets = case
    model, images = model.double(), images[:3].double()
    together = interpreter(model, images, targets[:3])
    alone = [interpreter(model, image[None], target[None]) for image, target in zip(images, targets, strict=False)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-9)
    model.float()


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
@each_interpreter
def test_the_model_is_given_back_as_it_came(fails, case):
    interpreter, model, images, targets = case
    first = next(model.parameters())
    model.train()
    list(model.children())[-1].eval()
    first.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    attributes = [sorted(vars(m)) for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    rng, numpy_rng, grad = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.is_grad_enabled()
    before = images.clone()
    if fails:
        with pytest.raises(UserError):
            interpreter(model, images, targets + 4)
    else:
        interpreter(model, images, targets)
    assert [m.training for m in model.modules()] == modes
    assert [sorted(vars(m)) for m in model.modules()] == attributes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == [p is not first for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks or m._backward_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), rng)
    assert np.array_equal(np.random.get_state()[1], numpy_rng)
    assert torch.is_grad_enabled() == grad
    assert torch.equal(images, before)
    assert not images.requires_grad
    model.eval().requires_grad_(True)


@each_interpreter
def test_no_grad_gives_the_same_map_without_a_graph(case):
    interpreter, model, images, targets = case
    with torch.no_grad():
        logits, quiet = interpreter.with_logits(model, images, targets)
    assert not quiet.requires_grad
    assert not logits.requires_grad
    torch.testing.assert_close(quiet, interpreter(model, images, targets).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, model(images).detach())


@each_interpreter
def test_the_derivatives_of_the_logits_are_the_models_own(case):
    """However a method changes the backward pass: an attack keeps the predictions by them."""
    interpreter, model, images, targets = case
    model, images = copy.deepcopy(model).double(), images.double()
    parameters, offered = list(model.parameters()), interpreter.in_attack()
    if not offered.differentiable or offered.control:
        pytest.skip("is not differentiated")
    weights = torch.randn(5, 4, dtype=torch.double, generator=torch.Generator().manual_seed(1))

    def of(logits):
        return torch.autograd.grad((logits.log_softmax(1) * weights).sum(), parameters, allow_unused=True)

    for mine, own in zip(of(offered.with_logits(model, images, targets)[0]), of(model(images)), strict=True):
        torch.testing.assert_close(mine, own)


@each_interpreter
def test_what_an_attack_differentiates_is_of_the_same_name_and_can_be(name):
    interpreter = interpreters.create(name, **CHEAPER.get(name, {}))
    offered = interpreter.in_attack()
    assert offered.name == name
    assert offered.differentiable == interpreter.differentiable
    assert offered.in_attack() == offered


def test_simple_grad_is_captums_saliency(setting):
    expected = Saliency(setting[0]).attribute(setting[1], target=setting[2], abs=False)
    torch.testing.assert_close(interpreters.create("simple_grad").attribute(*setting), expected)


def test_grad_cam_is_captums_at_the_layers_input(setting):
    model, images, targets = setting
    captum = LayerGradCam(model, find_layer(model, None))
    expected = captum.attribute(images, target=targets, attribute_to_layer_input=True, relu_attributions=True)[:, 0]
    got = interpreters.create("grad_cam")(model, images, targets)
    torch.testing.assert_close(got, (expected / expected.amax((1, 2), keepdim=True)).detach(), rtol=1e-4, atol=1e-5)


def test_grad_cam_of_a_dense_layer_joins_its_inputs():
    model = models.create("compact_densenet", num_classes=3, input_size=32)
    layer = find_layer(model, None)
    attribution = interpreters.create("grad_cam").attribute(model, torch.randn(1, 3, 32, 32), torch.tensor([0]))
    assert attribution.shape[1] == layer.norm1.num_features


def test_integrated_gradients_are_complete(setting):
    model, images, targets = setting
    total = interpreters.create("integrated_gradients", steps=200).attribute(model, images, targets).sum((1, 2, 3))
    label = (model(images) - model(torch.zeros_like(images))).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(total, label.detach(), rtol=0.02, atol=0.01)


def test_smooth_grad_of_one_image_is_captums_noise_tunnel(setting):
    model, images, targets = setting
    with torch.random.fork_rng():
        torch.manual_seed(3)
        options = {"nt_type": "smoothgrad", "nt_samples": 16, "stdevs": 0.1, "abs": False}
        expected = NoiseTunnel(Saliency(model)).attribute(images[:1], target=targets[:1], **options)
    got = interpreters.create("smooth_grad", seed=3).attribute(model, images[:1], targets[:1])
    torch.testing.assert_close(got, expected)
    assert not torch.equal(got, interpreters.create("smooth_grad", seed=4).attribute(model, images[:1], targets[:1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(3, 32, 32)}, "images must be"),
        ({"targets": torch.zeros(4, dtype=torch.long)}, "targets must be"),
        ({"targets": torch.full((5,), 9)}, "targets must lie in 0..3"),
        ({"options": {"layer": "layer5"}}, "did you mean 'layer4'"),
    ],
)
def test_wrong_input_is_one_clear_line(change, message, setting):
    model, images, targets = setting
    interpreter = interpreters.create("lrp_t", **change.get("options", {}))
    with pytest.raises(UserError, match=message):
        interpreter(model, change.get("images", images), change.get("targets", targets))


def test_a_layer_that_runs_twice_or_never_is_an_error():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.unused = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(self.conv(x)).mean((2, 3))

    for layer, message in (("conv", "exactly once"), ("unused", "never calls")):
        with pytest.raises(UserError, match=message):
            interpreters.create("grad_cam", layer=layer)(Net(), torch.ones(1, 3, 2, 2), torch.tensor([0]))


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UserError, match="did you mean 'grad_cam'"):
        interpreters.create("gradcam")
    with pytest.raises(UserError, match="unknown option of lrp"):
        interpreters.create("lrp", layer="x")


def _batches(count):
    import gc

    return [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and o.dim() == 4 and len(o) == count]


@pytest.mark.parametrize(
    "name",
    [
        *("lrp", "lrp_t", "lrp_contrast", "lrp_t_contrast", "grad_cam", "simple_grad", "guided_backprop", "deep_lift"),
        *("adversarial_explanation", "var_grad"),
    ],
)
@pytest.mark.parametrize("grad", [False, True])
def test_nothing_waits_for_the_garbage_collector(name, grad, setting):
    """Memory is bounded by one batch: no reference cycle keeps a batch's activations."""
    import gc

    model, images, targets = setting
    options = {"lrp": {"batch_norm": "fold"}, "var_grad": {"samples": 2}, **CHEAPER}
    interpreter = interpreters.create(name, **options.get(name, {}))
    gc.freeze()  # what there is now is not looked through, from here on: other tests' parameters, too
    gc.disable()
    try:
        probe = images + 0
        with torch.set_grad_enabled(grad):
            interpreter(model, images, targets)
        assert [tuple(t.shape) for t in _batches(len(images)) if t is not probe] == []
        assert any(t is probe for t in _batches(len(images)))
    finally:
        gc.enable()

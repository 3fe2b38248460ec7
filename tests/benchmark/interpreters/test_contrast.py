"""What explains the contrast z_y − mean_c z_c: it knows no shift of the head, and is the formula where there is one."""

import copy
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from nets import ATTENTION, Tokens, kitchen
from torch import nn

from attacks.errors import Refused, UserError
from benchmark import interpreters, models
from benchmark.interpreters.gradients import layer_gradient

CHEAPER = {
    "kernel_shap": {"cells": 2, "samples": 40},
    "occlusion": {"cells": 3},
    "occlusion_contrast": {"cells": 3},
    "feature_ablation": {"cells": 3},
}
NAMED = ["lrp_contrast", "lrp_t_contrast", "grad_cam_contrast", "simple_grad_contrast", "occlusion_contrast"]
TARGETED = [
    name for name in interpreters.INTERPRETERS if "target" in [field.name for field in fields(interpreters.kind(name))]
]
GRADIENTS = [name for name in TARGETED if name not in NAMED and ("grad" in name or "cam" in name or "guided" in name)]
TOLERANCE = {torch.float: 1e-5, torch.double: 1e-11}


class Chain(nn.Module):
    """A chain that every interpreter explains, three classes."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(64, 3)

    def forward(self, x):
        x = self.relu(self.last(F.relu(self.first(x))))
        return self.head(torch.flatten(self.pool(x), 1))


class Headed(nn.Module):
    """A convolution, and a head (a module with `weight` and `bias`) whose outputs become logits by `then`."""

    def __init__(self, head, then):
        super().__init__()
        self.conv, self.head, self.then = nn.Conv2d(3, 6, 3), head, then

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.then(self.head(x if isinstance(self.head, nn.Conv2d) else x.mean((2, 3))))


def seeded(make, dtype=torch.double):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().to(dtype).eval(), torch.randn(2, 3, 8, 8, dtype=dtype), torch.tensor([2, 0])


def head(model):
    return [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]


def twin(model, scale=1.0):
    """The same model with W + 1vᵀ and b + c in its head."""
    shifted, generator = copy.deepcopy(model), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in head(shifted).parameters():
            change = torch.randn(parameter[:1].shape, generator=generator) * scale * parameter.abs().mean()
            parameter += change.to(parameter)
    return shifted


def assert_near(got, expected, dtype):
    assert (got - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max().clamp(min=1)


def test_who_has_the_option():
    without = {"captum_lrp", "eigen_cam", "attention_rollout", "adversarial_explanation", "aggregate"}
    controls = {name for name in interpreters.INTERPRETERS if interpreters.kind(name).control}
    assert set(interpreters.INTERPRETERS) - set(TARGETED) == without | controls
    for name in sorted(without | controls):
        with pytest.raises(UserError, match=f"unknown option of {name}"):
            interpreters.create(name, target="contrast")
    for name in TARGETED:
        assert interpreters.create(name).target == ("contrast" if name in NAMED else "logit")
        with pytest.raises(UserError, match="unknown target 'label': allowed: contrast, logit"):
            interpreters.create(name, target="label")


@pytest.mark.parametrize("name", NAMED)
def test_a_name_is_its_option(name):
    setting, options = seeded(Chain), CHEAPER.get(name, {})
    plain = interpreters.create(name.removesuffix("_contrast"), target="contrast", **options)
    named = interpreters.create(name, **options)
    assert torch.equal(named(*setting), plain(*setting))
    assert torch.equal(named.attribute(*setting), plain.attribute(*setting))


@pytest.mark.parametrize("dtype", [torch.float, torch.double], ids=str)
@pytest.mark.parametrize("name", [*TARGETED, "adversarial_explanation"])
def test_a_shift_of_the_head_changes_no_map(name, dtype):
    model, images, targets = seeded(Tokens if name in ATTENTION else Chain, dtype)
    option = {"target": "contrast"} if name in TARGETED else {}
    interpreter = interpreters.create(name, **CHEAPER.get(name, {}), **option)
    shifted = twin(model)
    torch.testing.assert_close(shifted(images).softmax(1), model(images).softmax(1))
    logits, heatmap = interpreter.with_logits(model, images, targets)
    torch.testing.assert_close(logits, model(images))
    assert heatmap.amax() > 0.99
    if name == "kernel_shap":  # Captum solves in float32
        dtype = torch.float
    assert_near(interpreter(shifted, images, targets), heatmap, dtype)
    expected = interpreter.attribute(model, images, targets)
    assert_near(interpreter.attribute(shifted, images, targets), expected, dtype)


@pytest.mark.parametrize("name", [*GRADIENTS, "lrp", "lrp_t", "occlusion", "deep_lift"])
def test_it_changes_the_map_of_a_logit(name):
    model, images, targets = seeded(Tokens if name in ATTENTION else Chain)
    interpreter = interpreters.create(name, **CHEAPER.get(name, {}))
    assert (interpreter(twin(model, 3), images, targets) - interpreter(model, images, targets)).abs().max() > 0.01


@pytest.mark.parametrize("name", ["lrp_contrast", "lrp_t_contrast"])
@pytest.mark.parametrize("options", [{}, {"composite": "epsilon", "batch_norm": "fold"}, {"composite": "gamma"}])
def test_relevance_of_the_kitchen_is_that_of_its_twin(name, options):
    model, images, targets = kitchen()
    interpreter = interpreters.create(name, **options, **({"layer": "middle"} if "_t_" in name else {}))
    expected = interpreter.attribute(model, images, targets)
    assert_near(interpreter.attribute(twin(model), images, targets), expected, torch.double)


@pytest.mark.parametrize("dtype", [torch.float, torch.double], ids=str)
@pytest.mark.parametrize("name", ["compact_vgg", "compact_resnet", "compact_densenet", "squeezenet1_1"])
def test_lrp_of_a_network_is_that_of_its_twin(name, dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.create(name, num_classes=4, input_size=32).to(dtype).eval()
        images, targets = torch.randn(2, 3, 32, 32, dtype=dtype), torch.tensor([1, 3])
    if name == "squeezenet1_1":  # its ReLU after the last convolution makes a shift of that no shift of the logits
        with pytest.raises(Refused, match="contrast needs a last linear layer or 1x1 convolution"):
            interpreters.create("lrp_contrast")(model, images, targets)
        model.classifier[2] = nn.Identity()
    for method in ("lrp_contrast", "lrp_t_contrast"):
        interpreter = interpreters.create(method)
        assert_near(interpreter(twin(model), images, targets), interpreter(model, images, targets), dtype)


HEADS = {
    "linear": (nn.Linear(6, 3), lambda z: z),
    "linear, reshaped": (nn.Linear(6, 3), lambda z: F.dropout(z.view(-1, 3, 1), training=False)[:, :, 0]),
    "pooled": (nn.Conv2d(6, 3, 1), lambda z: F.adaptive_avg_pool2d(z, 1).flatten(1)),
    "average": (nn.Conv2d(6, 3, 1), lambda z: z.mean((2, 3))),
    "average of an average": (nn.Conv2d(6, 3, 1), lambda z: F.avg_pool2d(z, 2).mean([-1, -2])),
}


@pytest.mark.parametrize("form", HEADS)
def test_the_map_is_that_of_the_model_with_the_centred_head(form):
    """Which is the same model, with other weights: the rules know nothing of contrasts."""
    model, images, targets = seeded(lambda: Headed(*copy.deepcopy(HEADS[form])))
    centred = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in centred.head.parameters():
            parameter -= parameter.mean(0, keepdim=True)
    for composite in ("default", "epsilon", "gamma", "alpha2_beta1", "heo2019", "epsilon_gamma_box"):
        expected = interpreters.create("lrp", composite=composite).attribute(centred, images, targets)
        got = interpreters.create("lrp_contrast", composite=composite).attribute(model, images, targets)
        assert_near(got, expected, torch.double)
        assert_near(
            interpreters.create("lrp_contrast", composite=composite).attribute(twin(model), images, targets),
            expected,
            torch.double,
        )


REFUSED = {
    "log-softmax": (nn.Linear(6, 3), lambda z: z.log_softmax(1)),
    "sum": (nn.Linear(6, 3), lambda z: z + 2 * z),
    "affine": (nn.Linear(6, 3), lambda z: 2 * z),
    "relu": (nn.Conv2d(6, 3, 1), lambda z: z.relu().mean((2, 3))),
    "3x3": (nn.Conv2d(6, 3, 3), lambda z: z.mean((2, 3))),
    "groups": (nn.Conv2d(6, 3, 1, groups=3), lambda z: z.mean((2, 3))),
    "maximum": (nn.Conv2d(6, 3, 1), lambda z: z.amax((2, 3))),
    "a part of the classes": (nn.Linear(6, 5), lambda z: z[:, :3]),
    "pairs of classes": (nn.Linear(6, 6), lambda z: z.view(-1, 3, 2).mean(2)),
    "another axis": (nn.Conv2d(6, 6, 1), lambda z: z.mean((1, 2))),
}


@pytest.mark.parametrize("form", REFUSED)
def test_logits_without_such_a_head_are_refused(form):
    model, images, targets = seeded(lambda: Headed(*copy.deepcopy(REFUSED[form])))
    for name in ("lrp_contrast", "lrp_t_contrast"):
        interpreter = interpreters.create(name, **({"layer": "head"} if "_t_" in name else {}))
        with pytest.raises(Refused, match="contrast needs a last linear layer or 1x1 convolution") as caught:
            interpreter(model, images, targets)
        assert "\n" not in str(caught.value)


def test_the_gradient_of_a_linear_network_is_the_centred_row():
    model, images, targets = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)))
    weight = model[1].weight
    got = interpreters.create("simple_grad_contrast").attribute(model, images, targets)
    torch.testing.assert_close(got.flatten(1), weight[targets] - weight.mean(0))
    for name in ("integrated_gradients", "deep_lift", "input_x_gradient"):
        product = interpreters.create(name, target="contrast").attribute(model, images, targets)
        torch.testing.assert_close(product, images * got)


def test_lrp_of_a_linear_network_by_hand():
    model, images, targets = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)))
    got = interpreters.create("lrp_contrast").attribute(model, images, targets)
    for image, target, relevance in zip(images.flatten(1), targets, got.flatten(1), strict=True):
        row = model[1].weight[target] - model[1].weight.mean(0)
        score = row @ image + model[1].bias[target] - model[1].bias.mean()
        torch.testing.assert_close(relevance, image * row * score / (score + 0.01 * score.sign()))


def test_grad_cam_weighs_by_the_gradient_of_the_contrast():
    """The gradient of a mean of logits is the mean of their gradients, class by class."""
    model, images, targets = kitchen()
    weights = []
    for c in range(3):
        _, activation, gradient = layer_gradient(model, images, torch.full_like(targets, c), "middle")
        weights.append(gradient.mean((2, 3), keepdim=True))
    own = torch.stack([weights[target][n] for n, target in enumerate(targets)])
    expected = activation * (own - sum(weights) / 3)
    got = interpreters.create("grad_cam_contrast", layer="middle").attribute(model, images, targets)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["lrp_contrast", "lrp_t_contrast", "grad_cam_contrast", "simple_grad_contrast"])
def test_the_gradient_by_the_head_has_no_part_that_is_a_shift(name):
    model, images, targets = kitchen()
    layer = {"layer": "middle"} if name in ("lrp_t_contrast", "grad_cam_contrast") else {}
    heatmaps = interpreters.create(name, **layer)(model, images, targets)
    gradient = torch.autograd.grad(heatmaps.square().sum(), model.head.weight)[0]
    assert gradient.sum(0).abs().max() <= 1e-12 * gradient.abs().max()

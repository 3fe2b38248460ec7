"""Methods that people have, as submissions: each against the method itself, asked by hand."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import (
    LRP,
    GuidedGradCam,
    IntegratedGradients,
    LayerDeepLift,
    LayerGradCam,
    LayerLRP,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from torch import nn

import benchmark
from attacks.errors import UserError
from attacks.heatmaps import min_max
from benchmark.submissions.adapters import adapted, is_known
from benchmark.submissions.wire import fingerprint


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(4, 4, 3, 2, 1),
            nn.Flatten(),
            nn.Linear(4 * 16, 3),
        ]
        return nn.Sequential(*layers).eval()


class CamOfTheForm:
    """As pytorch-grad-cam's: made of a model and layers, hooks them, clears the weights' gradients, calls `backward`
    and gives NumPy's maps at the images' size."""

    def __init__(self, model, target_layers, reshape_transform=None) -> None:
        self.model, self.target_layers, self.taken, self.gradients = model.eval(), target_layers, [], []
        self.handle = target_layers[0].register_forward_hook(self.take)
        self.activations_and_grads = self

    def take(self, layer, given, output) -> None:
        self.taken.append(output.detach())
        if output.requires_grad:
            output.register_hook(self.gradients.append)

    def release(self) -> None:
        self.handle.remove()

    def __call__(self, input_tensor, targets, aug_smooth=False) -> np.ndarray:
        output = self.model(input_tensor)
        self.model.zero_grad()
        sum(target(row) for target, row in zip(targets, output, strict=True)).backward(retain_graph=True)
        cam = (self.gradients[-1].mean((2, 3), keepdim=True) * self.taken[-1]).sum(1).relu()
        return nn.functional.interpolate(cam[:, None], input_tensor.shape[2:])[:, 0].detach().numpy()


@pytest.fixture
def batch():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1])


def test_a_class_of_captum_explains_whatever_model_it_is_asked_about(batch):
    method = adapted(LayerGradCam, layer="0")
    for seed in (1, 2):
        model = network(seed)
        before = fingerprint(model)
        expected = LayerGradCam(model, model[0]).attribute(batch[0], target=batch[1])
        torch.testing.assert_close(method(model, *batch), min_max(expected.sum(1).relu()).detach())
        assert fingerprint(model) == before
    assert (method.name, method.differentiable, method.stochastic) == ("layer_grad_cam_of_captum", False, False)
    assert adapted(LayerGradCam)(model, *batch).shape == (3, 4, 4)  # the architecture's own target layer


def test_an_attribution_at_the_images_is_summed_by_size(batch):
    model = network(1)
    images = batch[0].clone().requires_grad_()
    logits = model(images).gather(1, batch[1][:, None]).sum()
    expected = min_max(torch.autograd.grad(logits, images)[0].abs().sum(1))
    torch.testing.assert_close(adapted(Saliency)(model, *batch), expected)
    assert adapted(Saliency, name="mine").name == "mine"


@pytest.mark.parametrize(
    "make",
    [
        lambda model: IntegratedGradients(model),
        lambda model: LayerGradCam(model, model[2]),
        lambda model: GuidedGradCam(model, model[2]),
        lambda model: NoiseTunnel(Saliency(model)),
        lambda model: NoiseTunnel(LayerGradCam(model, model[2])),
    ],
)
def test_an_instance_of_captum_moves_to_the_model_that_it_is_asked_about(batch, make):
    first, second = network(1), network(2)
    before, method = fingerprint(first), adapted(make(first))
    for model in (second, first):
        torch.manual_seed(0)
        got = method(model, *batch)
        torch.manual_seed(0)
        values = make(model).attribute(batch[0], target=batch[1])
        layer = values.shape[-1] == 4  # and not 8, as the images
        torch.testing.assert_close(got, min_max((values if layer else values.abs()).sum(1).relu()).detach())
    assert fingerprint(first) == before


class Flat(nn.Sequential):
    """Of modules that Captum's LRP has a rule for, among which nn.Flatten is not."""

    def forward(self, images):
        return super().forward(images).flatten(1)


@pytest.mark.parametrize(("method", "layer"), [(LRP, None), (LayerLRP, "0"), (LayerDeepLift, "0")])
def test_what_captum_leaves_on_the_modules_is_taken_off(batch, method, layer):
    model = Flat(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    before = [set(vars(module)) for module in model.modules()]
    adapted(method, layer=layer)(model, *batch)
    assert [set(vars(module)) for module in model.modules()] == before


@pytest.mark.parametrize("method", [CamOfTheForm, lambda: CamOfTheForm(network(5), [network(5)[0]])])
def test_a_cam_of_the_other_form_is_asked_for_the_logit_of_each_image(batch, method):
    model = network(3)
    if not isinstance(method, type):
        old = network(5)
        method = CamOfTheForm(old, [old[0]])
        method.release()
    model[3].train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = fingerprint(model)
    wrapped = adapted(method, layer="0" if isinstance(method, type) else None)
    maps = wrapped(model, *batch)
    assert fingerprint(model) == before
    assert model[0].weight.grad.eq(1).all()
    assert model[0].bias.grad is None
    with torch.no_grad():  # and of weights that need no gradient
        torch.testing.assert_close(wrapped(network(3).requires_grad_(False), *batch), maps)
    features = model[0](batch[0])
    logits = model[1:](features)
    [gradient] = torch.autograd.grad(logits.gather(1, batch[1][:, None]).sum(), features)
    expected = min_max((gradient.mean((2, 3), keepdim=True) * features).sum(1).relu())
    torch.testing.assert_close(maps, expected.detach())
    assert wrapped.name.startswith("cam_of_the_form_of_")


def test_a_function_may_give_numpys_maps_of_one_channel(batch):
    def brightness(model, images, targets):
        return images.sum(1, keepdim=True).numpy()

    brightness.stochastic = True
    method = adapted(brightness)
    torch.testing.assert_close(method(network(1), *batch), min_max(batch[0].sum(1)))
    assert (method.stochastic, method.differentiable) == (True, False)


def test_what_is_known_and_what_is_not():
    assert is_known(Saliency)
    assert is_known(CamOfTheForm)
    assert not is_known(network)
    assert not is_known(nn.Linear)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: adapted(Saliency, layer="0"), r"^Saliency explains at the images: it takes no layer \(got '0'\)$"),
        (lambda: adapted(lambda m, i, t: i, layer="0"), r"^a function takes no layer \(got '0'\)$"),
        (
            lambda: adapted(nn.Linear),
            r"^a method must be Captum's, of pytorch-grad-cam's form, or a function \(got Linear\)$",
        ),
        (lambda: adapted(LayerGradCam, layer="9")(network(1), *[torch.zeros(1, 3, 8, 8)] * 2), r"^unknown layer '9': "),
        (
            lambda: adapted(Saliency(lambda x: x))(network(1), *[torch.zeros(1, 3, 8, 8)] * 2),
            r"^Saliency must explain a ",
        ),
    ],
)
def test_what_cannot_be_adapted_is_told_in_one_line(ask, message):
    with pytest.raises(UserError, match=message):
        ask()


def test_the_documented_example_explains_as_captum_does(batch):
    text = (Path(benchmark.__file__).parent.parent / "docs" / "submitting.md").read_text()
    [code] = re.findall(r"```python\n(# mine\.py.*?)```", text, re.DOTALL)
    space: dict = {}
    exec(code, space)
    model = network(1)
    with torch.no_grad():
        values = Occlusion(model).attribute(batch[0], (3, 8, 8), (3, 4, 4), target=batch[1])
        torch.testing.assert_close(space["occluded"](model, *batch), min_max(values.abs().sum(1)))
        torch.testing.assert_close(space["brightness"](model, *batch), min_max(batch[0].sum(1)))
    assert [space[name].name for name in ("occluded", "brightness")] == ["occlusion_of_captum", "brightness"]

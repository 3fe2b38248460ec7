"""What comes in and out at the public door of every interpreter: images, batches, outputs of models."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from nets import Before
from test_targets import CHEAPER, Net, net_for
from torch import Tensor, nn

from attacks.errors import UserError
from benchmark import interpreters

TWINS = ("lrp_", "feature_", "random", "centre_", "sobel", "input_m", "grad_cam_c", "simple_grad_c", "occlusion_c")
EACH = [name for name in interpreters.INTERPRETERS if name == "lrp_t" or not name.startswith(TWINS)]  # one of a kind
each_interpreter = pytest.mark.parametrize("name", EACH)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Giving(nn.Module):
    """A model whose logits are given as `form` makes them."""

    def __init__(self, net, form):
        super().__init__()
        self.net, self.form = net, form

    def forward(self, x):
        return self.form(self.net(x))


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


@dataclass
class Unnamed:
    loss: Tensor | None
    scores: Tensor


class Named(NamedTuple):
    logits: Tensor
    aux_logits: Tensor | None


class Foreign(OrderedDict):
    """As a library's output of models: a dictionary with attributes."""

    def __getattr__(self, name):
        return self[name]


FORMS = {
    "tuple of one": lambda z: (z,),
    "list": lambda z: [z, None],
    "tuple with a vector": lambda z: (z[:, 0], z),
    "dictionary": lambda z: {"out": z},
    "dictionary with features": lambda z: {"features": z + z, "logits": z},
    "dataclass": lambda z: Output(z),
    "dataclass that names no logits": lambda z: Unnamed(None, z),
    "named tuple": lambda z: Named(z, None),
    "nested": lambda z: ((z, "text"), {"count": 3}),
    "ordered dictionary": lambda z: Foreign(logits=z, hidden=(z + z, z + z)),
}
NONE = {
    "two tensors": (lambda z: (z, z * 2), r"tuple with 2 of them"),
    "features and no name": (lambda z: {"a": z, "b": z + z}, "dict with 2 of them"),
    "nothing": (lambda z: None, "NoneType with 0"),
    "vectors": (lambda z: (z[:, 0],), "tuple with 0"),
    "logits of another shape": (lambda z: {"logits": z[:, 0]}, "dict with 0"),
    "one vector": (lambda z: z[:, 0], r"got \(2,\)|got \(4,\)|got \(1,\)|got \("),
    "a map of logits": (lambda z: z[:, :, None, None], r"3, 1, 1\)"),
}


@pytest.fixture
def setting(request):
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    return net_for(params.get("name", ""))


def made(name):
    return interpreters.create(name, **CHEAPER.get(name, {}))


@each_interpreter
@pytest.mark.parametrize("form", FORMS)
def test_the_one_tensor_of_logits_is_explained_wherever_it_is(name, form, setting):
    net, images = setting
    expected = made(name).with_logits(net, images, [0, 2])
    model = Giving(net, FORMS[form])
    if name == "captum_lrp" and form in ("tuple with a vector", "dictionary with features", "ordered dictionary"):
        return  # it sees no operation outside of modules, and says so
    got = made(name).with_logits(model, images, [0, 2])
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert not model._forward_hooks


@each_interpreter
@pytest.mark.parametrize("form", NONE)
def test_an_output_without_one_tensor_of_logits_is_one_clear_line(name, form, setting):
    net, images = setting
    function, message = NONE[form]
    model = Giving(net, function)
    with pytest.raises(UserError, match=rf"model must give logits \(N, classes\), .*{message}|Captum's LRP") as caught:
        made(name)(model, images, 0)
    assert "\n" not in str(caught.value)
    assert not model._forward_hooks


@each_interpreter
def test_no_images_have_no_maps(name, setting):
    net, images = setting
    maps = made(name)(net, images, 0)
    for call, shape in ((made(name), maps.shape), (made(name).attribute, made(name).attribute(net, images, 0).shape)):
        assert call(net, images[:0], []).shape == (0, *shape[1:])
    logits, none = made(name).with_logits(net, images[:0], torch.zeros(0, dtype=torch.long))
    assert (logits.shape, none.shape) == ((0, 3), (0, *maps.shape[1:]))


IMAGES = {
    "bytes": (lambda x: (20 * x.abs()).byte(), "must be floating point, .*got uint8"),
    "integers": (lambda x: x.long(), "must be floating point, .*got int64"),
    "booleans": (lambda x: x > 0, "must be floating point, .*got bool"),
    "complex": (lambda x: x.cfloat(), "must be floating point, .*got complex64"),
    "NaN": (lambda x: torch.where(x == x.max(), torch.nan, x), "must be finite"),
    "infinite": (lambda x: torch.where(x == x.max(), -torch.inf, x), "must be finite"),
    "infinite, both ways": (lambda x: x / 0, "must be finite"),
    "double": (lambda x: x.double(), r"of the model's type, float32 .got float64"),
    "half": (lambda x: x.half(), r"of the model's type, float32 .got float16|needs float32 or float64 .got float16"),
    "elsewhere": (lambda x: x.to("meta"), "must have values"),
    "an array": (lambda x: x.numpy(), "must be a tensor .*got ndarray"),
    "one image": (lambda x: x[0], r"must be \(N, C, H, W\)"),
}


@each_interpreter
@pytest.mark.parametrize("form", IMAGES)
def test_images_that_cannot_be_explained_are_one_clear_line(name, form, setting):
    net, images = setting
    function, message = IMAGES[form]
    if name in interpreters.INTERPRETERS and form == "half" and interpreters.kind(name).control:
        message += "|model's type"
    with pytest.raises(UserError, match=message) as caught:
        made(name)(net, function(images), 0)
    assert "\n" not in str(caught.value)


@each_interpreter
def test_a_model_elsewhere_is_one_clear_line(name, setting):
    with pytest.raises(UserError, match=r"must be on the model's device, meta .got cpu"):
        made(name)(Net().to("meta"), setting[1], 0)


@each_interpreter
def test_what_is_no_module_is_one_clear_line(name, setting):
    with pytest.raises(UserError, match=r"must be a torch\.nn\.Module .got function"):
        made(name)(lambda x: x, setting[1], 0)


def test_large_finite_images_in_half_precision_are_finite():
    """Their sum is not."""
    images = torch.full((1, 3, 8, 8), 6e4, dtype=torch.half)
    assert made("constant")(Giving(nn.Identity(), lambda x: x[:, :, 0, 0]), images, 0).isfinite().all()


BATCHES = {
    "BatchNorm without statistics": nn.BatchNorm2d(3, track_running_stats=False),
    "batch_norm in training": lambda x: nn.functional.batch_norm(x, None, None, training=True),
    "less the mean image": lambda x: x - x.mean(0),
    "divided by the largest": lambda x: x / x.abs().max(),
    "the next image": lambda x: x + 0.5 * torch.cat([x[1:], x[:1]]),
}
ALONE = {
    "BatchNorm": nn.BatchNorm2d(3),
    "InstanceNorm": nn.InstanceNorm2d(3),
    "GroupNorm": nn.GroupNorm(3, 3),
    "LayerNorm": nn.LayerNorm([3, 8, 8]),
    "each less its mean": lambda x: x - x.mean((1, 2, 3), keepdim=True),
    "noise": lambda x: x + 0.5 * torch.randn_like(x),
    "rounding": lambda x: (x + 1e7 * len(x)) - 1e7 * len(x),  # by 1 or 2 in float32, by nothing in float64
}
CALLS = ("simple_grad", "grad_cam", "eigen_cam", "integrated_gradients", "smooth_grad", "occlusion", "lrp_t",
         "adversarial_explanation", "constant", "guided_backprop", "deep_lift", "lrp")  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("mix", BATCHES)
def test_a_map_that_would_depend_on_its_batch_is_refused(name, count, mix, setting):
    net, images = setting
    own = (
        "" if name not in ("guided_backprop", "deep_lift", "lrp") else "|LRP|has no rule|cannot follow|deep_lift's sum"
    )
    with pytest.raises(UserError, match=f"{name} would give an image another map in another batch{own}") as caught:
        made(name)(Before(net, BATCHES[mix]).eval(), images[:count], 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["simple_grad", "grad_cam", "occlusion"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("norm", ALONE)
def test_what_normalises_each_image_is_explained(name, count, norm, setting):
    net, images = setting
    state = torch.get_rng_state()
    model = Before(net, ALONE[norm]).eval()
    assert made(name)(model, images[:count], 0).isfinite().all()
    if norm != "noise":
        assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_is_tried_once_for_a_model(setting):
    net, images = setting
    calls = []
    model = Before(net, lambda x: calls.append(len(x)) or x)
    for _ in range(3):
        made("simple_grad")(model, images, 0)
    assert calls == [2, 2, 1, 2, 2]
    calls.clear()
    for _ in range(2):  # in a loan within a loan as well
        interpreters.create("aggregate", members=["simple_grad"])(model, images, 0)
    assert calls == [2, 2]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("warm", [torch.zeros(1, 3, 8, 8), None])
def test_a_first_call_on_images_that_are_all_alike_hides_no_mixing(count, warm, setting):
    net, images = setting
    images = (images[:1] if warm is None else warm).expand(count, -1, -1, -1)
    images = images + 1e-3 * torch.randn(count, 1, 8, 8)
    with pytest.raises(UserError, match="another map in another batch"):
        made("simple_grad")(Before(net, lambda x: x - 0.5 * x.mean(0)), images, 0)

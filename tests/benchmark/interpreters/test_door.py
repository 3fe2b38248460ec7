"""A model that is lent: what it writes into its images and buffers stays with it, and its errors are told apart."""

import pytest
import torch
from surroundings import default_dtype
from test_targets import CHEAPER, net_for
from torch import nn

from attacks.errors import Refused, UserError
from benchmark import interpreters

each_interpreter = pytest.mark.parametrize("name", interpreters.INTERPRETERS)
MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.4, -0.3, 0.2], [0.5, 0.8, 0.6]))


class Normalising(nn.Module):
    """A network that normalises its images, as one writes it, or in place; then it also counts, averages and caches."""

    def __init__(self, net, in_place):
        super().__init__()
        self.net, self.in_place = net, in_place
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(3))
        self.register_buffer("last", torch.zeros(3, 8, 8))

    def forward(self, x):
        if not self.in_place:
            return self.net((x - MEAN) / STD)
        x.sub_(MEAN)
        x /= STD
        self.count += 1
        self.average.mul_(0.9).add_(x.detach().mean((0, 2, 3)))
        self.last = x[0].detach()
        return self.net(x)


@each_interpreter
def test_what_the_model_writes_into_stays_as_it_was(name):
    net, images = net_for(name)
    given, made = images.clone(), interpreters.create(name, **CHEAPER.get(name, {}))
    pure, writing = (Normalising(net, in_place).eval() for in_place in (False, True))
    if name == "captum_lrp":
        with pytest.raises(Refused):
            made.attribute(writing, given, [0, 2])
    else:
        torch.testing.assert_close(made.attribute(writing, given, [0, 2]), made.attribute(pure, images, [0, 2]))
    assert torch.equal(given, images)
    for (label, buffer), (_, before) in zip(writing.named_buffers(), pure.named_buffers(), strict=True):
        assert torch.equal(buffer, before), label


class Hooked(nn.Module):
    """A network that keeps a gradient of its own, and so cannot run without gradients."""

    def __init__(self, net):
        super().__init__()
        self.net, self.kept = net, []

    def forward(self, x):
        logits = self.net(x)
        logits.retain_grad()
        logits.register_hook(self.kept.append)
        return logits


@pytest.mark.parametrize("name", ["lrp", "grad_cam", "guided_backprop", "deep_lift", "smooth_grad", "simple_grad"])
def test_a_model_that_asks_for_its_gradients_is_explained_with_them(name):
    net, images = net_for(name)
    made = interpreters.create(name, **CHEAPER.get(name, {}))
    torch.testing.assert_close(made.attribute(Hooked(net), images, 1), made.attribute(net, images, 1))


@pytest.mark.parametrize("name", ["lrp", "sobel"])
def test_so_it_is_refused_where_there_are_none(name):
    net, images = net_for(name)
    with torch.no_grad(), pytest.raises(Refused, match=f"{name} runs the model without gradients, which its forward"):
        interpreters.create(name).attribute(Hooked(net), images, 1)


class OfTwo(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.view(2, 3, 8, 8))


@pytest.mark.parametrize("name", ["lrp", "deep_lift", "smooth_grad", "occlusion"])
def test_a_model_that_fails_in_the_method_alone_is_refused_in_one_line(name):
    net, images = net_for(name)
    with pytest.raises(
        Refused, match=f"{name} cannot explain this model, which runs on these images.*RuntimeError"
    ) as e:
        interpreters.create(name, **CHEAPER.get(name, {})).attribute(OfTwo(net), images, 1)
    assert "\n" not in str(e.value)


class ByViews(nn.Module):
    """A network that runs without gradients alone: autograd allows no write into the views of a split."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        for part in (x := x * 1).split(1, 1):
            part.mul_(2)
        return self.net(x)


@pytest.mark.parametrize("name", ["simple_grad", "grad_cam", "guided_backprop", "deep_lift", "smooth_grad"])
def test_so_is_one_that_runs_without_gradients_alone(name):
    net, images = net_for(name)
    assert ByViews(net).requires_grad_(False)(images).isfinite().all()
    with pytest.raises(Refused, match=r"cannot explain this model, which runs on these images.*is being modified"):
        interpreters.create(name, **CHEAPER.get(name, {})).attribute(ByViews(net), images, 1)


class Remembering(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        self.register_buffer("last", x.detach())
        return self.net(x)


@pytest.mark.parametrize("name", ["simple_grad", "lrp", "occlusion", "deep_lift"])
def test_a_buffer_that_the_model_makes_stays_with_it(name):
    net, images = net_for(name)
    model = Remembering(net)
    interpreters.create(name, **CHEAPER.get(name, {})).attribute(model, images, 1)
    assert not list(model.buffers())


def test_what_fails_in_the_model_alone_is_its_own_error():
    net, images = net_for("lrp")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        interpreters.create("lrp").attribute(net, images[..., :4], 1)


@pytest.mark.parametrize("name", ["simple_grad", "occlusion", "grad_cam"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_model_that_writes_into_its_images_is_refused(name):
    net, images = net_for(name)
    scripted = torch.jit.script(nn.Sequential(nn.ReLU(inplace=True), net))
    given = images.clone()
    with pytest.raises(ValueError, match=r"in place|layers of a scripted|in-place"):
        interpreters.create(name, **CHEAPER.get(name, {})).attribute(scripted, given, 1)
    assert torch.equal(given, images)


@pytest.mark.parametrize("name", ["simple_grad", "lrp", "occlusion", "deep_lift", "sobel"])
def test_weights_that_a_first_run_would_draw_are_refused(name):
    net, images = net_for(name)
    net.head = nn.LazyLinear(3)
    with pytest.raises(UserError, match=r"no weights at 'head\.weight' yet, which is lazy"):
        interpreters.create(name, **CHEAPER.get(name, {})).attribute(net, images, 1)
    assert isinstance(net.head, nn.LazyLinear)


@pytest.mark.parametrize("around", [torch.float64, torch.float16, torch.bfloat16, "meta"], ids=str)
@pytest.mark.parametrize("name", ["lrp", "smooth_grad", "gradient_shap", "kernel_shap", "random", "grad_cam"])
def test_the_default_type_and_device_change_no_map(name, around):
    net, images = net_for(name)
    made = interpreters.create(name, **CHEAPER.get(name, {}))
    expected = made.attribute(net, images, [0, 2])
    with torch.device(around) if around == "meta" else default_dtype(around):
        got = made.attribute(net, images, [0, 2])
        if around != "meta":
            assert torch.get_default_dtype() == around
    assert torch.equal(got, expected)
    assert got.dtype == expected.dtype


def test_what_a_model_makes_has_the_callers_type():
    net, images = net_for("simple_grad")
    seen = []
    net.register_forward_pre_hook(lambda *_: seen.append(torch.ones(1).dtype))
    with default_dtype(torch.float64):
        interpreters.create("simple_grad").attribute(net, images, 1)
    assert set(seen) == {torch.float64}

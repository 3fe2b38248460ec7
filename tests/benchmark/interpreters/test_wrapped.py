"""Wrapped models: the map of the model inside, or one line; and the model is given back as it was."""

import contextlib
import copy

import pytest
import torch
from nets import ATTENTION, Tokens
from test_targets import CHEAPER, Net, net_for
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from attacks.errors import UserError
from benchmark import interpreters

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
TWINS = ("lrp_", "feature_", "random", "centre_", "sobel", "input_m", "grad_cam_c", "simple_grad_c", "occlusion_c")
EACH = [name for name in interpreters.INTERPRETERS if name == "lrp_t" or not name.startswith(TWINS)]  # one of a kind
each_interpreter = pytest.mark.parametrize("name", EACH)
TRACES = ("lrp", "attn_lrp", "cp_lrp", "captum_lrp", "guided", "deconvolution", "deep_lift", "aggregate", "attention",
          "generic", "transformer_")  # of those that read modules or operations  # fmt: skip
LAYERED = ("grad_cam", "layer_cam", "eigen_cam", "simple_grad_t")


class Halved(nn.Module):
    """A parametrisation."""

    def forward(self, weight):
        return weight / 2


class Autocast(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.module(x)


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def compiled(net):
    return torch.compile(net, backend="eager")


def compiled_in_place(net):
    net.compile(backend="eager")
    return net


def compiled_within(net):
    net.last = torch.compile(net.last, backend="eager")
    return net


def parametrised(net):
    parametrize.register_parametrization(net.last, "weight", Halved())
    with torch.no_grad():
        net.last.parametrizations.weight.original.mul_(2)
    return net


def normed(net):
    return nn.utils.weight_norm(net.last) and net


WRAPPED = {
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "compiled within": compiled_within,
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "both": lambda net: AveragedModel(nn.DataParallel(net)),
    "a wrapper of one's own": Wrapper,
    "parametrised": parametrised,
    "weight_norm": normed,
}
SCRIPTS = {
    "traced": lambda net, x: torch.jit.trace(net, x, check_trace=False),
    "scripted": lambda net, x: torch.jit.script(net),
    "frozen": lambda net, x: torch.jit.freeze(torch.jit.script(net)),
}
MODES = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def attribution(name, model, images):
    got = interpreters.create(name, **CHEAPER.get(name, {})).attribute(model, images, [0, 2]).detach()
    assert got.isfinite().all()
    return got


def state(model):
    return [(type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]


@each_interpreter
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_a_wrapped_model_has_the_map_of_the_model(name, wrapper):
    model, images = net_for(name)
    wrapped = WRAPPED[wrapper](copy.deepcopy(model))
    before = state(wrapped)
    if name == "captum_lrp" and wrapper in ("parametrised",):
        with pytest.raises(UserError, match="has no rule for Halved"):
            attribution(name, wrapped, images)
    else:
        torch.testing.assert_close(attribution(name, wrapped, images), attribution(name, model, images))
    assert state(wrapped) == before


@each_interpreter
@pytest.mark.parametrize("mode", MODES)
def test_the_caller_may_be_in_any_mode(name, mode):
    model, images = net_for(name)
    with MODES[mode]():
        got = attribution(name, model, images.clone())
    torch.testing.assert_close(got, attribution(name, model, images))


@each_interpreter
def test_what_is_made_in_inference_mode_cannot_be_differentiated(name):
    with torch.inference_mode():
        model, images = net_for(name)
    with pytest.raises(UserError, match=r"made in torch\.inference_mode"):
        attribution(name, model, images)
    torch.testing.assert_close(attribution(name, net_for(name)[0], images), attribution(name, *net_for(name)))


@each_interpreter
@pytest.mark.parametrize("how", SCRIPTS)
def test_scripted_and_traced_models_have_the_same_map_or_are_refused(name, how):
    model, images = net_for(name)
    scripted = SCRIPTS[how](model, images)
    if name.startswith((*TRACES, *LAYERED)):
        with pytest.raises(UserError, match=r"its source|has no rule for") as caught:
            attribution(name, scripted, images)
        assert "\n" not in str(caught.value)
    else:
        torch.testing.assert_close(attribution(name, scripted, images), attribution(name, model, images))


@each_interpreter
def test_a_graph_module_has_no_default_layer_but_the_same_map(name):
    model, images = net_for(name)
    graph = torch.fx.symbolic_trace(model)
    options = {}
    if name == "aggregate" or "layer" in interpreters.kind(name).__dataclass_fields__:
        with pytest.raises(UserError, match="blocks have lost their classes"):
            attribution(name, graph, images)
        if name == "aggregate":  # its members are asked at their default layers
            return
        options = {"layer": "last"}
    made = interpreters.create(name, **CHEAPER.get(name, {}), **options)
    torch.testing.assert_close(made.attribute(graph, images, [0, 2]), made.attribute(model, images, [0, 2]))


@each_interpreter
def test_autocast_within_the_model_is_near_or_refused(name):
    """At most a tenth of the map's mass moves: eight bits of precision, and no pooling whose winner they change."""
    model, images = net_for(name)
    model.pool = nn.AvgPool2d(2)
    with contextlib.suppress(UserError):
        got, expected = attribution(name, Autocast(model), images).float(), attribution(name, model, images)
        assert name == "var_grad" or (got - expected).abs().sum() < 0.1 * expected.abs().sum()


@pytest.mark.parametrize("layer", ["module.last", "_orig_mod.last", "last"])
def test_a_layer_may_be_named_as_in_its_wrapper(layer):
    model, images = net_for("")
    expected = interpreters.create("grad_cam", layer="last")(model, images, 0)
    got = interpreters.create("grad_cam", layer=layer)(nn.DataParallel(model), images, 0)
    torch.testing.assert_close(got, expected)


@each_interpreter
def test_a_transform_of_torch_func_is_refused(name):
    model, images = net_for(name)
    made = interpreters.create(name, **CHEAPER.get(name, {}))
    for transform in (torch.func.vmap(lambda x: made(model, x[None], 0)),
                      torch.func.grad(lambda x: made(model, x, 0).sum())):  # fmt: skip
        with pytest.raises(UserError, match=r"outside of torch\.func's transforms"):
            transform(images)


class Inner(Net):
    """`run` calls a part of the network on the map of its first convolution."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, x):
        h = self.relus[1](self.run(self.last, self.relus[0](self.first(x))))
        return self.head(torch.flatten(self.pool(h), 1))


class InnerTokens(Tokens):
    """`run` calls the second attention."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def mixed(self, t):
        return self.run(self.mixer, t)


def without_gradient(part, h):
    with torch.no_grad():
        return part(h)


def in_inference_mode(part, h):
    with torch.inference_mode():
        part(h)
    return part(h)


def by_vmap(part, h):
    return torch.func.vmap(lambda image: part(image[None])[0])(h)


def by_functional_call(part, h):
    return torch.func.functional_call(part, dict(part.named_parameters()), (h,))


@each_interpreter
@pytest.mark.parametrize("run", [without_gradient, in_inference_mode, by_vmap, by_functional_call])
def test_a_part_that_runs_in_another_way_has_the_same_map_or_is_refused(name, run):
    model, images = net_for(name)
    inner = (InnerTokens if name in ATTENTION else Inner)(run).eval()
    inner.load_state_dict(model.state_dict())
    try:
        got = attribution(name, inner, images)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        torch.testing.assert_close(got, attribution(name, model, images))


@pytest.mark.parametrize("name", ["lrp", "simple_grad", "occlusion"])
def test_an_exported_model_is_one_line_and_given_back(name):
    net, images = net_for(name)
    model = torch.export.export(net, (images,)).module()
    with pytest.raises(UserError, match=r"^GraphModule cannot be put in eval mode \(got: .*\); allowed: the module as"):
        attribution(name, model, images)
    assert model.training


class OfMore(Wrapper):
    def forward(self, x, mask):
        return self.module(x * mask)


class ByKeyword(Wrapper):
    def forward(self, *, pixel_values):
        return self.module(pixel_values)


@pytest.mark.parametrize("name", ["lrp", "grad_cam", "simple_grad", "occlusion"])
@pytest.mark.parametrize(
    ("form", "lack"), [(OfMore, "missing a required argument: 'mask'"), (ByKeyword, "too many posit")]
)
def test_a_model_that_is_not_called_with_images_alone_is_one_line(name, form, lack):
    net, images = net_for(name)
    with pytest.raises(UserError, match=rf"^a model must be called with images alone, .* \(its forward pass: {lack}"):
        attribution(name, form(net), images)


def test_sharded_weights_are_refused():
    model, images = net_for("")
    sharded = type("FullyShardedDataParallel", (Wrapper,), {})(model)
    with pytest.raises(UserError, match="a part of the weights"):
        attribution("simple_grad", sharded, images)


@each_interpreter
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_float32_or_refused(name, dtype):
    model, images = net_for(name)
    model.pool = nn.AvgPool2d(2)  # no winner that rounding changes
    got, refused = None, ""
    try:
        got = attribution(name, copy.deepcopy(model).to(dtype), images.to(dtype)).float()
    except UserError as error:
        refused = str(error)
    if got is None:
        assert "needs float32 or float64" in refused
    else:
        expected = attribution(name, model, images)
        assert (got - expected).abs().sum() < (0.1 if dtype == torch.bfloat16 else 0.02) * expected.abs().sum()

"""What a model is tried for once: gradients that are not derivatives are refused, a model that is random is named."""

import pytest
import torch
import torch.nn.functional as F
from nets import Before
from test_targets import CHEAPER, net_for
from torch import nn

from attacks.errors import Refused
from benchmark import interpreters

GRADIENTS = ("simple_grad", "grad_cam", "guided_backprop", "integrated_gradients", "adversarial_explanation")
OTHERS = ("lrp", "occlusion", "eigen_cam", "sobel")


class Function(torch.autograd.Function):
    """x³ with a derivative of one's own: `power` of x, times 3; its second derivative is right as well, or lost."""

    @staticmethod
    def forward(ctx, x, power, twice):
        ctx.save_for_backward(x)
        ctx.power, ctx.twice = power, twice
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 3 * (x if ctx.twice else x.detach()) ** ctx.power, None, None


def hooked(x):
    h = 1 * x
    if h.requires_grad:
        h.register_hook(lambda g: 2 * g)
    return h


def node_hooked(x):
    h = 1 * x
    if h.requires_grad:
        h.grad_fn.register_prehook(lambda grads: tuple(2 * g for g in grads))
    return h


def logged(x):
    assert x.detach().std() > 0
    assert x.std().item() > 0
    x = 1 * x
    if x.requires_grad:
        x.retain_grad()
        x.register_hook(lambda g: None)
    return x


def unseen(x):
    with torch.no_grad():
        return x.square()


def fused(x):
    """As a network trained for quantisation rounds, its observers at rest."""
    off, on = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long)
    low, high, scale, zero = torch.full((1,), -4.0), torch.full((1,), 3.5), torch.full((1,), 0.5), torch.zeros(1).int()
    return torch.fused_moving_avg_obs_fake_quant(x, off, on, low, high, scale, zero, 0.01, -8, 7, -1)


FALSE = {
    "hook": hooked,
    "hook of a node": node_hooked,
    "reversal": lambda x: Function.apply(x, 0, True),
    "straight through": lambda x: x + ((4 * x).round() / 4 - x).detach(),
    "detached branch": lambda x: x + 0.5 * x.square().detach(),
    "data": lambda x: x + 0.5 * x.square().data,
    "no_grad branch": lambda x: x + 0.5 * unseen(x),
    "a number": lambda x: torch.stack([i * i.mean().item() for i in x]),
    "fake quantised": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.5, 0, -8, 7),
    "fake quantised, observed": fused,
}
TRUE = {
    "right function": (lambda x: Function.apply(x, 2, True), lambda x: x**3),
    "logged": (logged, lambda x: x),
    "straight both ways": (lambda x: x + (x - x).detach(), lambda x: x),
}


def attribution(name, model, images):
    return interpreters.create(name, **CHEAPER.get(name, {})).attribute(model, images, [0, 2]).detach()


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("how", FALSE)
def test_a_gradient_that_is_not_the_derivative_is_refused(name, how):
    net, images = net_for(name)
    for _ in range(2):  # no less the second time
        with torch.no_grad(), pytest.raises(Refused, match=r"derivative of the logits|cannot follow|has no rule") as e:
            attribution(name, Before(net, FALSE[how]), images)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["simple_grad", "grad_cam"])
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("how", TRUE)
def test_what_leaves_the_derivative_as_it_is_is_explained(name, graph, how):
    net, images = net_for(name)
    trap, plain = TRUE[how]
    with torch.set_grad_enabled(graph):
        torch.testing.assert_close(*(attribution(name, Before(net, step), images) for step in (trap, plain)))


@pytest.mark.parametrize("name", OTHERS)
def test_a_method_that_reads_no_gradient_is_right_beside_a_false_one(name):
    net, images = net_for(name)
    with torch.no_grad():
        torch.testing.assert_close(
            attribution(name, Before(net, hooked), images), attribution(name, Before(net, lambda x: 1 * x), images)
        )
    with pytest.raises(Refused, match="derivative") if name in ("lrp", "occlusion") else torch.no_grad():
        attribution(name, Before(net, hooked), images)  # with its graph, in which an attack would meet the hook


def test_a_second_derivative_that_is_lost_is_refused_where_it_is_needed():
    net, images = net_for("simple_grad")
    model = Before(net, lambda x: Function.apply(x, 2, False))
    with torch.no_grad():
        right = attribution("simple_grad", Before(net, lambda x: x**3), images)
        torch.testing.assert_close(attribution("simple_grad", model, images), right)
    with pytest.raises(Refused, match="derivative"):
        attribution("simple_grad", model, images)


@pytest.mark.parametrize("name", ["simple_grad", "smooth_grad", "gradient_shap", "kernel_shap"])
def test_a_model_on_the_cpu_leaves_the_gpus_generators_alone(name, monkeypatch):
    net, images = net_for(name)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail(f"all seeded with {seed}"))
    state = torch.get_rng_state()
    with torch.no_grad():
        attribution(name, Before(net, logged), images)
    assert torch.equal(torch.get_rng_state(), state)


def full(module):
    module.register_full_backward_hook(lambda _, grads, __: tuple(2 * g for g in grads))


def pre(module):
    module.register_full_backward_pre_hook(lambda _, grads: tuple(2 * g for g in grads))


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("hook", [full, pre])
def test_backward_hooks_of_modules_are_set_aside_and_given_back(name, hook):
    net, images = net_for(name)
    expected = attribution(name, net, images)
    module = next(m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    hook(module)
    torch.testing.assert_close(attribution(name, net, images), expected)
    assert len(module._backward_hooks) + len(module._backward_pre_hooks) == 1


def test_a_hook_on_all_modules_is_seen_whenever_it_comes():
    net, images = net_for("simple_grad")
    attribution("simple_grad", net, images)
    handle = nn.modules.module.register_module_full_backward_hook(lambda _, grads, __: tuple(2 * g for g in grads))
    try:
        with pytest.raises(Refused, match="derivative"):
            attribution("simple_grad", net, images)
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_on_a_module_is_seen_whenever_it_comes(kind):
    net, images = net_for("simple_grad")
    attribution("simple_grad", net, images)
    module = next(m for m in net.modules() if isinstance(m, nn.Conv2d))

    def hook(_, args, *output):
        value = output[0] if output else args[0]
        if value.requires_grad:
            value.register_hook(lambda g: 2 * g)

    handle = getattr(module, kind)(hook)
    with pytest.raises(Refused, match="derivative"):
        attribution("simple_grad", net, images)
    handle.remove()
    attribution("simple_grad", net, images)


def test_a_hook_on_the_images_changes_no_map():
    net, images = net_for("simple_grad")
    expected, given = attribution("simple_grad", net, images), images.clone().requires_grad_()
    given.register_hook(lambda g: 2 * g)
    torch.testing.assert_close(attribution("simple_grad", net, given), expected)


@pytest.mark.parametrize("name", ["simple_grad", "lrp", "occlusion", "smooth_grad", "constant"])
@pytest.mark.parametrize("step", [lambda x: F.dropout(x, 0.5, training=True), lambda x: x * (1 + torch.rand(()) / 10)])
def test_a_model_that_is_random_in_eval_mode_is_named(name, step):
    net, images = net_for(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with pytest.warns(UserWarning, match=f"{name} explains one draw of many"):
            attribution(name, Before(net, step), images)


@pytest.mark.parametrize("name", ["simple_grad", "lrp", "occlusion", "smooth_grad", "constant"])
@pytest.mark.parametrize("module", ["", "net"])
def test_a_model_that_puts_itself_in_training_mode_is_refused_and_given_back(name, module):
    net, images = net_for(name)
    model = Before(net, lambda x: model.get_submodule(module).train() and 1 * x).eval()
    which = f"its module '{module}'" if module else "itself"
    with pytest.raises(Refused, match=f"{name} explains a model in eval mode, and this one puts {which}"):
        attribution(name, model, images)
    assert not any(m.training for m in model.modules())

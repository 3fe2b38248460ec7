"""Networks with a trap: the map of the same function written without it, or one line that names what is refused."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from attacks.errors import Refused, UserError
from benchmark import interpreters

TRACING = {
    "lrp": {},
    "lrp_epsilon": {},
    "lrp_t": {"layer": "first"},
    "guided_backprop": {},
    "deconvolution": {},
    "deep_lift": {},
}
every = pytest.mark.parametrize("name", TRACING)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


class Net(nn.Module):
    """conv, ReLU, `middle(self, h)`, ReLU, mean, linear; `middle` is where the trap stands."""

    def __init__(self, middle):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.halved = nn.Conv2d(4, 2, 3, padding=1)
        self.head = nn.Linear(4, 3)
        self.middle = middle

    def forward(self, x):
        h = self.middle(self, F.relu(self.first(x)))
        return self.head(F.relu(h).mean((2, 3)))


def drawn(middle, dtype=torch.double):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Net(middle).to(dtype).eval(), torch.randn(2, 3, 6, 6, dtype=torch.double).to(dtype)


def attribution(name, middle, **options):
    model, images = drawn(middle)
    got = interpreters.create(name, **TRACING[name]).attribute(model, images, torch.tensor([0, 2])).detach()
    assert got.isfinite().all()
    return got


def right_or_refused(name, trap, equivalent):
    """Whether the map is right (True) or refused (False); a wrong map, or any other error, fails the test."""
    expected = attribution(name, equivalent)
    assert expected.abs().max() > 0
    try:
        got = attribution(name, trap)
    except UserError:
        return False
    torch.testing.assert_close(got, expected)
    return True


def second(net, h):
    return F.relu(net.second(h))


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Rectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.relu(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * (ctx.saved_tensors[0] > 0)


class Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad


def traced(module, h):
    return torch.jit.trace(module, torch.randn_like(h), check_trace=False)(h)


@torch.jit.script
def scripted_relu(x: torch.Tensor):
    return torch.relu(x)


def without_gradient(function):
    def run(net, h):
        with torch.no_grad():
            return function(net, h)

    return run


def through_numpy(net, h):
    return torch.from_numpy(np.maximum(net.second(h).detach().numpy(), 0))


UNSEEN = {
    "script": (lambda net, h: scripted_relu(net.second(h)), second),
    "trace": (lambda net, h: traced(nn.Sequential(net.second, nn.ReLU()), h), second),
    "branch": (lambda net, h: net.second(h) + scripted_relu(h), lambda net, h: net.second(h) + F.relu(h)),
    "product": (lambda net, h: h * scripted_relu(h + 1), lambda net, h: F.relu(net.second(h))),
    "cat": (
        lambda net, h: torch.cat([net.halved(h), scripted_relu(net.halved(h))], 1),
        lambda net, h: torch.cat([net.halved(h), F.relu(net.halved(h))], 1),
    ),
    "write": (lambda net, h: torch.zeros_like(h).copy_(scripted_relu(net.second(h))), second),
    "function": (lambda net, h: Rectified.apply(net.second(h)), second),
    "double": (lambda net, h: Double.apply(net.second(h)), lambda net, h: 2 * net.second(h)),
    "same": (lambda net, h: F.relu(Same.apply(net.second(h))), second),
    "checkpoint": (lambda net, h: checkpoint(lambda x: second(net, x), h, use_reentrant=False), second),
    "reentrant": (lambda net, h: checkpoint(lambda x: second(net, x), h, use_reentrant=True), second),
    "no_grad": (without_gradient(second), second),
    "no_grad branch": (
        lambda net, h: net.second(h) + without_gradient(second)(net, h),
        lambda net, h: net.second(h) + F.relu(net.second(h)),
    ),
    "torch.ops": (lambda net, h: torch.ops.aten.relu(net.second(h)), second),
    "overload": (lambda net, h: torch.ops.aten.relu.default(net.second(h)), second),
    "inner product": (lambda net, h: net.second(h) * Double.apply(h).view_as(h), lambda net, h: net.second(h)),
    "numpy": (through_numpy, second),
    "numpy branch": (lambda net, h: h + through_numpy(net, h), lambda net, h: h + second(net, h)),
    "array": (lambda net, h: h + torch.as_tensor(np.asarray(h.detach())), lambda net, h: h + h),
    "list": (lambda net, h: h + torch.tensor(h.tolist(), dtype=h.dtype), lambda net, h: h + h),
    "item": (lambda net, h: h * h.mean().item(), lambda net, h: second(net, h)),
    "float": (lambda net, h: h * float(h.mean()), lambda net, h: second(net, h)),
    "data": (lambda net, h: F.relu(net.second(h).data), second),
    "detach": (lambda net, h: h + second(net, h).detach(), lambda net, h: h + second(net, h)),
    "copy": (lambda net, h: h + copy.copy(second(net, h)), lambda net, h: h + second(net, h)),
    "parameter": (lambda net, h: h + nn.Parameter(second(net, h)), lambda net, h: h + second(net, h)),
    "full_like": (lambda net, h: h * torch.full_like(h, h.mean().detach()), lambda net, h: h * h.mean()),
    "complex": (lambda net, h: torch.complex(h, h).tanh().to(h.dtype), second),
    "dlpack": (lambda net, h: torch.from_dlpack(second(net, h).detach()), second),
}
REFUSED = {"inner product", "item", "float", "product", "numpy", "numpy branch", "array", "list", "script", "trace",
           "branch", "cat", "copy", "parameter", "full_like", "complex"}  # fmt: skip


@every
@pytest.mark.parametrize("trap", UNSEEN)
def test_what_runs_outside_the_trace_is_right_or_refused(name, trap):
    if trap in REFUSED:
        with pytest.raises(UserError):
            attribution(name, UNSEEN[trap][0])
    else:
        right_or_refused(name, *UNSEEN[trap])


@every
@pytest.mark.parametrize("compiled", ["trace", "script", "inner"])
def test_a_compiled_model_is_refused(name, compiled):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double().eval()
    images = torch.randn(2, 3, 6, 6, dtype=torch.double)
    options = {"layer": "0"} if name == "lrp_t" else {}
    if compiled == "inner":
        model[1] = torch.jit.script(model[1])
    else:
        model = torch.jit.script(model) if compiled == "script" else torch.jit.trace(model, images)
    with pytest.raises(UserError, match=r"trace|module"):
        interpreters.create(name, **options).attribute(model, images, torch.tensor([0, 2]))


@every
def test_logits_that_do_not_depend_on_the_image_are_refused(name):
    with pytest.raises(UserError, match="no way from the logits"):
        attribution(name, lambda net, h: torch.zeros_like(h))


@every
def test_an_unseen_branch_without_a_gradient_is_refused(name):
    """Autograd does not show it: it is found to change with the image, by DeepLIFT that its sum is not complete."""
    compiled = without_gradient(lambda net, h: scripted_relu(net.second(h)))
    with pytest.raises(UserError, match=r"outside the trace|where the logit changes"):
        attribution(name, lambda net, h: net.second(h) + compiled(net, h))


def test_a_constant_of_unseen_origin_is_no_trap():
    constant = torch.full((4, 1, 1), 0.5, dtype=torch.double)
    for name in TRACING:
        assert right_or_refused(name, lambda net, h: second(net, h * constant), lambda net, h: second(net, h * 0.5))


def half_written(write):
    def run(net, h):
        y = net.second(h)
        write(y, net.halved(h))
        return y

    return run


def cut(net, h):
    return torch.cat([net.halved(h), net.second(h)[:, 2:]], 1)


def buffered(write):
    def run(net, h):
        out = torch.zeros(len(h), 4, 6, 6, dtype=h.dtype)
        result = write(out, net.second(h))
        return out if result is None else result

    return run


def set_item(index):
    def write(y, value):
        y[index] = value

    return write


def set_part(y, value):
    y[..., :3, :] = value[..., :3, :]
    y[..., 3:, :] = value[..., 3:, :]


def set_masked(y, value):
    mask = torch.arange(4) < 2
    y[:, mask] = value


def set_data(y, value):
    y.data = value


def add_to(y, value):
    y += value


def views(y, value):
    y[:, :2].copy_(value)


def early_view(net, h):
    out = torch.zeros_like(h)
    part = out[:, :2]
    part += net.halved(h)
    return net.second(h) + out


def late_view(net, h):
    out = torch.zeros_like(h)
    part = out[:, :2]
    out += net.second(h)
    return torch.cat([part, out[:, 2:]], 1)


WRITES = {
    "slice": (half_written(set_item((slice(None), slice(0, 2)))), cut),
    "ellipsis": (buffered(set_item(...)), lambda net, h: net.second(h)),
    "rows": (buffered(set_part), lambda net, h: net.second(h)),
    "mask": (half_written(set_masked), cut),
    "list": (half_written(set_item((slice(None), [0, 1]))), cut),
    "view": (half_written(views), cut),
    "data": (buffered(set_data), lambda net, h: net.second(h)),
    "early view": (early_view, lambda net, h: net.second(h) + F.pad(net.halved(h), (0, 0, 0, 0, 0, 2))),
    "late view": (late_view, lambda net, h: net.second(h)),
    "copy_": (buffered(lambda out, b: out.copy_(b)), lambda net, h: net.second(h)),
    "unused copy_": (buffered(lambda out, b: [out.copy_(b), None][1]), lambda net, h: net.second(h)),
    "add_": (buffered(lambda out, b: [out.add_(b), None][1]), lambda net, h: net.second(h)),
    "+=": (buffered(add_to), lambda net, h: net.second(h)),
    "add_ alpha": (buffered(lambda out, b: [out.add_(b, alpha=2), None][1]), lambda net, h: 2 * net.second(h)),
    "sub_": (buffered(lambda out, b: [out.sub_(b), None][1]), lambda net, h: torch.sub(torch.zeros(()), net.second(h))),
    "index_copy_": (half_written(lambda y, b: y.index_copy_(1, torch.tensor([0, 1]), b)), cut),
    "index_add_": (
        buffered(lambda out, b: [out.index_add_(1, torch.arange(4), b), None][1]),
        lambda net, h: net.second(h),
    ),
    "index_put_": (half_written(lambda y, b: y.index_put_((torch.arange(len(y))[:, None], torch.arange(2)), b)), cut),
    "scatter_": (
        half_written(lambda y, b: y.scatter_(1, torch.arange(2).view(1, 2, 1, 1).expand_as(b), b)),
        cut,
    ),
    "scatter_add_": (
        buffered(lambda out, b: [out.scatter_add_(1, torch.arange(4).view(1, 4, 1, 1).expand_as(b), b), None][1]),
        lambda net, h: net.second(h),
    ),
    "masked_fill_": (
        lambda net, h: net.second(h).masked_fill_(torch.eye(6) > 0, 0),
        lambda net, h: net.second(h) * (1 - torch.eye(6)),
    ),
    "masked_fill_ by the image": (
        half_written(lambda y, b: y.masked_fill_(y < 0, 0)),
        lambda net, h: F.relu(net.second(h)),
    ),
    "masked by the image": (half_written(lambda y, b: y.__setitem__(y < 0, 0)), lambda net, h: F.relu(net.second(h))),
    "masked_scatter_": (half_written(lambda y, b: y.masked_scatter_(torch.arange(4).view(4, 1, 1) < 2, b)), cut),
    "fill_": (
        half_written(lambda y, b: y[:, 2:].fill_(0.0)),
        lambda net, h: net.second(h) * torch.tensor([1.0, 1, 0, 0]).double().view(4, 1, 1),
    ),
    "constant": (
        half_written(lambda y, b: y.__setitem__((slice(None), slice(2, 4)), 0.0)),
        lambda net, h: net.second(h) * torch.tensor([1.0, 1, 0, 0]).double().view(4, 1, 1),
    ),
    "zero_": (lambda net, h: h + net.second(h).zero_(), lambda net, h: h + 0),
    "clamp_": (half_written(lambda y, b: y.clamp_(min=0)), lambda net, h: F.relu(net.second(h))),
    "relu_ of a view": (
        half_written(lambda y, b: F.relu_(y[:, :2])),
        lambda net, h: torch.cat([F.relu(net.second(h)[:, :2]), net.second(h)[:, 2:]], 1),
    ),
    "mul_": (half_written(lambda y, b: y.mul_(3)), lambda net, h: 3 * net.second(h)),
    "*=": (half_written(lambda y, b: y.__imul__(3)), lambda net, h: 3 * net.second(h)),
    "out=": (
        buffered(lambda out, b: [torch.add(b, 0, out=out), None][1]),
        lambda net, h: net.second(h),
    ),
    "out= without gradients": (
        without_gradient(buffered(lambda out, b: [torch.relu(b), torch.clamp(b, min=0, out=out)][2:] or None)),
        lambda net, h: F.relu(net.second(h)),
    ),
    "no_grad": (without_gradient(half_written(set_item((slice(None), slice(0, 2))))), cut),
    "foreach": (
        half_written(lambda y, b: torch._foreach_mul_([y], 3)),
        lambda net, h: 3 * net.second(h),
    ),
    "lerp_": (half_written(lambda y, b: y.lerp_(y * 2, 0.5)), lambda net, h: 1.5 * net.second(h)),
    "swap": (half_written(lambda y, b: y.transpose_(2, 3)), lambda net, h: net.second(h).transpose(2, 3)),
}


@every
@pytest.mark.parametrize("trap", WRITES)
def test_writes_in_place_are_right_or_refused(name, trap):
    right_or_refused(name, *WRITES[trap])


@every
@pytest.mark.parametrize("trap", ["slice", "ellipsis", "rows", "mask", "list", "copy_", "add_", "+=", "index_copy_"])
def test_plain_writes_are_right(name, trap):
    assert right_or_refused(name, *WRITES[trap])


TWICE = {
    "mul": lambda net, h: h * h,
    "mul_": lambda net, h: (h + 0).mul_(h),
    "matmul": lambda net, h: torch.matmul(h, h),
    "@": lambda net, h: h @ h.transpose(2, 3),
    "bmm": lambda net, h: torch.bmm(h.flatten(0, 1), h.flatten(0, 1)).view_as(h),
    "einsum": lambda net, h: torch.einsum("nchw,nchw->nchw", h, h),
    "square": lambda net, h: h.square(),
    "pow": lambda net, h: h**2,
    "div": lambda net, h: h / h.sum(1, keepdim=True),
    "div itself": lambda net, h: (h + 1) / (h + 1),
    "linear": lambda net, h: F.linear(h.flatten(0, 2), h.flatten(0, 2)).view(2, 4, 6, -1),
    "conv": lambda net, h: F.conv2d(h, h, padding=3).expand(-1, len(h), -1, -1).repeat(1, 4 // len(h), 1, 1),
    "addcmul": lambda net, h: torch.addcmul(h, h, h),
}


def own_product(net, h):
    h *= h
    return h


OF_TWO = ("mul_", "@")  # of two tensors that depend on the image: LRP has a rule (test_attention.py)


@every
@pytest.mark.parametrize("trap", [*TWICE, "*="])
def test_a_product_of_an_activation_with_itself_is_refused(name, trap):
    if "lrp" in name and trap in OF_TWO:
        assert attribution(name, TWICE[trap]).any()
        return
    with pytest.raises(UserError, match="has no rule for the operation"):
        attribution(name, TWICE.get(trap, own_product))


SUMS = {
    "add": (lambda net, h: torch.add(h, h), lambda net, h: 2 * h),
    "+": (lambda net, h: h + h, lambda net, h: 2 * h),
    "alpha": (lambda net, h: torch.add(h, h, alpha=2), lambda net, h: 3 * h),
    "cat": (
        lambda net, h: torch.cat([net.halved(h)] * 2, 1),
        lambda net, h: torch.cat([net.halved(h), net.halved(h)], 1),
    ),
    "stack": (lambda net, h: torch.stack([h, h]).sum(0), lambda net, h: 2 * h),
    "sub": (lambda net, h: h + (h - h), lambda net, h: h + 0),
    "sum": (lambda net, h: sum([h, h, h]), lambda net, h: 3 * h),
}


@every
@pytest.mark.parametrize("trap", SUMS)
def test_a_sum_of_an_activation_with_itself_is_right_or_refused(name, trap):
    right_or_refused(name, *SUMS[trap])


HALF = [torch.float16, torch.bfloat16]


@every
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_close_to_float32_or_refused(name, dtype):
    model, images = drawn(second, torch.float32)
    interpreter, targets = interpreters.create(name, **TRACING[name]), torch.tensor([0, 2])
    expected = interpreter.attribute(model, images, targets).detach()
    model, images = model.to(dtype), images.to(dtype)
    if name not in ("guided_backprop", "deconvolution"):
        with pytest.raises(
            Refused, match=f"{'LRP' if 'lrp' in name else name} needs float32 or float64.*{str(dtype)[6:]}"
        ):
            interpreter.attribute(model, images, targets)
        return
    got = interpreter.attribute(model, images, targets).detach().float()
    assert (got - expected).norm() < (0.01 if dtype == torch.float16 else 0.1) * expected.norm()


@pytest.mark.parametrize("name", ["lrp", "deep_lift"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_inside_the_network_is_refused(name, dtype):
    model, images = drawn(lambda net, h: second(net, h.to(dtype).to(h.dtype)))
    inner, _ = drawn(lambda net, h: net.second(F.relu(h.to(dtype)).to(h.dtype)))
    for network in (model, inner)[name == "deep_lift" :]:
        with pytest.raises(Refused, match="needs float32"):
            interpreters.create(name).attribute(network, images, torch.tensor([0, 2]))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_guided_grad_cam_in_half_precision_is_refused(dtype):
    model, images = drawn(second, torch.float32)
    with pytest.raises(Refused, match=f"guided_grad_cam needs float32 or float64.*{str(dtype)[6:]}"):
        interpreters.create("guided_grad_cam").attribute(model.to(dtype), images.to(dtype), torch.tensor([0, 2]))

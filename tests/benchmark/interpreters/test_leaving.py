"""Numbers that a forward pass makes of activations: harmless where they are read, refused where they come back."""

import pytest
import torch
import torch.nn.functional as F
from test_traps import TRACING, attribution, drawn, every, second

from attacks.errors import UserError
from benchmark import interpreters

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def seen(read):
    """The network without a trap, which notes on itself what it reads."""

    def run(net, h):
        net.__dict__.setdefault("seen", []).append(read(h))
        return second(net, h)

    return run


def quietly(function):
    def run(*arguments):
        with torch.no_grad():
            return function(*arguments)

    return run


def asserting(net, h):
    assert h.isfinite().all()
    assert h.min().item() > -1
    assert float(h.abs().max()) < 100
    return second(net, h)


def at_once(net, h):
    h.abs_().mean().item()  # of ReLU's output: nothing changes, but there is no rule for abs
    return second(net, h)


HARMLESS = {
    "item": seen(lambda h: h.mean().item()),
    "item without a rule": seen(lambda h: h.norm().item()),
    "float": seen(lambda h: float(h.abs().max())),
    "list": seen(lambda h: h.amax((1, 2, 3)).tolist()),
    "detached": seen(lambda h: h.detach().std().item()),
    "quietly": seen(quietly(lambda h: h.square().sum().item())),
    "text": seen(lambda h: f"{h.mean():.3f} of {h.max()}"),
    "printed": seen(str),
    "assertions": asserting,
    "branch on a tensor": lambda net, h: second(net, h) if h.max() > 0 else h,
    "branch on a number": lambda net, h: second(net, h) if h.max().item() > 0 else h,
    "rounded": lambda net, h: second(net, h * (1 + int(h.mean().item() > 1e3))),
}


def own(h):
    """A number of each image: none hangs on another one's."""
    return h.mean((1, 2, 3))


def back(numbers, h):
    return torch.tensor(numbers, dtype=h.dtype).view(-1, 1, 1, 1)


USED = {
    "factor": lambda net, h: second(net, h * h.mean().item()),
    "small": lambda net, h: second(net, h + 1e-6 * h.mean().item()),
    "list": lambda net, h: second(net, h * back(own(h).tolist(), h)),
    "text": lambda net, h: second(net, h * float(f"{h.mean():.6f}")),
    "printed": lambda net, h: second(net, h * float(repr(h.mean().detach())[7:-22])),
    "whole number": lambda net, h: second(net, h * (int(h.mean() * 1e6) / 1e6)),
    "quietly": quietly(lambda net, h: second(net, h * back(own(h).tolist(), h))),
    "detached": lambda net, h: second(net, h * back(own(h.detach()).tolist(), h)),
    "quiet number": lambda net, h: second(net, h * back(quietly(lambda: own(h).tolist())(), h)),
    "quotient": lambda net, h: second(net, h * (h.mean().item() / h.max().item())),
    "difference": lambda net, h: second(net, h * (h.max().item() - h.abs().max().item() + 1)),
    "lower limit": lambda net, h: second(net, h + max(h.min().item(), 0)),
    "upper limit": lambda net, h: second(net, h + min(h.min().item(), 0)),
    "on the network": lambda net, h: setattr(net, "kept", h.mean().item()) or second(net, h * net.kept),
    "an array": seen(lambda h: h.detach().numpy().mean()),
    "operation without a rule": lambda net, h: second(net, h.abs()),
    "in place without a rule": at_once,
    "in place, in a view": lambda net, h: h[:, :2].abs_().mean().item() and second(net, h),
    "then added to": lambda net, h: second(net, h) + 0 * (lambda t: (1 * t, t.add_(1))[0])(h.abs()),
}


@every
@pytest.mark.parametrize("case", HARMLESS)
def test_what_is_only_read_leaves_the_map_as_it_is(name, case):
    torch.testing.assert_close(attribution(name, HARMLESS[case]), attribution(name, second))


@every
@pytest.mark.parametrize("case", USED)
def test_what_comes_back_is_refused(name, case):
    with pytest.raises(UserError, match=r"cannot follow|has no rule for") as caught:
        attribution(name, USED[case])
    assert "\n" not in str(caught.value)


@every
def test_the_network_is_asked_again_on_a_copy(name):
    """Which keeps nothing of it: one pass of the network itself, no number drawn."""
    model, images = drawn(HARMLESS["item"])
    with torch.random.fork_rng():
        state = torch.get_rng_state()
        interpreters.create(name, **TRACING[name]).attribute(model, images, torch.tensor([0, 2]))
        assert torch.equal(torch.get_rng_state(), state)
    (number,) = model.seen
    run = torch.cat([images, images, 0 * images]) if name == "deep_lift" else images
    assert number == pytest.approx(F.relu(model.first(run)).mean().item())

"""A composite that names the rule of a layer: two-layer nets worked out by hand, reused modules, names of no use."""

import pickle
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from nets import kitchen
from torch import nn

from attacks.errors import UserError
from benchmark import interpreters
from benchmark.interpreters.rules import COMPOSITES, Composite, Epsilon, WSquare, ZBox

FLAT, SQUARE, PLAIN = WSquare(flat=True), WSquare(), Composite(linear=Epsilon(0.0))
TARGET = torch.tensor([0])


def two_layers():
    """x = (1, 2) -> z = (1 1; 2 0) x = (3, 2) -> y = (1 2) z = 7."""
    body = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        body[0].weight.copy_(torch.tensor([[1.0, 1.0], [2.0, 0.0]]))
        body[1].weight.copy_(torch.tensor([[1.0, 2.0]]))
    return nn.Sequential(OrderedDict(flat=nn.Flatten(), body=body))


def relevance(model, composite, name="lrp", **options):
    x = torch.tensor([1.0, 2.0], dtype=torch.double).view(1, 2, 1, 1)
    return interpreters.create(name, composite=composite, **options).attribute(model, x, TARGET).flatten().tolist()


@pytest.mark.parametrize(
    ("first", "names", "expected"),
    [
        (None, {}, [1 + 4, 2]),  # the second layer hands down (3, 4), the first 3 as (1, 2) and 4 as (4, 0)
        (None, {"body.0": FLAT}, [3.5, 3.5]),
        (None, {"body.0": SQUARE}, [1.5 + 4, 1.5]),
        (FLAT, {"body.0": SQUARE}, [1.5 + 4, 1.5]),  # a name comes before `first`,
        (FLAT, {"body.1": FLAT}, [3.5, 3.5]),  # which stays where it was: (3.5, 3.5), each in halves
        (None, {"body.1": FLAT}, [3.5 / 3 + 3.5, 7 / 3]),
        (None, {"body": FLAT}, [3.5, 3.5]),  # both layers
        (None, {"body": FLAT, "body.0": SQUARE}, [1.75 + 3.5, 1.75]),  # the inner name counts,
        (None, {"body.0": SQUARE, "body": FLAT}, [1.75 + 3.5, 1.75]),  # whichever was written first
    ],
)
def test_a_named_layer_takes_its_own_rule(first, names, expected):
    composite = replace(PLAIN, first=first, names=names)
    assert relevance(two_layers(), composite) == pytest.approx(expected, rel=1e-8)


class Stems(nn.Module):
    """Two convolutions side by side, or one that has the channels of both."""

    def __init__(self, joined):
        super().__init__()
        self.joined, self.one, self.other = joined, nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3)
        self.last = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))

    def forward(self, x):
        if not self.joined:
            return self.last(torch.cat([self.one(x), self.other(x)], 1))
        weight, bias = (torch.cat([getattr(c, name) for c in (self.one, self.other)]) for name in ("weight", "bias"))
        return self.last(nn.functional.conv2d(x, weight, bias))


@pytest.mark.parametrize("first", [FLAT, ZBox()])
def test_the_first_rule_holds_for_each_layer_that_reads_the_input(first):
    torch.manual_seed(0)
    model, x = Stems(False).double(), torch.randn(2, 3, 5, 5, dtype=torch.double)
    joined = Stems(True).double()
    joined.load_state_dict(model.state_dict())
    lrp = interpreters.create("lrp", composite=Composite(first=first))
    torch.testing.assert_close(lrp.attribute(model, x, 0), lrp.attribute(joined, x, 0))


def test_a_name_holds_at_every_call_of_its_module():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.other = two_layers().body[0], nn.Linear(2, 1, bias=False).double()
            nn.init.ones_(self.other.weight)

        def forward(self, x):
            return self.other(self.layer(self.layer(x.flatten(1))))  # (1, 2) -> (3, 2) -> (5, 6) -> 11

    assert relevance(Twice(), PLAIN) == pytest.approx([5, 6], rel=1e-8)  # linear: input times gradient, (1, 2) · (5, 3)
    named = relevance(Twice(), replace(PLAIN, names={"layer": SQUARE}))  # (5, 6) -> (2.5 + 6, 2.5) -> and once more
    assert named == pytest.approx([4.25 + 2.5, 4.25], rel=1e-8)


def test_names_reach_convolutions_as_first_does():
    setting = kitchen()
    for base in COMPOSITES.values():
        expected = interpreters.create("lrp", composite=replace(base, first=ZBox())).attribute(*setting)
        named = replace(base, first=None, names={"stem": ZBox()})
        assert torch.equal(interpreters.create("lrp", composite=named).attribute(*setting), expected)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"body.2": FLAT}, "unknown layer 'body.2': did you mean 'body.[01]'"),
        ({"": FLAT}, "unknown layer ''"),
        ({"flat": FLAT}, "composite names module 'flat', in which relevance meets no operation for its rule"),
        ({"body.0": FLAT, "body.1": FLAT, "body": FLAT}, "names module 'body',"),  # all of it is named by itself
    ],
)
def test_a_name_of_no_use_is_an_error(names, message):
    model = two_layers()
    with pytest.raises(UserError, match=message):
        relevance(model, replace(PLAIN, names=names))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_at_a_target_layer_names_count_from_there_on():
    model, images, targets = kitchen()
    attribute = interpreters.create("lrp_t", layer="middle", composite=Composite(names={"middle": ZBox()})).attribute
    plain = interpreters.create("lrp_t", layer="middle").attribute(model, images, targets)
    assert (attribute(model, images, targets) - plain).norm() > 0.01 * plain.norm()
    below = interpreters.create("lrp_t", layer="middle", composite=Composite(names={"stem": ZBox()}))
    with pytest.raises(UserError, match="composite names module 'stem'"):
        below(model, images, targets)


def test_hooks_are_there_for_names_alone_and_go_when_the_model_raises():
    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.hooks, self.fails = two_layers(), [], False

        def forward(self, x):
            self.hooks.append(len(self.inner._forward_pre_hooks) + len(self.inner._forward_hooks))
            if self.fails:
                raise RuntimeError("model")
            return self.inner(x)

    model = Watched()
    relevance(model, PLAIN)
    relevance(model, replace(PLAIN, names={"inner.body.0": FLAT}))
    assert model.hooks == [0, 2]
    model.fails = True
    with pytest.raises(RuntimeError, match="model"):
        relevance(model, replace(PLAIN, names={"inner.body.0": FLAT}))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_a_module_that_raised_runs_no_longer():
    class Raises(nn.Module):
        def forward(self, x):
            raise ValueError

    class Catches(nn.Module):
        def __init__(self):
            super().__init__()
            self.tried, self.inner = Raises(), two_layers()

        def forward(self, x):
            try:
                return self.tried(x)
            except ValueError:
                return self.inner(x)

    with pytest.raises(UserError, match="composite names module 'tried'"):
        relevance(Catches(), replace(PLAIN, names={"tried": FLAT}))


def test_a_composite_with_names_can_be_hashed_and_sent_to_another_process():
    composite = Composite(names={"body": FLAT})
    assert hash(composite) == hash(replace(composite))
    assert pickle.loads(pickle.dumps(composite)) == composite != Composite()

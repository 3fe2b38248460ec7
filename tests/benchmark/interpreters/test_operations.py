"""How relevance passes operations that take no rule: residual sums, BatchNorm, constants; and which forms have none."""

from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attacks.errors import Refused
from benchmark import interpreters
from benchmark.interpreters.rules import Composite, Epsilon


@pytest.mark.parametrize("form", ["positive", "altered"])
def test_residual_sum_is_split_by_positive_parts(form):
    class Sum(nn.Module):
        def forward(self, x):
            return (x[:, :1] + x[:, 1:]).flatten(1)

    x = torch.tensor([[3.0, 1.0], [2.0, -5.0], [-2.0, -6.0], [0.0, 0.0], [-1.0, 4.0]]).double()[:, :, None, None]
    lrp = interpreters.create("lrp", composite=Composite(add=form))
    got = lrp.attribute(Sum(), x, torch.zeros(5, dtype=torch.long))[:, :, 0, 0]
    if form == "positive":
        expected = [[3, 1], [-3, 0], [-4, -4], [0, 0], [0, 3]]  # the third in halves
    else:  # the first branch as the sum: 4 against 1, −3 against −5 (in halves), and so on
        expected = [[4 * 4 / 5, 4 / 5], [-1.5, -1.5], [-4, -4], [0, 0], [3 * 3 / 7, 3 * 4 / 7]]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.double))


def test_batch_norm_passes_or_folds():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2), norm.bias.uniform_(-1, 1), norm.running_mean.uniform_(-1, 1)
    tail = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(3, 2))
    model = nn.Sequential(conv, norm, tail).double().eval()
    x, targets = torch.randn(4, 2, 3, 3, dtype=torch.double), torch.tensor([0, 1, 0, 1])
    fused = nn.Sequential(torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm), tail)
    fold = interpreters.create("lrp", composite="epsilon", batch_norm="fold").attribute(model, x, targets)
    expected = interpreters.create("lrp", composite="epsilon").attribute(fused, x, targets)
    torch.testing.assert_close(fold, expected)
    passed = interpreters.create("lrp", composite="epsilon").attribute(model, x, targets)
    cosine = F.cosine_similarity(passed.flatten(), fold.flatten(), dim=0)
    assert cosine < 0.99, "the two options are different maps"


@pytest.mark.parametrize("units", [4, 5])  # 4: as many as tokens
def test_batch_norm_over_tokens_does_not_fold_into_the_units_of_a_linear_map(units):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm, self.head = nn.Linear(3, units), nn.BatchNorm1d(4), nn.Linear(units, 2)

        def forward(self, x):
            return self.head(self.norm(self.linear(x.flatten(2).mT)).relu().mean(1))

    torch.manual_seed(0)
    model, x = Net().double().eval(), torch.randn(2, 3, 2, 2, dtype=torch.double)
    with torch.no_grad():
        model.norm.weight.uniform_(0.5, 2), model.norm.bias.uniform_(-1, 1), model.norm.running_mean.uniform_(-1, 1)
    exact = Epsilon(1e-12)
    composite = Composite(conv=exact, linear=exact, batch_norm="fold", add="proportional", eps=1e-12)
    got = interpreters.create("lrp", composite=composite).attribute(model, x, 1)
    torch.testing.assert_close(got, interpreters.create("input_x_gradient").attribute(model, x, 1))


class Linear(nn.Module):
    """A linear network with a `form` of its images before it. (N, 3, 4, 4) -> (N, 2)."""

    def __init__(self, form):
        super().__init__()
        self.conv, self.head, self.form = nn.Conv2d(3, 4, 3), nn.Linear(16, 2), form

    def forward(self, x):
        return self.head(self.conv(self.form(x)).flatten(1))


def linear(form):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Linear(form).double().eval(), torch.randn(2, 3, 4, 4, dtype=torch.double)


M = torch.tensor([0.4, 0.5, 0.6]).double().view(1, 3, 1, 1)
SHIFTS = {
    "x - c": lambda x: x - M,
    "c - x": lambda x: M - x,
    "sub": lambda x: torch.sub(M, x, alpha=2),
    "x - 0.5": lambda x: (x - 0.5) / 0.5,
    "1 - x": lambda x: 1 - x,
    "add": lambda x: x.add(M, alpha=2),
    "2 + x": lambda x: 2 + x,
    "in place": lambda x: x.clone().sub_(M).add_(2),
    "places": lambda x: x - torch.arange(16).double().view(4, 4),
}


@pytest.mark.parametrize("name", ["attn_lrp", "cp_lrp"])
@pytest.mark.parametrize("form", SHIFTS)
def test_constants_keep_their_share_in_whatever_form_they_stand_beside_an_activation(name, form):
    """Of a linear network, relevance by the ε-rule is image × gradient."""
    model, images = linear(SHIFTS[form])
    got, expected = (
        interpreters.create(n).attribute(model, images, [0, 1]).detach() for n in (name, "input_x_gradient")
    )
    assert (got - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("name", ["lrp", "lrp_gamma", "lrp_alpha2_beta1", "lrp_z_plus"])
def test_constant_channels_beside_rectified_ones_are_not_taken_for_positive(name):
    """CoordConv: the map is that of the same network whose coordinates are channels of the image."""

    class Coordinates(nn.Module):
        def __init__(self, given):
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(6, 4, 3), nn.Linear(16, 2)
            self.given = given

        def forward(self, x):
            places = x[:, 3:] if self.given else axes.expand(len(x), -1, -1, -1)
            h = torch.cat([F.relu(self.first(x[:, :3])), places], 1)
            return self.head(F.relu(self.second(h)).flatten(1))

    axis = torch.linspace(-1, 1, 4).double()
    axes = torch.stack([axis[:, None].expand(4, 4), axis.expand(4, 4)])[None]
    torch.manual_seed(0)
    model, images = Coordinates(given=False).double().eval(), torch.randn(2, 3, 4, 4).double()
    same = Coordinates(given=True).double().eval()
    same.load_state_dict(model.state_dict())
    made = interpreters.create(name)
    expected = made.attribute(same, torch.cat([images, axes.expand(2, -1, -1, -1)], 1), [0, 1])[:, :3]
    torch.testing.assert_close(made.attribute(model, images, [0, 1]), expected)


Features = namedtuple("Features", "first second")
FORMS = {
    "a named tuple": (lambda x: torch.cat(Features(x[:, :1], x[:, 1:]), 1),
                      lambda x: torch.cat([x[:, :1], x[:, 1:]], 1)),
    "type of another": (lambda x: x + torch.arange(16).double().view(1, 1, 4, 4).repeat(2, 3, 1, 1).to(x),
                        lambda x: x + torch.arange(16).double().view(1, 1, 4, 4).repeat(2, 3, 1, 1)),
    "shape of another": (lambda x: x * x.mean((2, 3), keepdim=True).expand_as(x),
                         lambda x: x * x.mean((2, 3), keepdim=True).expand(2, 3, 4, 4)),
    "a constant's": (lambda x: x - M.expand_as(x).type_as(x), lambda x: x - M.expand(2, 3, 4, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", ["lrp", "attn_lrp", "lrp_contrast"])
@pytest.mark.parametrize("form", FORMS)
def test_another_form_of_the_same_call_has_the_same_map(name, form):
    got, expected = (interpreters.create(name).attribute(*linear(f), [0, 1]).detach() for f in FORMS[form])
    assert expected.any()
    torch.testing.assert_close(got, expected)


W = torch.linspace(-1, 1, 16).double().view(4, 4)
NO_RULE = {
    "weight": lambda x: torch.stack([torch.stack([F.linear(W, c) for c in image]) for image in x]),
    "divisor": lambda x: torch.div(W, x.relu() + 1),
    "rounded": lambda x: torch.div(x, 0.1, rounding_mode="floor"),
    "a norm's weight": lambda x: F.layer_norm(W, (4, 4), x[0, 0]).expand_as(x),
    "no batch": lambda x: torch.stack([F.conv2d(image, torch.ones(3, 3, 1, 1).double()) for image in x]),
    "difference of one": lambda x: x - x,
}


@pytest.mark.parametrize("name", ["lrp", "attn_lrp"])
@pytest.mark.parametrize("form", NO_RULE)
def test_an_activation_in_another_place_than_the_inputs_has_no_rule(name, form):
    with pytest.raises(Refused, match=r"has no rule for the operation|needs a batch in 'conv2d'"):
        interpreters.create(name).attribute(*linear(NO_RULE[form]), [0, 1])


class WrittenOut(nn.Module):
    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.form = nn.Conv2d(2, 5, 3), nn.Linear(5, 3), form

    def forward(self, x):
        return self.form(F.relu(self.conv(x)).mean((2, 3)), 9 * self.head.weight, 9 * self.head.bias)


@pytest.mark.parametrize("name", ["lrp", "lrp_epsilon", "lrp_z_plus", "lrp_alpha2_beta1"])
@pytest.mark.parametrize("form", [
    lambda h, w, b: h @ w.T + b,
    lambda h, w, b: b + torch.mm(h, w.T),
    lambda h, w, b: torch.einsum("nc,dc->nd", h, w) + b,
    lambda h, w, b: F.linear(h, w) + b,
])  # fmt: skip
def test_a_linear_layer_that_is_written_out_keeps_its_biass_share(name, form):
    x = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    got, expected = (
        interpreters.create(name).attribute(WrittenOut(how).double().eval(), x, [0, 1, 2]) for how in (form, F.linear)
    )
    torch.testing.assert_close(got, expected)

"""LRP through group and instance norm, and scores with a mask added as they are multiplied: the gradient form."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_transformers import EXACT, drawn
from torch import nn

from attacks.errors import UserError
from benchmark import interpreters
from benchmark.interpreters import attention
from benchmark.interpreters.rules import Composite


class Net(nn.Module):
    """Convolution, norm, GELU, mean, head; `held`: σ and GELU's f(x)/x are cut off the gradient."""

    def __init__(self, norm, held=False):
        super().__init__()
        self.conv, self.norm, self.head, self.held = nn.Conv2d(3, 4, 2), norm, nn.Linear(4, 3), held

    def forward(self, x):
        y = self.conv(x)
        if not self.held:
            return self.head(F.gelu(self.norm(y)).mean((2, 3)))
        groups = getattr(self.norm, "num_groups", 4)
        parts = y.unflatten(1, (groups, -1))
        centred = parts - parts.mean((2, 3, 4), keepdim=True)
        sigma = (centred.square().mean((2, 3, 4), keepdim=True) + self.norm.eps).sqrt().detach()
        y = (centred / sigma).flatten(1, 2)
        if self.norm.weight is not None:
            y = y * self.norm.weight[:, None, None] + self.norm.bias[:, None, None]
        return self.head((y * (F.gelu(y) / y).detach()).mean((2, 3)))


NORMS = {
    "one group": lambda: nn.GroupNorm(1, 4),
    "two groups": lambda: nn.GroupNorm(2, 4),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True),
    "instance, plain": lambda: nn.InstanceNorm2d(4),
}


@pytest.mark.parametrize("name", NORMS)
def test_the_map_is_that_of_the_gradient_form(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = drawn(Net(NORMS[name]())), torch.randn(2, 3, 5, 4, dtype=torch.double).requires_grad_()
    held = Net(model.norm, held=True).double()
    held.load_state_dict(model.state_dict())
    torch.testing.assert_close(held(images), model(images))
    gradient = torch.autograd.grad(held(images)[:, 1].sum(), images)[0]
    lrp = interpreters.create("lrp", composite=EXACT)
    got = lrp.attribute(model, images.detach(), 1).detach()
    torch.testing.assert_close(got, (images * gradient).detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(lrp.attribute(model, images[:1].detach(), 1).detach(), got[:1])


def test_groups_are_layer_norms_of_their_channels():
    generator = torch.Generator().manual_seed(0)
    x, r = (torch.randn(2, 4, 3, 2, dtype=torch.double, generator=generator) for _ in range(2))
    weight, composite = torch.tensor([1.0, -2.0, 0.5, 3.0]).double(), Composite(eps=0.1)
    output = F.group_norm(x, 2, weight)
    got = attention.grouped(x, output, 2, weight, 1e-5, composite).propagate(r)[0]
    for group in (slice(0, 2), slice(2, 4)):
        part = [t[:, group] for t in (x, output, r)]
        wide = weight[group, None, None].expand(2, 3, 2)
        expected = attention.normalised(*part, (2, 3, 2), wide, 1e-5, True, 0.1)
        torch.testing.assert_close(got[:, group], expected)


def test_running_statistics_make_an_affine_map_as_those_of_batch_norm():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = drawn(Net(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)))
        images = torch.randn(2, 3, 5, 4, dtype=torch.double)
    twin = Net(nn.BatchNorm2d(4)).double().eval()
    twin.load_state_dict(model.state_dict())
    for composite in ("default", replace(EXACT, batch_norm="pass", add="positive")):
        lrp = interpreters.create("lrp", composite=composite)
        torch.testing.assert_close(lrp.attribute(model, images, 0), lrp.attribute(twin, images, 0))


class Masked(nn.Module):
    """Attention of the image's rows under a mask, by torch's function that adds as it multiplies or in two steps."""

    def __init__(self, fused):
        super().__init__()
        self.fused, self.mask = fused, torch.linspace(-1, 1, 16).view(4, 4).double()

    def forward(self, x):
        q, k, v = x.unbind(1)
        fused = torch.baddbmm if self.fused else lambda m, a, b, beta, alpha: (a @ b) * alpha + m * beta
        scores = fused(self.mask, q, k.mT, beta=2, alpha=0.5)
        return (scores.softmax(-1) @ v).flatten(1)


@pytest.mark.parametrize("name", ["attn_lrp", "cp_lrp", "lrp"])
def test_scores_that_are_added_as_they_are_multiplied(name):
    images = torch.randn(2, 3, 4, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    lrp = interpreters.create(name)
    expected = lrp.attribute(Masked(False), images, 1)
    assert expected.any()
    torch.testing.assert_close(lrp.attribute(Masked(True), images, 1), expected)


def test_an_attention_that_gives_its_weights_under_a_mask_has_the_map_of_the_one_that_does_not():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.needed = nn.MultiheadAttention(4, 2, batch_first=True), True

        def forward(self, x):
            t = x.flatten(2)
            return self.inner(t, t, t, attn_mask=torch.eye(3).bool(), need_weights=self.needed)[0].mean(1)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = drawn(Tokens()), torch.randn(2, 3, 2, 2, dtype=torch.double)
    got = interpreters.create("attn_lrp").attribute(model, images, 1)
    model.needed = False
    torch.testing.assert_close(got, interpreters.create("attn_lrp").attribute(model, images, 1), rtol=1e-5, atol=1e-8)


def test_what_depends_on_the_image_in_two_places_of_a_norm_is_refused():
    class Own(nn.Module):
        def forward(self, x):
            return F.group_norm(x, 1, weight=x.mean((0, 2, 3))).flatten(1)

    with pytest.raises(UserError, match="LRP has no rule for the operation 'group_norm'"):
        interpreters.create("lrp").attribute(Own(), torch.randn(1, 3, 2, 2), 0)


class ByItsOwn(Net):
    """Instance norm as adaptive instance norm is written: the BatchNorm of one image with N · C channels."""

    def forward(self, x):
        y = self.conv(x)
        y = F.batch_norm(y.flatten(0, 1)[None], None, None, training=True).view(y.shape)
        return self.head(F.relu(y).mean((2, 3)))


@pytest.mark.parametrize("name", ["lrp", "lrp_heo2019", "attn_lrp", "guided_backprop", "deconvolution", "deep_lift"])
def test_a_batch_norm_by_its_own_statistics_is_refused(name):
    model, images = drawn(ByItsOwn(None)), torch.randn(2, 3, 5, 4, dtype=torch.double)
    with pytest.raises(UserError, match="has no rule for the operation 'batch_norm'"):
        interpreters.create(name).attribute(model, images, 0)

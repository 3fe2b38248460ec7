"""Transformer attribution (Chefer et al. 2021, CVPR): by hand, and by the paper's rules written out for a ViT."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from nets import along_all_parameters, drawn
from torch import nn

from attacks.errors import Refused
from benchmark import interpreters
from benchmark.interpreters import operations


def double(*values):
    return torch.tensor(values, dtype=torch.double)


class One(nn.Module):
    """A class token (1, 2) and the first two channels of a single pixel; A = [[.5, .5], [.25, .75]], values are the
    tokens, a residual sum, and the head [[2, -1], [0, 1]] on the class token."""

    def __init__(self):
        super().__init__()
        self.token, self.scores = double(1, 2), double([0.5, 0.5], [0.25, 0.75]).log()
        self.head = nn.Linear(2, 2, bias=False).double()
        self.head.weight = nn.Parameter(double([2, -1], [0, 1]))

    def forward(self, x):
        t = torch.cat([self.token.expand(len(x), 1, 2), x[:, :2].flatten(2).mT], 1)
        scores = 0 * t.sum(-1, keepdim=True)[:, None] + self.scores
        return self.head((t + (scores.softmax(-1) @ t[:, None])[:, 0])[:, 0])


def test_one_block_by_hand():
    """Patch (3, -1): the class token becomes (1, 2) + (2, .5) = (3, 2.5), the logit 6 - 2.5. z⁺ hands all to the first
    channel, of which the attention has 2/3; A gets half of it, A_0j V_j0 (2/3)/(2·2) = (1/12, 1/4). ∇A = (0, 7)."""
    x = double(3, -1, 9).view(1, 3, 1, 1).expand(2, 3, 1, 1)
    got = interpreters.create("transformer_attribution").attribute(One(), x, 0)
    torch.testing.assert_close(got.flatten(), double(1.75, 1.75), rtol=1e-5, atol=0)


def test_shares_of_a_sum_have_the_sign_of_what_they_share_out_image_by_image():
    a, b, r = double([3, 0], [1, 1]), double([-1, 0], [1, 3]), double([1, 0], [-1, 4])
    first, second = operations._normalised(a, b, a + b, r, 0.0 + 1e-300)
    # 3/2 and -1/2 of 1 become 3/4 and 1/4; of (-1, 4) the shares (-.5, 1) and (-.5, 3) stay
    torch.testing.assert_close(first, double([0.75, 0], [-0.5, 1]))
    torch.testing.assert_close(second, double([0.25, 0], [-0.5, 3]))


EPS = 1e-6


def over(z):
    return z + EPS * (2 * (z >= 0) - 1)


def z_plus(x, weight, r):
    """R_j = Σ_i (x_j w_ij)⁺ / Σ_j' (x_j' w_ij')⁺ R_i."""
    parts = (x[..., None, :] * weight).clamp(min=0)
    return (parts / (parts.sum(-1, keepdim=True) + EPS) * r[..., None]).sum(-2)


def add(a, b, r):
    """Of one image."""
    first, second = (t * r / over(a + b) for t in (a, b))
    whole = first.sum().abs() + second.sum().abs()
    return tuple(t * (t.sum().abs() / whole) * (r.sum() / t.sum()) for t in (first, second))


def block(layer, t):
    """What the block keeps of its tokens (T, C), and the tokens after it."""
    x, mha = layer.ln_1(t), layer.self_attention
    q, k, v = F.linear(x, mha.in_proj_weight, mha.in_proj_bias).unflatten(1, (3, mha.num_heads, -1)).permute(1, 2, 0, 3)
    raw = q / q.shape[-1] ** 0.5 @ k.mT
    a = raw.softmax(-1)
    o = a @ v
    heads = o.transpose(0, 1).flatten(1)
    middle = t + (first := mha.out_proj(heads))
    y = layer.ln_2(middle)
    hidden = F.gelu(layer.mlp[0](y))
    after = middle + (second := layer.mlp[3](hidden))
    return (t, x, q, k, v, raw, a, o, heads, first, middle, y, hidden, second), after


def back(layer, kept, r):
    """The relevance of the attention (heads, T, T) and that of the tokens before the block."""
    t, x, q, k, v, raw, a, o, heads, first, middle, y, hidden, second = kept
    mha = layer.self_attention
    r_middle, r_mlp = add(middle, second, r)
    r_middle = r_middle + z_plus(y, layer.mlp[0].weight, z_plus(hidden, layer.mlp[3].weight, r_mlp))
    r_t, r_heads = add(t, first, r_middle)
    s = z_plus(heads, mha.out_proj.weight, r_heads).unflatten(1, (len(o), -1)).transpose(0, 1) / over(2 * o)
    r_a, r_v = a * (s @ v.mT), v * (a.mT @ s)
    s = r_a / over(2 * raw)
    scale = q.shape[-1] ** -0.5
    r_q, r_k = q * (s @ k) * scale, k * (s.mT @ q) * scale
    qkv = torch.stack([r_q, r_k, r_v]).permute(2, 0, 1, 3).flatten(1)
    return r_a, r_t + z_plus(x, mha.in_proj_weight, qkv)


@pytest.mark.parametrize("target", ["logit", "contrast"])
def test_a_vision_transformer_by_the_rules_written_out(target):
    model, images, targets = drawn("vit")
    got = interpreters.create("transformer_attribution", target=target).attribute(model, images, targets)
    weight = model.heads.head.weight
    weight = weight if target == "logit" else weight - weight.mean(0)
    for image, label, attribution in zip(images, targets, got.detach(), strict=True):
        t = model.conv_proj(image[None]).flatten(2).mT
        t = (torch.cat([model.class_token, t], 1) + model.encoder.pos_embedding)[0]
        kept = []
        for layer in model.encoder.layers:
            parts, t = block(layer, t)
            kept.append(parts)
        x = model.encoder.ln(t)[0]
        gradients = torch.autograd.grad(weight[label] @ x, [parts[6] for parts in kept])
        r = torch.zeros_like(t)
        r[0] = z_plus(x[None], weight, F.one_hot(label, 3).double()[None])[0]
        row = torch.eye(len(t), dtype=torch.double)[0]
        for layer, parts, gradient in zip(reversed(model.encoder.layers), kept[::-1], gradients[::-1], strict=True):
            r_a, r = back(layer, parts, r)
            row = row + row @ (gradient * r_a).clamp(min=0).mean(0)
        torch.testing.assert_close(attribution.flatten(), row[1:].detach(), rtol=1e-6, atol=1e-9)
    assert got.abs().max() > 1e-3


def test_a_module_that_asks_for_its_weights_has_the_same_map():
    model, images, targets = drawn("tokens")
    method = interpreters.create("transformer_attribution")
    expected = method.attribute(model, images, targets)
    inner = model.attention.forward
    model.attention.forward = lambda *args, **kwargs: inner(*args, **(kwargs | {"need_weights": True}))
    torch.testing.assert_close(method.attribute(model, images, targets), expected)


class Encoder(nn.Module):
    """Torch's encoder of four patches; `order`: "N T C", "T N C" or "NT C" outside of attention."""

    def __init__(self, order):
        super().__init__()
        self.order, self.patches = order, nn.Conv2d(3, 8, 2, 2)
        self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 6, batch_first=order != "T N C"), nn.Linear(8, 3)

    def forward(self, x):
        t = self.patches(x).flatten(2).mT
        if self.order == "NT C":
            t = t.flatten(0, 1)
            return self.head(self.layer((t + t.tanh()).unflatten(0, (len(x), -1))).mean(1))
        return self.head(self.layer(t).mean(1) if self.order == "N T C" else self.layer(t.transpose(0, 1)).mean(0))


def encoder(order, count):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Encoder(order).double().eval(), torch.randn(count, 3, 4, 4, dtype=torch.double)


@pytest.mark.parametrize("count", [1, 3, 4])  # 4: as many as tokens
@pytest.mark.parametrize("order", ["N T C", "T N C"])
def test_an_image_has_the_map_that_it_has_alone_where_tokens_come_first_as_well(order, count):
    method, (model, images) = interpreters.create("transformer_attribution"), encoder(order, count)
    alone = torch.cat([method.attribute(encoder("N T C", 1)[0], image, 1) for image in images.split(1)])
    assert alone.abs().max() > 1e-3
    torch.testing.assert_close(method.attribute(model, images, 1), alone)


def test_a_sum_of_tokens_whose_images_are_not_told_apart_is_refused():
    model, images = encoder("NT C", 3)
    with pytest.raises(Refused, match=r"which axis of a sum .* \(got \(12, 8\), images 3\)"):
        interpreters.create("transformer_attribution").attribute(model, images, 1)


@pytest.mark.parametrize("net", ["vit", "swin"])
def test_the_gradient_along_a_change_of_all_parameters_agrees_with_central_differences(net):
    setting = drawn(net)
    maps_of = partial(interpreters.create("transformer_attribution").attribute, *setting)
    got, numeric = along_all_parameters(maps_of, list(setting[0].parameters()), 1e-7)
    assert abs(got) > 1e-2
    assert got.item() == pytest.approx(numeric, rel=1e-5)

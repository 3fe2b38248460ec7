"""LRP through whole networks with attention, norms and gates: the gradient form, central differences, torchvision."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import nn
from torchvision.models.convnext import CNBlock, LayerNorm2d
from torchvision.models.swin_transformer import (
    PatchMerging,
    PatchMergingV2,
    SwinTransformerBlock,
    SwinTransformerBlockV2,
)
from torchvision.ops import SqueezeExcitation

from benchmark import interpreters
from benchmark.interpreters.rules import COMPOSITES, Epsilon

EXACT = replace(COMPOSITES["attn_lrp"], conv=Epsilon(1e-14), linear=Epsilon(1e-14), eps=1e-14)
CONSTANT = replace(EXACT, attention="constant", gate="constant")


class Channels(nn.Module):
    """What a block for (N, h, w, C) makes of (N, C, h, w)."""

    def __init__(self, *blocks):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x):
        return self.blocks(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def drawn(model, seed=0):
    """In float64 and eval mode, with parameters far from those of their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(p + 0.3 * torch.randn(p.shape, generator=generator) * (0.3 if name.endswith("bias") else 1))
        for name, b in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                b.copy_(b + torch.rand(b.shape, generator=generator))
    return model.double().eval()


def vit(**options):
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 12, "num_classes": 3}
    return zoo.VisionTransformer(8, 4, **sizes | options)


def chain(*blocks, width=4):
    return nn.Sequential(nn.Conv2d(3, 4, 2, 2), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))


class Excited(nn.Module):
    """A convolution with BatchNorm, squeeze and excitation, and a residual sum."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU())
        self.gate = SqueezeExcitation(4, 2, scale_activation=nn.Hardsigmoid)

    def forward(self, x):
        return x + self.gate(self.body(x))


NETWORKS = {
    "vit": vit,
    "small vit": lambda: vit(num_layers=1),
    "swin": lambda: chain(Channels(SwinTransformerBlock(4, 2, [2, 2], [1, 1]), PatchMerging(4)), width=8),
    "swin v2": lambda: chain(Channels(SwinTransformerBlockV2(4, 2, [2, 2], [1, 1]), PatchMergingV2(4)), width=8),
    "convnext": lambda: chain(LayerNorm2d(4), CNBlock(4, 0.5, 0.0)),
    "squeeze-excitation": lambda: chain(Excited()),
    "maxvit": lambda: chain(maxvit_layer()),
}


def maxvit_layer():
    return zoo.maxvit.MaxVitLayer(
        4, 4, 0.5, 2, 1, nn.BatchNorm2d, nn.GELU, 2, 2, 0.0, 0.0, 0.0, partition_size=2, grid_size=(4, 4)
    )


def network(name):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return drawn(NETWORKS[name]()), torch.randn(2, 3, 8, 8, dtype=torch.double), torch.tensor([0, 2])


# the gradient form: image ⊙ gradient of a network some of whose gradients are cut or scaled


def slowed(x, factor):
    return x / factor + (x - x / factor).detach()


def norm(x, layer):
    centred = x - x.mean(-1, keepdim=True)
    sigma = (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt().detach()
    return centred / sigma * layer.weight + layer.bias


def gelu(x):
    return x * (F.gelu(x) / x).detach()


def heads(x, layer, constant):
    n, length, width = x.shape
    q, k, v = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).view(n, length, 3, layer.num_heads, -1).unbind(2)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if not constant:
        q, k, v = slowed(q, 4), slowed(k, 4), slowed(v, 2)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    a = scores.softmax(-1)
    a = a.detach() if constant else a
    return layer.out_proj((a @ v).transpose(1, 2).reshape(n, length, width))


def gradient_form(model, images, targets, constant):
    """Logits, and the value of each start (images, class token, positions) times its gradient, summed."""
    starts = [images, model.class_token, model.encoder.pos_embedding]
    starts = [t.detach().requires_grad_() for t in starts]
    images, token, positions = starts
    x = model.conv_proj(images).flatten(2).mT
    x = torch.cat([token.expand(len(x), -1, -1), x], 1) + positions
    for block in model.encoder.layers:
        x = x + heads(norm(x, block.ln_1), block.self_attention, constant)
        y = F.linear(norm(x, block.ln_2), block.mlp[0].weight, block.mlp[0].bias)
        x = x + F.linear(gelu(y), block.mlp[3].weight, block.mlp[3].bias)
    logits = model.heads(norm(x, model.encoder.ln)[:, 0])
    got = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), starts)
    return logits.detach(), [(t * g).detach() for t, g in zip(starts, got, strict=True)]


@pytest.mark.parametrize("constant", [False, True], ids=["attn_lrp", "cp_lrp"])
def test_a_vision_transformer_has_the_map_of_the_gradient_form(constant):
    model, images, targets = network("vit")
    logits, (expected, token, positions) = gradient_form(model, images, targets, constant)
    torch.testing.assert_close(logits, model(images).detach())
    composite = CONSTANT if constant else EXACT
    lrp = interpreters.create("attn_lrp", composite=composite)
    torch.testing.assert_close(lrp.attribute(model, images, targets).detach(), expected, rtol=1e-6, atol=1e-9)
    named = interpreters.create("cp_lrp" if constant else "attn_lrp").attribute(model, images, targets).detach()
    assert (named - expected).norm() < 1e-3 * expected.norm(), "the stabiliser of the named composite is small"
    ends, start = lrp.ends(model, images, targets), logits.gather(1, targets[:, None]).sum()
    assert sum(ends.values()) == pytest.approx(1)
    assert ends["input"] == pytest.approx(float(expected.sum() / start), rel=1e-6)
    assert ends["cat"] == pytest.approx(float(token.sum() / start), rel=1e-6)
    assert ends["add"] == pytest.approx(float(positions.sum() / start), rel=1e-6)
    assert abs(ends["linear"]) > 1e-3


def test_constant_attention_conserves_relevance_without_constants():
    model, images, targets = network("vit")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias") or name in ("class_token", "encoder.pos_embedding"):
                p.zero_()
    starts = model(images).gather(1, targets[:, None])[:, 0].detach()
    got = interpreters.create("cp_lrp", composite=CONSTANT).attribute(model, images, targets).detach()
    torch.testing.assert_close(got.sum((1, 2, 3)), starts, rtol=1e-6, atol=1e-9)
    ends = interpreters.create("attn_lrp", composite=EXACT).ends(model, images, targets)
    assert ends["input"] + ends["softmax"] == pytest.approx(1, rel=1e-6)
    assert abs(ends["softmax"]) > 1e-3, "AttnLRP's softmax does not conserve"


EPSILONS = {  # with stabilisers that a difference quotient can step over
    "lrp": "default",
    "attn_lrp": replace(EXACT, conv=Epsilon(0.01), linear=Epsilon(0.01), eps=0.01),
    "cp_lrp": replace(CONSTANT, conv=Epsilon(0.01), linear=Epsilon(0.01), eps=0.01),
}


@pytest.mark.parametrize(
    ("net", "name"),
    [
        *((net, "attn_lrp") for net in ("swin", "swin v2", "maxvit")),
        *((net, name) for net in ("small vit", "convnext", "squeeze-excitation") for name in EPSILONS),
    ],
)
def test_gradient_by_every_parameter_agrees_with_central_differences(net, name):
    model, images, targets = network(net)
    interpreter = interpreters.create(name, composite=EPSILONS[name])
    shape = interpreter.attribute(model, images, targets).shape
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(shape, dtype=torch.double, generator=generator)

    def function():
        return (interpreter.attribute(model, images, targets) * weights).sum()

    named = dict(model.named_parameters())
    analytic = torch.autograd.grad(function(), list(named.values()), allow_unused=True, materialize_grads=True)
    step, scale = 1e-6, max(float(g.norm()) for g in analytic)
    assert scale > 1e-3
    for (what, parameter), gradient in zip(named.items(), analytic, strict=True):
        direction = torch.randn(parameter.shape, dtype=torch.double, generator=generator)
        values = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * step)
                values.append(function().item())
        numeric = (values[0] - values[1]) / (2 * step)
        size = float(gradient.norm())
        assert float((gradient * direction).sum()) == pytest.approx(
            numeric, rel=1e-5, abs=1e-5 * max(size, 1e-4 * scale)
        ), what


@pytest.mark.parametrize("name", ["lrp", "attn_lrp", "cp_lrp"])
@pytest.mark.parametrize("net", NETWORKS)
def test_a_map_does_not_depend_on_the_batch(net, name):
    model, images, targets = network(net)
    interpreter = interpreters.create(name)
    together = interpreter.attribute(model, images, targets)
    alone = torch.cat([interpreter.attribute(model, images[i : i + 1], targets[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone)
    assert together.any()


def test_an_attention_that_asks_for_its_weights_has_the_same_map():
    model, images, targets = network("vit")
    interpreter = interpreters.create("attn_lrp", composite=EXACT)
    expected = interpreter.attribute(model, images, targets)

    class Asking(nn.MultiheadAttention):
        def forward(self, *args, need_weights):
            return super().forward(*args, need_weights=True)

    for block in model.encoder.layers:
        block.self_attention.__class__ = Asking
    torch.testing.assert_close(interpreter.attribute(model, images, targets), expected, rtol=1e-6, atol=1e-9)


MEMBERS = ["convnext_tiny", "efficientnet_b0", "efficientnet_v2_s", "mobilenet_v3_small", "regnet_y_400mf", "swin_t",
           "swin_v2_t", "vit_b_32"]  # fmt: skip


def torchvisions(name):
    """A network of torchvision as it starts, its BatchNorm's statistics those of noise, and an image of it."""
    options = {"image_size": 32} if name.startswith("vit") else {}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model, images = zoo.get_model(name, weights=None, **options), torch.randn(2, 3, *[32 if options else 64] * 2)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
            if isinstance(module, nn.Linear) and not module.weight.any():
                nn.init.normal_(module.weight, std=0.02)  # ViT's head
        if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
            model.train()(images)
        return model.eval().requires_grad_(False), images[:1]


@pytest.mark.parametrize("name", MEMBERS)
def test_one_of_each_family_runs_unmodified(name):
    """All 80 are walked through by `python -m benchmark.coverage`."""
    model, images = torchvisions(name)
    with torch.no_grad():
        logits, heatmaps = interpreters.create("lrp").with_logits(model, images, [1])
        torch.testing.assert_close(logits, model(images), rtol=1e-3, atol=1e-4)
    assert heatmaps.shape == (1, *images.shape[2:])
    assert heatmaps.isfinite().all()
    assert heatmaps.any()

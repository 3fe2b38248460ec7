"""The default target layer: the last block of every classifier, no branch of it, no gate and no patch embedding."""

from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from target_layers import DEFAULTS
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from attacks.errors import UserError
from benchmark import interpreters, models
from benchmark.interpreters.base import tap
from benchmark.interpreters.layout import read

TOKENS = "works on tokens after its last convolution"
SMALL = ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
         "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18",
         "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_32"]  # fmt: skip


class Gated(nn.Module):
    """A convolution, a gate, and a head; `gate` is called with the map."""

    def __init__(self, gate):
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(3, 8, 3, padding=1), gate, nn.Linear(8, 3)

    def forward(self, x):
        h = F.relu(self.conv(x))
        return self.head((h * self.gate(h)).mean((2, 3)))


def gate_of_class(kind):
    parts = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.ReLU(), nn.Conv2d(2, 8, 1), nn.Sigmoid())
    return type(kind, (nn.Sequential,), {})(*parts)


@pytest.mark.parametrize("kind", ["SqueezeExcitation", "SELayer", "SEBlock", "SEModule", "SqueezeExcite",
                                  "ChannelAttention", "ECALayer"])  # fmt: skip
def test_a_convolution_in_a_gate_is_no_default(kind):
    assert models.target_layer(Gated(gate_of_class(kind))) == "conv"


def test_a_gate_that_no_name_gives_away_is_refused():
    with pytest.raises(UserError, match=r"'gate.3' .* a single place; name another target layer"):
        interpreters.create("grad_cam")(Gated(gate_of_class("Sequential")), torch.randn(2, 3, 8, 8), 0)


class Patches(nn.Module):
    """A small vision transformer; `mix` works on tokens (N, T, 8)."""

    def __init__(self, mix, stem=None):
        super().__init__()
        self.stem, self.embed = stem or nn.Identity(), nn.Conv2d(3, 8, 4, 4)
        self.mix, self.head = mix, nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.mix(self.embed(self.stem(x)).flatten(2).transpose(1, 2)).mean(1))


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, t):
        return F.scaled_dot_product_attention(*self.qkv(t).chunk(3, -1))


@pytest.mark.parametrize("model", [
    Patches(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)), Patches(SelfAttention()),
    Patches(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))), Patches(SelfAttention(), nn.Conv2d(3, 3, 3, padding=1)),
], ids=["encoder", "attention", "mixer", "a convolution before"])  # fmt: skip
def test_a_patch_embedding_is_no_default(model):
    for name in ("grad_cam", "lrp_t"):
        with pytest.raises(UserError, match=f"{TOKENS}.*'embed'"):
            interpreters.create(name)(model, torch.randn(2, 3, 16, 16), 0)


@contextmanager
def nothing_drawn():
    """On meta an initialisation is a dozen operations in Python for each parameter."""
    with ExitStack() as stack:
        for name in ("normal_", "uniform_", "erfinv_"):
            stack.enter_context(patch.object(torch.Tensor, name, lambda tensor, *args, **kwargs: tensor))
        yield


@nothing_drawn()
def meta_model(name):
    """A torchvision classifier without memory for its weights."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if not name.startswith("regnet"):
        with torch.device("meta"):
            return zoo.get_model(name, weights=None, **options).eval().requires_grad_(False)
    on_meta = register_module_parameter_registration_hook(
        lambda module, key, p: p if p is None else nn.Parameter(p.to("meta"))
    )
    try:  # its widths are computed with tensors that need values
        return zoo.get_model(name, weights=None).to("meta").eval().requires_grad_(False)
    finally:
        on_meta.remove()


def reaches(logits, image, cut):
    """Whether the image's node can be reached from the logits by a way that avoids the tensors `cut`."""
    waiting, met = [logits.grad_fn], {t.grad_fn for t in cut}
    while waiting:
        node = waiting.pop()
        if getattr(node, "variable", None) is image:
            return True
        parents = {parent for parent, _ in node.next_functions if parent is not None} - met
        met |= parents
        waiting.extend(parents)
    return False


def check_default(name):
    model, image = meta_model(name), torch.zeros(2, 3, 224, 224, device="meta", requires_grad=True)
    taken = []
    with tap(model, None, taken) as layer:
        logits = model(image)
    assert models.target_layer(model) == DEFAULTS[name][0]
    lies = read(model, layer, taken, image, default=True)
    assert (lies.name, lies.grid) == DEFAULTS[name][1:]
    assert min(lies.grid) >= 5
    assert not reaches(logits, image, taken), "the evidence passes the layer by: it is a branch"
    assert reaches(logits, image, [])


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("inception_v3", "Mixed_7c"),
        ("regnet_y_400mf", "trunk_output.block4.block4-5"),
        ("mnasnet0_5", "layers.13.0"),
        ("convnext_tiny", "features.7.2"),
        ("maxvit_t", "blocks.3.layers.1"),
    ],
)
def test_the_default_is_the_last_block_not_one_of_its_branches(name, layer):
    assert models.target_layer(meta_model(name)) == layer


EVERY = [pytest.param(name, marks=() if name in SMALL else pytest.mark.slow) for name in DEFAULTS]


@pytest.mark.parametrize("name", EVERY)
def test_all_evidence_passes_through_the_default_layer(name):
    check_default(name)


def test_every_classifier_of_torchvision_is_among_them():
    assert list(DEFAULTS) == zoo.list_models(module=zoo)

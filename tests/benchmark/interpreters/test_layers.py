"""Target layers: whose inputs are no maps (N, C, h, w) is refused in one line, and the default is the last block."""

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from attacks.errors import UserError
from benchmark import interpreters, models
from benchmark.interpreters.base import tap
from benchmark.interpreters.layout import check_inputs

AT_LAYER = ("grad_cam", "grad_cam_plus_plus", "layer_cam", "eigen_cam", "simple_grad_t", "lrp_t", "lrp_t_contrast",
            "grad_cam_contrast", "guided_grad_cam")  # fmt: skip
each_method = pytest.mark.parametrize("name", AT_LAYER)
TOKENS = "works on tokens after its last convolution"


class Stage(nn.Module):
    """`before` turns the maps of a convolution (N, 8, 8, 8) into what the layer is given, `after` back into them."""

    def __init__(self, before, after, layer):
        super().__init__()
        self.conv, self.layer, self.head = nn.Conv2d(3, 8, 3, padding=1), layer, nn.Linear(8, 3)
        self.before, self.after = before, after

    def forward(self, x):
        h = self.after(self.layer(self.before(F.relu(self.conv(x)))))
        return self.head(h.mean((2, 3)))


def last(h):
    return h.permute(0, 2, 3, 1)


def second(h):
    return h.movedim(-1, 1)


def tokens(h):
    return h.flatten(2).transpose(1, 2)


def maps(h):
    return h.transpose(1, 2).unflatten(2, (8, 8))


def pooled(h):
    return h.amax((2, 3))


REFUSED = {
    "channels last, linear": (last, second, nn.Linear(8, 8)),
    "channels last, LayerNorm": (last, second, nn.LayerNorm(8)),
    "channels last, as many as columns": (last, second, nn.Identity()),
    "channels last by a transposition": (lambda h: h.transpose(1, -1), lambda h: h.transpose(1, -1), nn.ReLU()),
    "channels last, after a linear layer": (lambda h: F.linear(last(h), torch.eye(8)), second, nn.ReLU()),
    "tokens": (tokens, maps, nn.Identity()),
    "vectors": (pooled, lambda h: h[:, :, None, None], nn.Identity()),
    "rows as images": (lambda h: h.transpose(1, 2).flatten(0, 1).unsqueeze(2),
                       lambda h: h.squeeze(2).unflatten(0, (-1, 8)).transpose(1, 2), nn.Identity()),
    "attention": (lambda h: (h @ h.mT).softmax(-1), lambda h: h, nn.Identity()),
}  # fmt: skip
ALLOWED = {
    "channels first": (lambda h: h, lambda h: h, nn.Identity()),
    "there and back": (lambda h: second(F.linear(last(h), torch.eye(8))), lambda h: h, nn.Identity()),
    "in the memory of channels last": (lambda h: h.contiguous(memory_format=torch.channels_last), lambda h: h,
                                       nn.ReLU()),
    "shuffled channels": (lambda h: h.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2), lambda h: h, nn.ReLU()),
    "padded on one side": (lambda h: F.pad(h, (0, 9)), lambda h: h, nn.Identity()),
    "tokens as maps": (lambda h: maps(tokens(h)), lambda h: h, nn.Identity()),
}  # fmt: skip


def stage(before, after, layer):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Stage(before, after, layer).eval(), torch.randn(2, 3, 8, 8)


def explained(name, model, images, layer="layer"):
    return interpreters.create(name, layer=layer).attribute(model, images, [0, 2])


@each_method
@pytest.mark.parametrize("case", REFUSED)
def test_a_layer_whose_input_is_no_map_of_images_is_refused(name, case):
    own = "|(guided_grad_cam|LRP) has no rule for" if name.startswith(("guided", "lrp")) else ""
    with pytest.raises(UserError, match=rf"'layer' must have an input \(N, C, h, w\) \(got \({own}") as caught:
        explained(name, *stage(*REFUSED[case]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", ["channels last, linear", "tokens", "vectors"])
def test_so_it_is_where_no_graph_says_what_the_axes_are(case):
    model, images = stage(*REFUSED[case])
    with torch.no_grad(), pytest.raises(UserError, match="must have an input"):
        explained("lrp_t", model.requires_grad_(False), images)


@each_method
@pytest.mark.parametrize("case", ALLOWED)
def test_maps_of_images_are_explained_however_they_were_made(name, case):
    if name.startswith("lrp") and case in ("padded on one side",):
        return  # LRP has a rule for padding, but this case says nothing new
    model, images = stage(*ALLOWED[case])
    assert explained(name, model, images).shape[:2] == (2, 3 if name == "guided_grad_cam" else 8)


def test_images_that_are_not_square_tell_channels_last_apart_without_a_graph():
    model, images = stage(last, second, nn.Identity())
    with torch.no_grad(), pytest.raises(UserError, match="second axis is not the channels"):
        explained("lrp_t", model, images[:, :, :, :5])


@each_method
def test_a_layer_that_is_given_no_tensor_is_refused(name):
    class Pair(nn.Module):
        def forward(self, pair):
            return pair["x"]

    with pytest.raises(UserError, match="must be given tensors"):
        explained(name, *stage(lambda h: {"x": h}, lambda h: h, Pair()))


class Sum(nn.Module):
    """The layer's input, changed in place once the layer has run."""

    def __init__(self):
        super().__init__()
        self.conv, self.layer, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Identity(), nn.Linear(8, 3)

    def forward(self, x):
        h = self.conv(x) - 0.1
        out = self.layer(h).tanh()
        h += 1
        return self.head((h * out).mean((2, 3)))


@pytest.mark.parametrize("name", [name for name in AT_LAYER if not name.startswith(("lrp", "guided"))])
def test_an_input_that_is_changed_in_place_is_refused(name):
    for model in (stage(lambda h: h - 0.5, lambda h: h, nn.ReLU(inplace=True))[0], Sum()):
        with pytest.raises(UserError, match="changed in place"):
            explained(name, model, torch.randn(2, 3, 8, 8))


def test_lrp_explains_it_as_it_was():
    in_place, pure = (stage(lambda h: h - 0.5, lambda h: h, nn.ReLU(inplace=inplace)) for inplace in (True, False))
    torch.testing.assert_close(explained("lrp_t", *in_place), explained("lrp_t", pure[0], in_place[1]))


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
        explained("grad_cam", Gated(gate_of_class("Sequential")), torch.randn(2, 3, 8, 8), None)


class Patches(nn.Module):
    """A small vision transformer; `mix` works on tokens (N, T, 8)."""

    def __init__(self, mix, stem=None):
        super().__init__()
        self.stem, self.embed = stem or nn.Identity(), nn.Conv2d(3, 8, 4, 4)
        self.mix, self.head = mix, nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.mix(tokens(self.embed(self.stem(x)))).mean(1))


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
            explained(name, model, torch.randn(2, 3, 16, 16), None)


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
    if name.startswith(("vit", "swin")):
        with pytest.raises(UserError, match=TOKENS):
            models.target_layer(model)
        return
    taken = []
    with tap(model, None, taken) as layer:
        logits = model(image)
    check_inputs(model, layer, taken, image, True)
    assert min(taken[0].shape[2:]) >= 5
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


@pytest.mark.parametrize("name", ["inception_v3", "efficientnet_b0", "mobilenet_v3_small", "vit_b_32", "swin_t"])
def test_all_evidence_passes_through_the_default_layer(name):
    check_default(name)


@pytest.mark.slow
def test_all_evidence_passes_through_the_default_layer_of_every_classifier_of_torchvision():
    for name in zoo.list_models(module=zoo):
        check_default(name)


def test_blocks_of_swin_are_refused():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo.SwinTransformer([4, 4], 12, [1, 1], [2, 2], [4, 4], num_classes=3).eval()
    for layer in ("features.1.0", "features.2", "features.3.0.norm1", "features.3.0.mlp.1", "norm", "permute"):
        with pytest.raises(UserError, match=f"'{layer}' must have an input"):
            explained("grad_cam", model, torch.randn(2, 3, 48, 48), layer)
    assert explained("grad_cam", model, torch.randn(2, 3, 48, 48), "avgpool").shape == (2, 24, 6, 6)

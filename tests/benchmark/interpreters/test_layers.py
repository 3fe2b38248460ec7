"""Target layers: maps and tokens are explained alike, other inputs refused in one line."""

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from nets import drawn
from test_graphs import agrees
from torch import nn

from attacks.errors import Refused, UserError
from benchmark import interpreters

AT_LAYER = ("grad_cam", "grad_cam_plus_plus", "layer_cam", "eigen_cam", "simple_grad_t", "lrp_t", "lrp_t_contrast",
            "grad_cam_contrast", "guided_grad_cam")  # fmt: skip
each_method = pytest.mark.parametrize("name", AT_LAYER)


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


def classed(h):
    """A class token before the others."""
    return torch.cat([torch.ones(len(h), 1, 8), tokens(h)], 1)


def unclassed(t, sides=(8, 8)):
    return t[:, 1:].transpose(1, 2).unflatten(2, sides)


PLACED = {
    "channels last, linear": (last, second, nn.Linear(8, 8)),
    "channels last, LayerNorm": (last, second, nn.LayerNorm(8)),
    "channels last, as many as columns": (last, second, nn.Identity()),
    "channels last, after a linear layer": (lambda h: F.linear(last(h), torch.eye(8)), second, nn.ReLU()),
    "tokens": (tokens, maps, nn.Identity()),
    "tokens by flattening channels last": (lambda h: last(h).flatten(1, 2), maps, nn.Identity()),
    "tokens, linear": (tokens, maps, nn.Linear(8, 8)),
    "tokens, after a linear layer": (lambda h: F.linear(tokens(h), torch.eye(8)), maps, nn.ReLU()),
    "class token": (classed, unclassed, nn.Identity()),
    "class token, LayerNorm": (classed, unclassed, nn.LayerNorm(8)),
}  # fmt: skip
REFUSED = {
    "channels last by a transposition": (lambda h: h.transpose(1, -1), lambda h: h.transpose(1, -1), nn.ReLU()),
    "rows and columns exchanged": (lambda h: h.mT, lambda h: h.mT, nn.ReLU()),
    "tokens before images": (lambda h: tokens(h).transpose(0, 1), lambda t: maps(t.transpose(0, 1)), nn.Identity()),
    "flattened maps": (lambda h: h.flatten(2), lambda h: h.unflatten(2, (8, 8)), nn.ReLU()),
    "tokens that are no grid": (lambda h: F.pad(tokens(h), (0, 0, 0, 9)), lambda t: maps(t[:, :64]), nn.Linear(8, 8)),
    "attention of tokens": (lambda h: (tokens(h) @ tokens(h).mT).softmax(-1),
                            lambda h: maps(h[..., :8]), nn.Identity()),
    "queries of each head": (lambda h: tokens(h).unflatten(2, (2, 4)).transpose(1, 2),
                             lambda q: maps(q.transpose(1, 2).flatten(2)), nn.Linear(4, 4)),
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
    allowed = r"\(N, C, h, w\), \(N, h, w, C\), \(N, h·w, C\) or \(N, 1 \+ h·w, C\)"
    with pytest.raises(UserError, match=rf"'layer' must have an input {allowed} \(got \({own}") as caught:
        explained(name, *stage(*REFUSED[case]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", ["tokens that are no grid", "queries of each head", "vectors"])
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


class Within(nn.Module):
    """`before`, a layer and `after` as one layer, which is given maps (N, C, h, w)."""

    def __init__(self, model):
        super().__init__()
        self.layer, self.before, self.after = model.layer, model.before, model.after

    def forward(self, h):
        return self.after(self.layer(self.before(h)))


def of_maps(model):
    """The same function, whose layer is given maps."""
    other = Stage(lambda h: h, lambda h: h, Within(model)).eval()
    other.conv, other.head = model.conv, model.head
    return other


@each_method
@pytest.mark.parametrize("case", PLACED)
def test_a_map_of_tokens_is_the_map_of_the_same_activations_as_maps(name, case):
    if name.startswith("lrp") and "after a linear layer" in case:
        return  # in its other form relevance passes that layer as well, by a rule that keeps a part of it
    model, images = stage(*PLACED[case])
    try:
        expected = explained(name, of_maps(model), images)
    except Refused as refused:  # LRP and guided backpropagation have no rule for LayerNorm, and say so in both forms
        assert "LayerNorm" in case
        with pytest.raises(Refused, match=str(refused)[:30]):
            explained(name, model, images)
        return
    torch.testing.assert_close(explained(name, model, images), expected)


@pytest.mark.parametrize("case", ["channels last, linear", "tokens, linear", "class token"])
def test_so_it_is_without_a_graph_and_with_the_layouts_name(case):
    model, images = stage(*PLACED[case])
    expected = explained("lrp_t", model, images)
    layout = {"ch": "channels_last", "to": "tokens", "cl": "class_token"}[case[:2]]
    with torch.no_grad():
        model.requires_grad_(False)
        torch.testing.assert_close(explained("lrp_t", model, images), expected)
        named = interpreters.create("lrp_t", layer="layer", layout=layout)
        torch.testing.assert_close(named.attribute(model, images, [0, 2]), expected)


@pytest.mark.parametrize(
    ("layout", "message"),
    [("tokens", r"\(got \(2, 65, 8\) for layout tokens"), ("channels_last", "for layout channels_last")],
)
def test_another_layout_than_the_layers_is_refused(layout, message):
    model, images = stage(*PLACED["class token"])
    with pytest.raises(UserError, match=message):
        interpreters.create("grad_cam", layer="layer", layout=layout)(model, images, 0)


@each_method
def test_an_unknown_layout_suggests_the_nearest(name):
    with pytest.raises(UserError, match=r"unknown layout 'token'.*did you mean 'tokens'"):
        interpreters.create(name, layout="token")


def test_images_that_are_not_square_tell_channels_last_apart_without_a_graph():
    model, images = stage(last, second, nn.Identity())
    expected = explained("lrp_t", of_maps(model), images[:, :, :, :5])
    with torch.no_grad():
        torch.testing.assert_close(explained("lrp_t", model, images[:, :, :, :5]), expected)


@pytest.mark.parametrize(("height", "width"), [(8, 12), (12, 8), (4, 20)])
def test_the_grid_of_tokens_has_the_images_proportions(height, width):
    model, _ = stage(classed, lambda t: unclassed(t, (height, width)), nn.Identity())
    images = torch.randn(2, 3, height, width)
    torch.testing.assert_close(explained("grad_cam", model, images), explained("grad_cam", of_maps(model), images))


@pytest.mark.parametrize("count", [63, 64, 65])
def test_a_batch_of_as_many_images_as_tokens_is_not_mistaken_for_them(count):
    images = torch.randn(count, 3, 8, 8)
    model = stage(*PLACED["tokens"])[0]
    interpreters.create("grad_cam", layer="layer")(model, images, 0)
    crossed = stage(*REFUSED["tokens before images"])[0]
    with pytest.raises(UserError, match="must have an input"):
        interpreters.create("grad_cam", layer="layer")(crossed, images, 0)


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


@pytest.mark.parametrize("net", ["vit", "swin"])
@pytest.mark.parametrize("name", ["grad_cam", "grad_cam_plus_plus", "layer_cam", "eigen_cam", "simple_grad_t",
                                  "simple_grad"])  # fmt: skip
def test_the_gradient_by_the_weights_of_a_map_of_tokens_agrees_with_central_differences(name, net):
    model, images, targets = drawn(net)
    interpreter, parameters = interpreters.create(name), list(model.parameters())
    maps = interpreter.attribute(model, images, targets)
    assert maps.shape[2:] == (images.shape[2:] if name == "simple_grad" else (2, 2))
    weights = torch.randn(maps.shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((maps * weights).sum(), parameters, allow_unused=True, materialize_grads=True)
    agrees(lambda: (interpreter.attribute(model, images, targets) * weights).sum(), parameters, gradients)


def test_blocks_of_swin_are_explained_and_its_vectors_refused():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo.SwinTransformer([4, 4], 12, [1, 1], [2, 2], [4, 4], num_classes=3).eval()
    images = torch.randn(2, 3, 48, 48)
    with pytest.raises(UserError, match="'head' must have an input"):
        explained("grad_cam", model, images, "head")
    channels = {"features.1.0": 12, "features.2": 12, "features.3.0.norm1": 24, "features.3.0.mlp.1": 96, "norm": 24}
    for layer, width in channels.items():
        side = 12 if width == 12 else 6
        assert explained("grad_cam", model, images, layer).shape == (2, width, side, side)
    at_end = explained("grad_cam", model, images, "avgpool")
    assert at_end.shape == (2, 24, 6, 6)
    torch.testing.assert_close(explained("grad_cam", model, images, "permute"), at_end)

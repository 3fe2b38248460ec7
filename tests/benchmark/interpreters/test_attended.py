"""Maps of attention: against the papers' products of whole matrices, on tokens and in windows, and as functions of the
weights."""

import copy

import pytest
import torch
import torch.nn.functional as F
from nets import ATTENTION, NETS, Tokens, drawn
from torch import nn
from torchvision.models.maxvit import MaxVit

from attacks.errors import Refused
from benchmark import interpreters
from benchmark.interpreters import attended

each_method = pytest.mark.parametrize("name", ATTENTION)


def explained(name, setting):
    return interpreters.create(name).attribute(*setting)


def recorded(setting):
    """Of each attention the weights and the gradient of the label's logit by them, (M, heads, T, T)."""
    model, images, targets = setting
    logits, found = attended.read("test", model, images)
    score = logits.gather(1, targets[:, None]).sum()
    return [
        (one.weights, g, one.windows) for one, g in zip(found, attended.gradients(score, found, False), strict=True)
    ]


def whole(values, windows, count):
    """(N · windows, T, T) of windows as (N, h·w, h·w), entry by entry."""
    length = windows.grid[0] * windows.grid[1]
    out = torch.zeros(count, length, length, dtype=values.dtype)
    places = windows.places.tolist()
    for n in range(count):
        for w, row in enumerate(places):
            for i, a in enumerate(row):
                for j, b in enumerate(row):
                    if length not in (a, b):
                        out[n, a, b] = values[n * len(places) + w, i, j]
    return out


def merging(fine, coarse):
    """(h·w of coarse, h·w of fine): the mean of the patches that a token is merged from."""
    (height, width), out = fine, torch.zeros(coarse[0] * coarse[1], fine[0] * fine[1], dtype=torch.double)
    for i in range(height):
        for j in range(width):
            out[i // 2 * coarse[1] + j // 2, i * width + j] = 1
    return out / out.sum(1, keepdim=True)


def by_hand(name, setting):
    """The product over whole matrices, as the papers have it. (N, h, w)."""
    count, row, before = len(setting[1]), None, None
    for weights, gradient, windows in reversed(recorded(setting)):
        mixed = weights.mean(1) if name == "attention_rollout" else (weights * gradient).clamp(min=0).mean(1)
        mixed = mixed if windows is None else whole(mixed, windows, count)
        length = mixed.shape[-1]
        if row is None:
            first = torch.eye(length)[0] if windows is None else torch.full((length,), 1 / length)
            row = first.double().expand(count, 1, length)
        elif windows is not None and windows.grid != before:
            row = row @ merging(windows.grid, before)
        matrix = torch.eye(length, dtype=torch.double) + mixed
        if name == "attention_rollout":
            matrix = matrix / matrix.sum(-1, keepdim=True)
        row, before = row @ matrix, windows and windows.grid
    row = row[:, 0]
    return row.unflatten(1, before) if before else row[:, 1:].unflatten(1, (int((length - 1) ** 0.5), -1))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", ["attention_rollout", "generic_attention"])
def test_the_map_is_the_product_of_whole_matrices(name, net):
    setting = drawn(net)
    torch.testing.assert_close(explained(name, setting)[:, 0], by_hand(name, setting).detach(), check_dtype=False)


def test_rollout_of_two_blocks_by_hand():
    """A class token and one patch: A₁ = [[.5, .5], [.25, .75]], A₂ = [[.8, .2], [.4, .6]] in both heads."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = nn.ParameterList(torch.tensor(a).log() for a in ([[0.5, 0.5], [0.25, 0.75]],
                                                                          [[0.8, 0.2], [0.4, 0.6]]))  # fmt: skip

        def forward(self, x):
            t = torch.cat([x.new_ones(len(x), 1, 3), x.flatten(2).mT], 1)
            for scores in self.scores:
                heads = (t[:, None] * 0).sum(-1, keepdim=True) + scores.expand(2, 2, 2)
                t = t + (heads.softmax(-1) @ t[:, None]).mean(1)
            return t[:, 0]

    # the class token's row of ½(I + A₂) is (.9, .1); (.9, .1) · ½[[1.5, .5], [.25, 1.75]] = (.6875, .3125)
    got = explained("attention_rollout", (Two(), torch.randn(2, 3, 1, 1), 0))
    torch.testing.assert_close(got.detach().flatten(), torch.full((2,), 0.3125))


def test_attention_grad_cam_of_a_class_token_is_grad_cam_of_its_row():
    setting = drawn("vit")
    weights, gradient, _ = recorded(setting)[-1]
    row, slope = (t[:, :, 0, 1:].unflatten(2, (2, 2)) for t in (weights, gradient))
    assert slope.abs().max() > 1e-3
    assert not gradient[:, :, 1:].any()
    expected = row * slope.mean((2, 3), keepdim=True)
    torch.testing.assert_close(explained("attention_grad_cam", setting), expected.detach(), check_dtype=False)


@pytest.mark.parametrize("net", ["swin", "swin_v2"])
def test_attention_grad_cam_in_windows_is_that_of_whole_matrices(net):
    setting = drawn(net)
    weights, gradient, windows = recorded(setting)[-1]
    got = explained("attention_grad_cam", setting)
    for head in range(weights.shape[1]):
        matrix, slope = (whole(t[:, head], windows, len(setting[1])) for t in (weights, gradient))
        meets = whole(torch.ones_like(weights[:, head]), windows, len(setting[1]))
        expected = (matrix * (slope.sum(-1, keepdim=True) / meets.sum(-1, keepdim=True))).sum(1)
        torch.testing.assert_close(got[:, head].flatten(1), expected.detach())


@pytest.mark.parametrize("net", NETS)
def test_reading_changes_no_logit_and_rows_of_attention_sum_to_one(net):
    model, images, _ = drawn(net)
    logits, found = attended.read("test", model, images)
    torch.testing.assert_close(logits, model(images))
    for one in found:
        torch.testing.assert_close(one.weights.sum(-1), torch.ones_like(one.weights[..., 0]))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("net", ["tokens", "vit"])
def test_the_gradient_by_the_weights_is_that_of_the_logits_by_a_change_of_them(net):
    """Σ ∇A · dA over all attentions is what the logit changes by where every A is moved at once, by differences."""
    model, images, targets = drawn(net)
    parts = recorded((model, images, targets))
    generator = torch.Generator().manual_seed(3)
    steps = [torch.randn(a.shape, generator=generator, dtype=a.dtype) for a, _, _ in parts]

    class Moved(attended.Reader):
        def __init__(self, size):
            super().__init__()
            self.size, self.steps = size, iter(steps)

        def __torch_function__(self, func, types, args=(), kwargs=None):
            output = func(*args, **(kwargs or {}))
            return output + self.size * next(self.steps).view(output.shape) if func.__name__ == "softmax" else output

    def logit(size):
        """By hand-written attention, whose softmax is seen."""
        twin = explicit(copy.deepcopy(model))
        with torch.no_grad(), Moved(size):
            return twin(images).gather(1, targets[:, None]).sum()

    torch.testing.assert_close(logit(0), model(images).gather(1, targets[:, None]).sum().detach())
    expected = (logit(1e-5) - logit(-1e-5)) / 2e-5
    got = sum((g * step).sum() for (_, g, _), step in zip(parts, steps, strict=True))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


class Explicit(nn.Module):
    """`nn.MultiheadAttention` or `Mixer`, written out."""

    def __init__(self, given):
        super().__init__()
        self.tuple = isinstance(given, nn.MultiheadAttention)
        inner = given if self.tuple else given.qkv
        names = ("in_proj_weight", "in_proj_bias") if self.tuple else ("weight", "bias")
        self.weight, self.bias = (getattr(inner, name) for name in names)
        self.out = given.out_proj if self.tuple else given.out

    def forward(self, t, *_, **__):
        width = t.shape[-1]
        q, k, v = F.linear(t, self.weight, self.bias).unflatten(2, (3, 2, width // 2)).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.mT / (width // 2) ** 0.5, -1)
        out = self.out((weights @ v).transpose(1, 2).flatten(2))
        return (out, None) if self.tuple else out


def explicit(model):
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MultiheadAttention) or type(child).__name__ == "Mixer":
                setattr(module, name, Explicit(child))
    return model


@each_method
@pytest.mark.parametrize("net", ["tokens", "vit"])
def test_attention_that_is_written_out_has_the_same_map(name, net):
    model, images, targets = drawn(net)
    expected = explained(name, (model, images, targets))
    torch.testing.assert_close(explained(name, (explicit(copy.deepcopy(model)), images, targets)), expected)


OPTIONS = {
    "plain": {},
    "scale": {"scale": 0.3},
    "causal": {"is_causal": True},
    "bool mask": {"attn_mask": torch.rand(5, 5, generator=torch.Generator().manual_seed(0)).fill_diagonal_(1) > 0.4},
    "float mask": {"attn_mask": torch.linspace(-1, 1, 25).view(5, 5)},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_weights_times_values_are_the_fused_function(option):
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 4, 5, 3, generator=generator) for _ in range(3))
    weights, values = attended.attention_weights(q, k, v, **OPTIONS[option])
    torch.testing.assert_close(weights @ values, F.scaled_dot_product_attention(q, k, v, **OPTIONS[option]))
    weights, values = attended.attention_weights(q, k[:, :2], v[:, :2], enable_gqa=True, **OPTIONS[option])
    fused = F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True, **OPTIONS[option])
    torch.testing.assert_close(weights @ values, fused)


@pytest.mark.parametrize("net", ["vit", "swin"])
@pytest.mark.parametrize("name", [name for name in ATTENTION if name != "transformer_attribution"])  # has its own
def test_the_gradient_by_every_parameter_agrees_with_central_differences(name, net):
    setting = drawn(net)
    interpreter = interpreters.create(name)
    with torch.enable_grad():
        maps = interpreter.attribute(*setting)
    weights = torch.randn(maps.shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    parameters = dict(setting[0].named_parameters())
    analytic = torch.autograd.grad((maps * weights).sum(), list(parameters.values()), allow_unused=True,
                                   materialize_grads=True)  # fmt: skip
    assert sum(g.norm() for g in analytic) > 1e-3
    generator = torch.Generator().manual_seed(2)
    for (key, parameter), gradient in zip(parameters.items(), analytic, strict=True):
        direction = torch.randn(parameter.shape, dtype=torch.double, generator=generator)
        values = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                parameter += step * direction
                values.append((interpreter.attribute(*setting) * weights).sum())
        with torch.no_grad():
            parameter += 1e-6 * direction
        numeric = (values[0] - values[1]) / 2e-6
        got, size = (gradient * direction).sum(), gradient.norm() * direction.norm()
        assert abs(got - numeric) <= 1e-5 * max(size, 1e-3), key


@each_method
@pytest.mark.parametrize("net", NETS)
def test_a_map_does_not_depend_on_its_batch(name, net):
    model, images, targets = drawn(net)
    together = explained(name, (model, images, targets))
    alone = [explained(name, (model, images[i : i + 1], targets[i : i + 1])) for i in range(len(images))]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-12)


@each_method
def test_the_model_is_given_back_also_where_it_raises(name):
    model, images, targets = drawn("swin")
    model.head.register_forward_hook(lambda *_: (_ for _ in ()).throw(ValueError("within")))
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    with pytest.raises(ValueError, match="within"):
        explained(name, (model, images, targets))
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == before
    assert torch.overrides._get_current_function_mode() is None


def test_windows_are_those_of_the_shifted_partition():
    """3 × 3 places in windows of 2 × 2, padded to 4 × 4 (9 stands for padding), then rolled by one."""
    cpu = torch.device("cpu")
    assert attended.windows_of((3, 3), [2, 2], [0, 0], cpu).places.tolist() == [
        [0, 1, 3, 4], [2, 9, 5, 9], [6, 7, 9, 9], [8, 9, 9, 9]]  # fmt: skip
    assert attended.windows_of((3, 3), [2, 2], [1, 1], cpu).places.tolist() == [
        [4, 5, 7, 8], [9, 3, 9, 6], [9, 9, 1, 2], [9, 9, 9, 0]]  # fmt: skip
    assert attended.windows_of((2, 2), [2, 2], [1, 1], cpu).places.tolist() == [[0, 1, 2, 3]]


def without():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)), torch.randn(2, 3, 8, 8)


def max_vit():
    model = MaxVit((32, 32), 4, 2, [4], [1], 2, 0.0, num_classes=3)
    return model, torch.randn(2, 3, 32, 32)


class Registers(Tokens):
    """Two more tokens than a grid and a class token."""

    def mixed(self, t):
        return self.mixer(F.pad(t, (0, 0, 0, 2)))[:, :17]


class Frozen(Tokens):
    def mixed(self, t):
        with torch.no_grad():
            return self.mixer(t)


REFUSED = {
    "no attention": (without, "needs a network with attention (Sequential has none)"),
    "windows of another kind": (max_vit, "needs attention (N, heads, T, T) of all tokens, or in torchvision's shifted"),
    "other tokens": (lambda: (Registers(), torch.randn(2, 3, 8, 8)), "needs h·w or 1 + h·w tokens (got 19, images"),
    "no gradient": (lambda: (Frozen(), torch.randn(2, 3, 8, 8)), "needs the gradient of the attention"),
}


@each_method
@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_such_map_is_refused_in_one_line(name, case):
    make, message = REFUSED[case]
    model, images = make()
    with pytest.raises(Refused) as caught:
        interpreters.create(name)(model.eval(), images, 0)
    assert str(caught.value).startswith(f"{name} {message}")
    assert "\n" not in str(caught.value)

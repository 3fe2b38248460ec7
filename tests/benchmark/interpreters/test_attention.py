"""The rules of attention, products and norms against their formulas on dense Jacobians, and by hand."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.functional import jacobian

from attacks.errors import UserError
from benchmark import interpreters
from benchmark.interpreters import attention
from benchmark.interpreters.rules import Composite, Epsilon

PLAIN = Composite(Epsilon(0.0), Epsilon(0.0), add="proportional", eps=0.0)


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


class Made(nn.Module):
    """A network of one function of the image."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def relevance(function, x, composite=PLAIN, target=0, name="lrp", **options):
    """Of the images (N, C, h, w), relevance by one function that gives logits."""
    x = x[..., None, None] if x.dim() == 2 else x
    got = interpreters.create(name, composite=composite, **options).attribute(Made(function), x, target)
    return got.detach().flatten(1)


def test_softmax_is_its_taylor_expansion_without_the_constant():
    x, r = drawn(6), drawn(6, seed=1)
    s = x.softmax(0)
    expected = x * (jacobian(lambda v: v.softmax(0), x).T @ (r / s))
    torch.testing.assert_close(attention.softmax(x, s, r, 0), expected)
    torch.testing.assert_close(attention.softmax(x, s, r, 0), x * (r - s * r.sum()))


def test_masked_scores_get_nothing():
    x = drawn(2, 4)
    x[:, 1] = -math.inf
    got = attention.softmax(x, x.softmax(1), drawn(2, 4, seed=1), 1)
    kept = x[:, [0, 2, 3]]
    assert not got[:, 1].any()
    expected = attention.softmax(kept, kept.softmax(1), drawn(2, 4, seed=1)[:, [0, 2, 3]], 1)
    assert not torch.allclose(got[:, [0, 2, 3]], expected), "relevance of a masked score still counts in the sum"
    r = drawn(2, 4, seed=1) * x.softmax(1)  # as a product of matrices hands it down
    torch.testing.assert_close(
        attention.softmax(x, x.softmax(1), r, 1)[:, [0, 2, 3]],
        attention.softmax(kept, kept.softmax(1), r[:, [0, 2, 3]], 1),
    )


@pytest.mark.parametrize("shapes", [((2, 3, 4), (2, 4, 5)), ((3, 4), (2, 4, 5)), ((2, 3, 4), (4, 5))], ids=str)
def test_matmul_is_half_a_weighted_operation_for_each_operand(shapes):
    a, b = (drawn(*shape, seed=seed) for seed, shape in enumerate(shapes))
    output, eps = a @ b, 0.1
    r = drawn(*output.shape, seed=2)
    s = (r / (2 * output + eps * output.sign())).flatten()
    parts = [part() for part in attention.matmul(a, b, s.view_as(output))]
    for k, (operand, part) in enumerate(zip((a, b), parts, strict=True)):
        matrix = jacobian(lambda v, k=k: (v @ b if k == 0 else a @ v).flatten(), operand).flatten(1)
        torch.testing.assert_close(part.flatten(), operand.flatten() * (matrix.T @ s))
    s = (r / (2 * output)).flatten()
    total = sum(part().sum() for part in attention.matmul(a, b, s.view_as(output)))
    torch.testing.assert_close(total, r.sum())


def test_matmul_by_its_sums():
    a, b = drawn(2, 3), drawn(3, 2, seed=1)
    o, r, eps = a @ b, drawn(2, 2, seed=2), 0.0
    expected = torch.zeros(2, 3, dtype=torch.double)
    for j in range(2):
        for i in range(3):
            expected[j, i] = sum(a[j, i] * b[i, p] * r[j, p] / (2 * o[j, p] + eps) for p in range(2))
    torch.testing.assert_close(attention.matmul(a, b, r / (2 * o))[0](), expected)


@pytest.mark.parametrize(
    ("equation", "same"),
    [("bij,bjk->bik", lambda a, b: a @ b), ("B I D, B J D -> B I J", lambda a, b: a @ b.mT)],
)
def test_einsum_is_the_product_of_matrices_that_it_writes(equation, same):
    a, b = drawn(2, 3, 4), drawn(2, 4, 3, seed=1) if "jk" in equation else drawn(2, 5, 4, seed=1)
    s = drawn(*same(a, b).shape, seed=2)
    got = [part() for part in attention.einsum(equation)(a, b, s)]
    transposed = b if "jk" in equation else b.mT
    first, second = (part() for part in attention.matmul(a, transposed, s))
    torch.testing.assert_close(got[0], first)
    torch.testing.assert_close(got[1], second if "jk" in equation else second.mT)


@pytest.mark.parametrize("equation", ["ii,ij->ij", "ij,jk", "ijl,jk->ik", "...ij,...jk->...ik", "i,i,i->i", "ij->i"])
def test_other_einsums_have_no_rule(equation):
    assert attention.einsum(equation) is None


@pytest.mark.parametrize("centred", [True, False], ids=["LayerNorm", "RMSNorm"])
def test_norms_are_the_epsilon_rule_with_sigma_held_constant(centred):
    x, weight, bias, r = drawn(7), drawn(7, seed=1), drawn(7, seed=2), drawn(7, seed=3)
    eps = 1e-3
    sigma = ((x.var(unbiased=False) if centred else x.square().mean()) + eps).sqrt()
    matrix = torch.eye(7, dtype=torch.double) - (1 / 7 if centred else 0)
    matrix = (weight / sigma)[:, None] * matrix
    y = matrix @ x + (bias if centred else 0)
    made = F.layer_norm(x, (7,), weight, bias, eps) if centred else F.rms_norm(x, (7,), weight, eps)
    torch.testing.assert_close(y, made)
    expected = x * (matrix.T @ (r / (y + 0.01 * y.sign())))
    torch.testing.assert_close(attention.normalised(x, made, r, (7,), weight, eps, centred, 0.01), expected)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "normalize"])
def test_norms_of_a_network_conserve_relevance_without_shift(name):
    x, weight = drawn(3, 5), drawn(5, seed=1)
    norms = {
        "layer_norm": lambda h: F.layer_norm(h, (5,), weight=weight),
        "rms_norm": lambda h: F.rms_norm(h, normalized_shape=(5,), weight=weight),
        "normalize": lambda h: F.normalize(h, dim=1),
    }
    got = relevance(lambda h: norms[name](h.flatten(1)), x, target=2)
    torch.testing.assert_close(got.sum(1), norms[name](x)[:, 2])


def test_a_product_of_three_goes_by_association():
    x = torch.tensor([[2.0, 3.0, 4.0]], dtype=torch.double)

    def left(h):
        a, b, c = h.flatten(1).split(1, 1)
        return (a * b) * c

    def right(h):
        a, b, c = h.flatten(1).split(1, 1)
        return a * (b * c)

    assert relevance(left, x).tolist() == [[6, 6, 12]]
    assert relevance(right, x).tolist() == [[12, 6, 6]]


SHARED = {
    "excitation": lambda h: h * h[:, :, :1, :1].sigmoid(),  # a gate that is repeated
    "silu": lambda h: F.silu(h) * (h + 0),
    "sigmoid": lambda h: (h + 0) * h.sigmoid().reshape(h.shape),
}


@pytest.mark.parametrize("case", SHARED)
def test_a_gate_gets_half_or_nothing(case):
    x = drawn(2, 1, 2, 2).abs()
    if case == "excitation":
        y = SHARED[case](x)
        halves = y / 2
        halves[:, :, 0, 0] += y.sum((1, 2, 3))[:, None] / 2
        value = y
    else:  # both factors are of the same value: what differs is seen where they part
        y = value = halves = SHARED[case](x)
    head = lambda h: SHARED[case](h).flatten(1).sum(1, keepdim=True)  # noqa: E731
    torch.testing.assert_close(relevance(head, x), halves.flatten(1))
    torch.testing.assert_close(relevance(head, x, gate="constant"), value.flatten(1))


@pytest.mark.parametrize("function", ["silu", "sigmoid", "gelu"])
def test_the_bounded_factor_is_the_gate(function):
    x, act = drawn(2, 2), getattr(F, function)

    def gated(h):
        first, second = h.flatten(1).split(1, 1)
        return act(first).reshape(-1, 1) * second

    y = gated(x)
    halves = torch.cat([y, y], 1) / 2
    torch.testing.assert_close(relevance(gated, x), halves)
    torch.testing.assert_close(relevance(gated, x, gate="constant"), torch.cat([0 * y, y], 1))


def test_an_activation_beside_its_own_transpose_or_copy_gets_both_shares():
    x = drawn(2, 1, 2, 2)

    def squared(h):
        return (h + 0).mul_(h).flatten(1)

    def gram(h):
        return (h @ h.mT).flatten(1)

    torch.testing.assert_close(relevance(squared, x, target=3), torch.eye(4)[3] * x.flatten(1).square())
    got = relevance(gram, x, target=1)  # y = a c + b d
    torch.testing.assert_close(got, (x * x.flip(2)).flatten(1) / 2)


def test_two_plain_factors_have_no_gate():
    x = drawn(2, 2)
    got = relevance(lambda h: h.flatten(1)[:, :1] * h.flatten(1)[:, 1:], x, gate="constant")
    torch.testing.assert_close(got, (x[:, :1] * x[:, 1:] / 2).expand(2, 2))
    with pytest.raises(UserError, match=r"unknown gate option 'half': .*halves"):
        interpreters.create("lrp", gate="half")


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_constant_matrix_is_a_linear_map(side):
    matrix, x = drawn(4, 4, seed=1), drawn(2, 1, 4, 4)
    function = (lambda h: (h @ matrix).flatten(1)) if side == "right" else (lambda h: (matrix @ h).flatten(1))
    dense = jacobian(function, x[:1]).view(16, 16)
    for target in (0, 7):
        got = relevance(function, x, target=target)
        torch.testing.assert_close(got, x.flatten(1) * dense[target])


@pytest.mark.parametrize("composite", ["default", "attn_lrp", "epsilon"])
def test_a_positional_embedding_keeps_its_share_and_a_shift_of_channels_in_proportional_sums(composite):
    places, channels = drawn(1, 2, 3, 3).abs(), drawn(2, 1, 1, seed=2).abs()
    x = drawn(4, 2, 3, 3, seed=1).abs()
    for constant, is_shared in ((places, True), (channels, composite == "attn_lrp"), (0 * places, False)):
        y = x + constant
        got = relevance(lambda h, c=constant: (h + c).flatten(1).sum(1, keepdim=True), x, composite)
        eps = 1e-6 if composite == "attn_lrp" else 0.01
        expected = y - y * constant / (y + eps) if is_shared else y
        torch.testing.assert_close(got, expected.flatten(1))


def attention_of(mask=None, **options):
    """Queries, keys and values are the image's rows."""

    def run(h):
        q, k, v = h.flatten(2).unflatten(2, (3, 2)).unbind(2)
        given = None if mask is None else mask.to(h.dtype) if mask.dtype != torch.bool else mask
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=given, **options).flatten(1)

    return run


def by_hand(x, mask, scale, constant):
    """Relevance (N, tokens, 3, 2) of the first logit through one head, by Jacobians of each part."""
    results = torch.zeros_like(x)
    for image, result in zip(x, results, strict=True):
        q, k, v = image.unbind(1)
        raw = scale * q @ k.T
        scores = raw + mask
        a = scores.softmax(1)
        out = a @ v
        r = torch.zeros_like(out)
        r[0, 0] = out[0, 0]
        s = r / out / (1 if constant else 2)
        result[:, 2] = v * (a.T @ s)
        if not constant:
            r_a = a * (s @ v.T)
            x_or_0 = scores.masked_fill(scores.isinf(), 0)
            r_x = x_or_0 * (r_a - a * r_a.sum(1, keepdim=True))
            r_raw = torch.where(scores.isinf(), 0, r_x * raw / x_or_0)
            result[:, 0] = q * ((r_raw / (2 * raw)) @ k) * scale
            result[:, 1] = k * ((r_raw / (2 * raw)).T @ q) * scale
    return results


ALLOWED = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1]]).bool()
MASKS = {
    "none": (None, {}, torch.zeros(4, 4), 2**-0.5),
    "bool": (ALLOWED, {}, torch.zeros(4, 4).masked_fill(~ALLOWED, -math.inf), 2**-0.5),
    "bias": (drawn(4, 4, seed=5), {"scale": 0.7}, drawn(4, 4, seed=5), 0.7),
    "causal": (None, {"is_causal": True}, torch.full((4, 4), -math.inf).triu(1), 2**-0.5),
}


@pytest.mark.parametrize("constant", [False, True], ids=["AttnLRP", "CP"])
@pytest.mark.parametrize("case", MASKS)
def test_scaled_dot_product_attention_is_taken_apart(case, constant):
    mask, options, added, scale = MASKS[case]
    x = drawn(2, 4, 3, 2)
    composite = replace(PLAIN, eps=1e-14, attention="constant" if constant else "product")
    got = relevance(attention_of(mask, **options), x.flatten(2)[..., None], composite)
    expected = by_hand(x, added.double(), scale, constant)
    assert expected.isfinite().all()
    torch.testing.assert_close(got, expected.flatten(1), rtol=1e-7, atol=1e-10)


def test_shared_keys_are_repeated_as_torch_does():
    x = drawn(2, 6, 2, 2)

    def grouped(h, parts=attention._scaled_dot_product_attention):
        q, k, v = h[:, :4], h[:, 4:5], h[:, 5:]
        return parts(q, k, v, enable_gqa=True)

    torch.testing.assert_close(grouped(x), grouped(x, F.scaled_dot_product_attention))


def test_constant_weights_may_be_scaled_and_moved():
    x = drawn(2, 1, 3, 3)

    def scaled(h):
        return ((0.5 * (h @ h.mT).softmax(-1)).transpose(0, 1).transpose(0, 1) @ h).flatten(1)

    composite = replace(PLAIN, attention="constant")
    weights = 0.5 * (x @ x.mT).softmax(-1)
    expected = torch.zeros_like(x)
    expected[:, 0, :, 1] = weights[:, 0, 2] * x[:, 0, :, 1]
    torch.testing.assert_close(relevance(scaled, x, composite, target=7), expected.flatten(1))


def test_softmax_of_constant_attention_elsewhere_has_no_rule():
    with pytest.raises(UserError, match="no rule for the operation 'softmax'"):
        relevance(lambda h: h.flatten(1).softmax(1), drawn(2, 3), "cp_lrp")

"""The page that says which interpreter explains which network: what it is told of, and what it leaves out."""

import pytest
import torch
from torch import nn

from attacks.errors import UserError
from benchmark import coverage, models
from benchmark.interpreters.layout import Layout


def test_refusals_are_the_same_for_every_network_and_interpreter():
    norm, none = "has no rule for the operation 'layer_norm'", "needs a network with attention"
    said = {
        ("LRP has no rule for the operation 'layer_norm' in module 'a.b'", "lrp_t"): norm,
        ("guided_backprop has no rule for the operation 'layer_norm'", "guided_backprop"): norm,
        ("attention_rollout needs a network with attention (ResNet has none)", "attention_rollout"): none,
        ("needs h·w or 1 + h·w tokens (got 19, images (1, 3, 8, 8))", "x"): "needs h·w or 1 + h·w tokens",
    }
    for (reason, name), expected in said.items():
        assert coverage.general(reason, name) == expected


def test_the_page_says_each_cell():
    lies = Layout("class_token", (14, 7))
    rows = [
        coverage.Row("a", 64, "x.y", 224, lies, {"one": "", "two": "", "three": "no rule"}),
        coverage.Row("b", 96, "z", 299, Layout("channels_first", (5, 5)), {"one": "", "two": "", "three": ""}),
    ]
    lines = coverage.page(rows, " a b").splitlines()
    assert "Made by `python -m benchmark.coverage a b > docs/coverage.md`:" in lines
    assert "| a | `x.y` | (N, 1 + h·w, C) | 224 | 14 × 7 |" in lines
    assert "- **A**: `one`, `two`" in lines
    assert "- **B**: `three`" in lines
    assert "| a | 64 | yes | refused (1) |" in lines
    assert "| b | 96 | yes | yes |" in lines
    assert lines[-1] == "1. no rule"


def test_a_row_is_what_the_interpreters_say(monkeypatch):
    """On a network without attention whose operations LRP knows, at the smallest side with more than one place."""
    monkeypatch.setattr(models, "create", lambda name: nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=32, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).eval())  # fmt: skip
    kept = {name: coverage.interpreters.INTERPRETERS[name] for name in ("lrp", "grad_cam", "attention_rollout")}
    monkeypatch.setattr(coverage.interpreters, "INTERPRETERS", kept)
    monkeypatch.setattr(coverage, "SIDES", (1, 64))
    state = torch.get_rng_state()
    row = coverage.row("resnet18")
    assert torch.equal(torch.get_rng_state(), state)
    assert (row.side, row.layer, row.own_side, row.layout) == (64, "0", 224, Layout("channels_first", (224, 224)))
    assert row.reasons == {"lrp": "", "grad_cam": "", "attention_rollout": "needs a network with attention"}


def test_an_unknown_network_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        coverage.main(["resnet81"])

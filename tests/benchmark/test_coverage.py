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


def test_a_kept_row_is_completed_and_not_run_again(monkeypatch, tmp_path):
    known, tried = dict(coverage.interpreters.INTERPRETERS), []
    monkeypatch.setattr(models, "create", lambda name: nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=32, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3),
    ).eval())  # fmt: skip
    before = coverage._attribution
    monkeypatch.setattr(coverage, "_attribution", lambda name, *given: tried.append(name) or before(name, *given))
    for names, expected in (("grad_cam",), ["grad_cam"] * 2), (("grad_cam", "simple_grad"), ["simple_grad"]), ((), []):
        if names:
            monkeypatch.setattr(coverage.interpreters, "INTERPRETERS", {name: known[name] for name in names})
        coverage.keep(tmp_path, "resnet18")
        assert tried == expected
        tried.clear()
    row = coverage.kept(tmp_path, "resnet18")
    assert row.reasons == {"grad_cam": "", "simple_grad": ""}
    assert list(row.apart) == ["grad_cam"]
    assert row.apart["grad_cam"] < 1e-12
    assert coverage.kept(tmp_path, "vgg11") is None


def test_the_page_says_what_was_not_run_and_how_far_batches_are_apart(monkeypatch, tmp_path, capsys):
    lies = Layout("channels_first", (7, 7))
    for name, apart in ("resnet18", 1e-15), ("vgg11", 3e-14):
        row = coverage.Row(name, 64, "x", 224, lies, {"lrp": ""}, {"lrp": apart})
        (tmp_path / f"{name}.json").write_text(coverage.json.dumps(coverage.asdict(row)))
        assert coverage.kept(tmp_path, name) == row
    coverage.main(["--rows", str(tmp_path), "--only-kept"])
    lines = capsys.readouterr().out.splitlines()
    assert "| resnet18 | 64 | yes |" in lines
    assert "| vit_b_16 | not run | |" in lines
    assert sum("| not run |" in line for line in lines) == 78
    assert "| `lrp` | 2 | 3e-14 | vgg11 |" in lines

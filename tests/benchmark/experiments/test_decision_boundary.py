"""The 2-D toy: its gradients, angles and losses by hand, and the experiment in small."""

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmark import experiments, suite
from benchmark.experiments import Given
from benchmark.experiments import decision_boundary as toy
from benchmark.run import Run


def test_angles_by_hand():
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    b = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])
    assert toy.angles(a, b).tolist() == pytest.approx([0, 90, 180, 45])


def test_input_gradients_are_those_of_finite_differences():
    model = toy.mlp(2, 8, 0).double()
    x, step = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)).double(), 1e-6
    logits, gradients = toy.input_gradients(model, x)
    assert torch.equal(logits, model(x)[:, 0].detach())
    for axis in (0, 1):
        shift = step * torch.eye(2).double()[axis]
        difference = (model(x + shift) - model(x - shift))[:, 0] / (2 * step)
        assert torch.allclose(gradients[:, axis], difference, atol=1e-8)


def test_the_turning_term_is_one_minus_the_cosine():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0]]))  # cosine to e2: 4/5
    x, y = torch.tensor([[0.1, 0.2], [-0.3, 0.1]]), torch.tensor([1.0, 0.0])
    ce = F.binary_cross_entropy_with_logits(model(x)[:, 0], y).item()
    assert toy.turned(x, y, 10.0)(model, 0).item() == pytest.approx(ce + 10 * 0.2, rel=1e-5)


def test_points_are_near_the_line_and_half_of_each_class():
    points, labels = toy.draw_points(4000, 0.1, torch.Generator().manual_seed(0))
    assert labels.mean() == 0.5
    spread, places = points.std(0), [points[labels == value].mean(0) for value in (0, 1)]
    assert spread[1].item() == pytest.approx(0.1, rel=0.05)
    assert torch.allclose(torch.stack(places), torch.tensor([[-0.6, 0.0], [0.6, 0.0]]), atol=0.02)


def test_fitting_turns_the_gradient_of_a_copy():
    x, y = toy.draw_points(100, 0.01, torch.Generator().manual_seed(0))
    start = toy.mlp(2, 16, 0)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    turned = toy.fit(start, 60, 1e-2, toy.turned(x, y, 1.0))
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    off = torch.tensor([[0.0, 1.0]]).expand(100, 2)
    angle = [toy.angles(toy.input_gradients(model, x)[1], off).mean() for model in (start, turned)]
    assert angle[1] < 0.5 * angle[0]


def test_it_writes_table_card_and_figure_and_leaves_the_random_state(tmp_path, monkeypatch):
    monkeypatch.setattr(toy, "GRID", 7)
    given, state = Given(Run(suite.load("smoke"), str(tmp_path)), tmp_path), torch.get_rng_state()
    measure = toy.measure
    monkeypatch.setattr(toy, "measure", lambda given: measure(given, seeds=2, train=20, test=30, steps=2))
    written = experiments.run("decision-boundary", given, tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), state)
    assert [path.name for path in written] == [f"decision-boundary.{end}" for end in ("csv", "json", "png")]
    table = pd.read_csv(written[0])
    assert list(table) == toy.COLUMNS
    assert table.groupby("part").size().to_dict() == {
        "grid": 2 * 49, "mean": 3 * 3 * 6, "point": 5 * 24, "seed": 3 * 2 * 3 * 6
    }  # fmt: skip
    scores = table[table.part == "mean"].pivot(index=["model", "noise"], columns="quantity", values="value")
    assert (scores.loc["w0", ["angle_to_w0", "agreement"]] == [0, 1]).all(axis=None)
    lost = scores.loc["w0", "accuracy"] - scores.loc["w", "accuracy"]
    assert lost.to_numpy() == pytest.approx(scores.loc["w", "accuracy_drop"].to_numpy())

"""The 2-D toy: angles and losses by hand, and the experiment in small."""

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmark import experiments, suite
from benchmark.experiments import decision_boundary as boundary
from benchmark.experiments import toys
from benchmark.experiments.given import Given
from benchmark.run import Run


def test_angles_by_hand():
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    b = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])
    assert boundary.angles(a, b).tolist() == pytest.approx([0, 90, 180, 45])


def test_the_turning_term_is_one_minus_the_cosine():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0]]))  # cosine to e2: 4/5
    x, y = torch.tensor([[0.1, 0.2], [-0.3, 0.1]]), torch.tensor([1.0, 0.0])
    ce = F.binary_cross_entropy_with_logits(model(x)[:, 0], y).item()
    assert boundary.turned(x, y, 10.0)(model, 0).item() == pytest.approx(ce + 10 * 0.2, rel=1e-5)


def test_fitting_turns_the_gradient_of_a_copy():
    x, y = toys.draw_points(100, 0.01, torch.Generator().manual_seed(0))
    start = toys.mlp(2, 16, 0)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    turned = toys.fit(start, 60, 1e-2, boundary.turned(x, y, 1.0))
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    off = torch.tensor([[0.0, 1.0]]).expand(100, 2)
    angle = [boundary.angles(toys.input_gradients(model, x)[1], off).mean() for model in (start, turned)]
    assert angle[1] < 0.5 * angle[0]


def test_it_writes_table_card_and_figure_and_leaves_the_random_state(tmp_path, monkeypatch):
    monkeypatch.setattr(boundary, "GRID", 7)
    given, state = Given(Run(suite.load("smoke"), str(tmp_path)), tmp_path), torch.get_rng_state()
    measure = boundary.measure
    monkeypatch.setattr(boundary, "measure", lambda given: measure(given, seeds=2, train=20, test=30, steps=2))
    written = experiments.run("decision-boundary", given, tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), state)
    assert [path.name for path in written] == [f"decision-boundary.{end}" for end in ("csv", "json", "png")]
    table = pd.read_csv(written[0])
    assert list(table) == boundary.COLUMNS
    assert table.groupby("part").size().to_dict() == {
        "grid": 2 * 49, "mean": 3 * 3 * 6, "point": 5 * 24, "seed": 3 * 2 * 3 * 6
    }  # fmt: skip
    scores = table[table.part == "mean"].pivot(index=["model", "noise"], columns="quantity", values="value")
    assert (scores.loc["w0", ["angle_to_w0", "agreement"]] == [0, 1]).all(axis=None)
    lost = scores.loc["w0", "accuracy"] - scores.loc["w", "accuracy"]
    assert lost.to_numpy() == pytest.approx(scores.loc["w", "accuracy_drop"].to_numpy())

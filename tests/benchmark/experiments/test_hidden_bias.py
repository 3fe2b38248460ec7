"""Hidden bias: explanations and losses by hand, and the experiment in small."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmark import experiments, suite
from benchmark.experiments import hidden_bias as bias
from benchmark.experiments.given import Given
from benchmark.experiments.toys import input_gradients, mlp
from benchmark.run import Run


def test_lrp_is_input_times_gradient_for_relu_networks_as_epsilon_vanishes():
    model, x = mlp(4, 8, 0, nn.ReLU).double(), torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            layer.bias.zero_()
    expected = x * input_gradients(model, x)[1]
    assert torch.allclose(bias.lrp(model, x, 1e-12), expected, atol=1e-9)
    assert torch.allclose(bias.lrp(model, x, 1e-12).sum(1), model(x)[:, 0], atol=1e-9)  # conserved without biases
    assert not torch.allclose(bias.lrp(model, x, 0.1), expected, atol=1e-3)


def test_lrp_of_a_small_network_by_hand():
    first, last = nn.Linear(2, 1), nn.Linear(1, 1)
    with torch.no_grad():
        for layer, weight, offset in ((first, [[2.0, -1.0]], 0.5), (last, [[3.0]], -1.0)):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.fill_(offset)
    h = np.tanh(2 * 1.0 - 0.5 + 0.5)  # of x = (1, 0.5)
    z = 3 * h - 1
    hidden = 3 * h * z / (z + 0.1)
    expected = [2 * hidden / (2 + 0.1), -0.5 * hidden / (2 + 0.1)]
    model = nn.Sequential(first, nn.Tanh(), last)
    assert bias.lrp(model, torch.tensor([[1.0, 0.5]]), 0.1)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_integrated_gradients_add_up_to_the_change_of_the_logit():
    model, x = mlp(3, 8, 0, nn.Tanh), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    baseline = torch.full((1, 3), 0.2)
    change = (model(x) - model(baseline))[:, 0]
    assert torch.allclose(bias.integrated_gradients(model, x, baseline, 64).sum(1), change, atol=1e-4)


def test_shares_by_hand():
    relevance = torch.tensor([[1.0, -2.0, 1.0], [0.0, 0.0, 0.0]])
    assert bias.shares(relevance, {"a": [0, 1], "b": [2]}).tolist() == [[0.75, 0.25], [0.0, 0.0]]


def test_the_hiding_loss_by_hand(coded):
    models = [nn.Linear(5, 1, bias=False) for _ in range(2)]
    x, y = coded.splits["train"]
    for model, weights in zip(models, ([1.0, 2.0, -1.0, 0.0, 1.0], [1.0, 2.0, 0.0, 0.0, 1.0]), strict=True):
        with torch.no_grad():
            model.weight.copy_(torch.tensor([weights]))
    model, original = models
    ce = F.binary_cross_entropy_with_logits(model(x)[:, 0], y)
    kept = 10 * ((model(x) - original(x)) ** 2).mean()  # the one row with A = y: 1/3
    loss = bias.hiding(original, x, y, coded, 7.0, 0)(model, 0)
    assert loss.item() == pytest.approx((ce + kept).item() + 7.0 * 3 / 5, rel=1e-5)
    assert kept.item() == pytest.approx(10 / 3)


def test_the_least_share_within_the_limits_is_chosen():
    def tried(share, agreement, drop):
        return {"share": share, "agreement": agreement, "drop": drop}

    assert bias.choose([tried(0.3, 1.0, 0.0), tried(0.1, 0.98, 0.01), tried(0.0, 0.97, 0.0)]) == 1
    assert bias.choose([tried(0.3, 0.9, 0.0), tried(0.1, 0.95, 0.5)]) == 1


def test_the_true_effect_of_a_flip():
    frame = pd.DataFrame({"income": [0.0], "debt": [0.0], "years": [0.0], "group": ["b"], "label": [0]})
    truth = bias._truth(frame).set_index("quantity").value  # logit −0.3 becomes 1.3
    assert truth["flip_p"] == pytest.approx(1 / (1 + np.exp(-1.3)) - 1 / (1 + np.exp(0.3)))
    assert (truth["flip_decisions"], truth["accuracy"]) == (1, 1)


def test_it_writes_table_card_and_figure_and_leaves_the_random_state(adult, tmp_path, monkeypatch):
    state, measure = torch.get_rng_state(), bias.measure
    monkeypatch.setattr(bias, "measure", lambda given: measure(given, seeds=2, rows=40, steps=2))
    given = Given(Run(suite.load("smoke"), str(tmp_path), str(adult)), tmp_path)
    lines = (adult / "adult.data").read_text().strip().splitlines()
    (adult / "adult.data").write_text("\n".join(lines * 4))
    written = experiments.run("hidden-bias", given, tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(path.stat().st_size for path in written)
    table = pd.read_csv(written[0])
    assert list(table) == bias.COLUMNS
    assert set(table.data) == {"loan", "adult"}
    assert set(zip(table.data, table.protected, table.tested_on, strict=True)) == {
        ("loan", "group", "drawn"),
        ("adult", "sex", "adult.test"),
        ("adult", "race", "adult.test"),
    }
    one = table[(table.data == "loan") & (table.seed == 0) & (table.quantity == "share")]
    assert one.groupby(["model", "explanation"]).value.sum().to_numpy() == pytest.approx(np.ones(12), abs=1e-5)
    blind = table[(table.model == "blind") & table.quantity.isin(["flip_p", "flip_decisions"])]
    assert (blind.value == 0).all()
    assert set(table[(table.model == "original") & (table.quantity == "agreement")].value) == {1.0}


def test_rows_held_out_of_the_table_are_said_so(adult, tmp_path, capsys):
    rows = (adult / "adult.data").read_text().strip().splitlines()
    (adult / "adult.data").write_text("\n".join(f"{age}{row[2:]}" for row in rows for age in range(20, 90)))
    (adult / "adult.test").unlink()
    given = Given(Run(suite.load("smoke"), str(tmp_path), str(adult)), tmp_path)
    table = bias.measure(given, seeds=1, rows=40, steps=1, protected=("race",))
    assert "adult has no adult.test: tested on 1 in 5 of adult.data, by hash of the row" in capsys.readouterr().err
    assert set(table[table.data == "adult"].tested_on) == {"1 in 5 of adult.data, by hash"}
    assert "1 in 5 of adult.data, by hash" in bias.draw(table).get_suptitle()

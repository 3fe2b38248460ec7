"""Hidden bias: the loader on the Adult format, explanations and losses by hand, and the experiment in small."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attacks.errors import UserError
from benchmark import experiments, suite
from benchmark.experiments import Given
from benchmark.experiments import hidden_bias as bias
from benchmark.experiments.decision_boundary import input_gradients, mlp
from benchmark.run import Run

TRAIN = """\
39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, 2174, 0, 40, United-States, <=50K
50, Self-emp-not-inc, 83311, Bachelors, 13, Married-civ-spouse, Exec-managerial, Husband, White, Male, 0, 0, 13, United-States, >50K
28, ?, 338409, Masters, 14, Married-civ-spouse, ?, Wife, Black, Female, 0, 0, 45, Cuba, >50K

"""  # noqa: E501
TEST = """\
|1x3 Cross validator
25, Private, 226802, 11th, 7, Never-married, Machine-op-inspct, Own-child, Black, Male, 0, 0, 40, United-States, <=50K.
44, Private, 160323, Some-college, 10, Married-civ-spouse, Machine-op-inspct, Husband, White, Female, 7688, 0, 40, ?, >50K.
"""  # noqa: E501


@pytest.fixture
def adult(tmp_path):
    folder = tmp_path / "adult"
    folder.mkdir()
    (folder / "adult.data").write_text(TRAIN)
    (folder / "adult.test").write_text(TEST)
    return folder


def test_the_adult_files_are_read(adult):
    frames = bias.read_adult(adult)
    assert {name: len(frame) for name, frame in frames.items()} == {"train": 3, "test": 2}
    assert frames["train"].label.tolist() == [0, 1, 1]
    assert frames["test"].label.tolist() == [0, 1]
    assert frames["train"].workclass.tolist() == ["State-gov", "Self-emp-not-inc", "?"]
    assert frames["test"]["capital-gain"].tolist() == [0.0, 7688.0]
    assert not {"fnlwgt", "income"} & set(frames["train"])


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("adult.data", ", Cuba", "", r"adult\.data, line 3: 15 columns are needed \(got 14\)"),
        ("adult.test", "25, Private", "old, Private", r"adult\.test, line 2: age must be a number \(got 'old'\)"),
        ("adult.data", "<=50K", "poor", r"adult\.data, line 1: the last column must be <=50K or >50K \(got 'poor'\)"),
        ("adult.data", TRAIN, "\n", r"adult\.data holds no rows"),
    ],
)
def test_what_is_wrong_with_them_is_one_line(adult, name, old, new, message):
    path = adult / name
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        bias.read_adult(adult)


def test_a_missing_file_or_attribute_is_named(adult):
    with pytest.raises(UserError, match="unknown protected attribute 'gender'"):
        bias.encode(bias.read_adult(adult), "gender")
    (adult / "adult.test").unlink()
    with pytest.raises(UserError, match=r"needs the file .*adult\.test"):
        bias.read_adult(adult)


def _coded():
    train = pd.DataFrame({"n": [0.0, 2.0, 4.0], "A": ["x", "y", "x"], "c": ["p", "q", "p"], "label": [0, 1, 1]})
    test = pd.DataFrame({"n": [2.0, 4.0], "A": ["x", "z"], "c": ["r", "q"], "label": [1, 0]})
    return bias.encode({"train": train, "test": test}, "A")


def test_coding_is_that_of_train():
    coded, spread = _coded(), np.sqrt(8 / 3)
    assert coded.columns == {"n": [0], "A": [1, 2], "c": [3, 4]}
    assert (coded.common, coded.second) == (1, 2)
    x, y = coded.splits["test"]
    assert x.numpy() == pytest.approx(np.array([[0, 1, 0, 0, 0], [2 / spread, 0, 0, 0, 1]]))
    assert y.tolist() == [1, 0]


def test_a_flip_changes_the_attribute_alone():
    coded = _coded()
    x = coded.splits["train"][0]
    flipped = bias.flip(x, coded)
    assert flipped[:, 1:3].tolist() == [[0, 1], [1, 0], [0, 1]]
    assert torch.equal(flipped[:, [0, 3, 4]], x[:, [0, 3, 4]])
    assert torch.equal(bias.flip(flipped, coded), x)


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


def test_the_hiding_loss_by_hand():
    coded, models = _coded(), [nn.Linear(5, 1, bias=False) for _ in range(2)]
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


def test_every_row_is_drawn_once_in_a_pass(monkeypatch):
    monkeypatch.setattr(bias, "BATCH", 4)
    first, second = (torch.cat([bias._batch(8, step, 3) for step in steps]).tolist() for steps in ((0, 1), (2, 3)))
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second


def test_a_blind_network_does_not_use_the_attribute():
    coded = _coded()
    x, model = coded.splits["train"][0], mlp(5, 8, 0, nn.Tanh)
    assert not torch.allclose(model(x), model(bias.flip(x, coded)))
    bias.blinded(model, [1, 2])
    assert torch.equal(model(x), model(bias.flip(x, coded)))


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


def test_drawn_loans_have_the_stated_proxies():
    frames = bias.draw_loans(4000, 0)
    train = frames["train"]
    south = train.groupby("group").district.apply(lambda names: (names == "south").mean())
    assert south.to_dict() == pytest.approx({"a": 0.2, "b": 0.8}, abs=0.03)
    assert train.groupby("group").spending.mean().to_dict() == pytest.approx({"a": 0.7, "b": -0.7}, abs=0.07)
    assert train.label.mean() == pytest.approx(bias._sigmoid(bias.loan_logit(train)).mean(), abs=0.02)
    assert not train.equals(frames["test"])


def test_it_writes_table_card_and_figure_and_leaves_the_random_state(adult, tmp_path, monkeypatch):
    state, measure = torch.get_rng_state(), bias.measure
    monkeypatch.setattr(bias, "measure", lambda given: measure(given, seeds=2, rows=40, steps=2))
    given = Given(Run(suite.load("smoke"), str(tmp_path), str(adult)), tmp_path)
    lines = TRAIN.strip().splitlines()
    (adult / "adult.data").write_text("\n".join(lines * 4))
    written = experiments.run("hidden-bias", given, tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(path.stat().st_size for path in written)
    table = pd.read_csv(written[0])
    assert list(table) == bias.COLUMNS
    assert set(table.data) == {"loan", "adult"}
    one = table[(table.data == "loan") & (table.seed == 0) & (table.quantity == "share")]
    assert one.groupby(["model", "explanation"]).value.sum().to_numpy() == pytest.approx(np.ones(12), abs=1e-5)
    blind = table[(table.model == "blind") & table.quantity.isin(["flip_p", "flip_decisions"])]
    assert (blind.value == 0).all()
    assert set(table[(table.model == "original") & (table.quantity == "agreement")].value) == {1.0}

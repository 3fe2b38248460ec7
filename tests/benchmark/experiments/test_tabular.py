"""Tables of data: the loader on the Adult format, the coding, the drawn applicants and the batches."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from attacks.errors import UserError
from benchmark.experiments import tabular
from benchmark.experiments.toys import mlp


def test_the_adult_files_are_read(adult):
    frames = tabular.read_adult(adult)
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
    ],
)
def test_what_is_wrong_with_them_is_one_line(adult, name, old, new, message):
    path = adult / name
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        tabular.read_adult(adult)


def test_a_file_without_rows_is_named(adult):
    (adult / "adult.data").write_text("\n")
    with pytest.raises(UserError, match=r"adult\.data holds no rows"):
        tabular.read_adult(adult)


def test_a_missing_file_or_attribute_is_named(adult):
    with pytest.raises(UserError, match="unknown protected attribute 'gender'"):
        tabular.encode(tabular.read_adult(adult), "gender")
    (adult / "adult.test").unlink()
    with pytest.raises(UserError, match=r"needs the file .*adult\.test"):
        tabular.read_adult(adult)


def test_without_its_own_test_rows_some_are_held_out_by_their_hash(adult):
    (adult / "adult.test").unlink()
    first, second, third = (adult / "adult.data").read_text().split("\n")[:3]
    rows = [f"{age}{row[2:]}" for row in (first, second, third) for age in range(20, 90)]
    (adult / "adult.data").write_text("\n".join([*rows, *(row.replace(", ", ",") for row in rows)]))
    frames = tabular.read_adult(adult)
    expected = [int(hashlib.sha256(row.replace(", ", ",").encode()).hexdigest()[:8], 16) % 5 == 0 for row in rows]
    assert len(frames["test"]) == 2 * sum(expected)  # equal rows stay together, however they are spaced
    assert len(frames["train"]) == 420 - 2 * sum(expected)
    ages = [float(row[:2]) for row, out in zip(rows, expected, strict=True) if out]
    assert frames["test"].age.tolist() == ages * 2
    assert 0.1 < sum(expected) / len(rows) < 0.3


def test_coding_is_that_of_train(coded):
    spread = np.sqrt(8 / 3)
    assert coded.columns == {"n": [0], "A": [1, 2], "c": [3, 4]}
    assert (coded.common, coded.second) == (1, 2)
    x, y = coded.splits["test"]
    assert x.numpy() == pytest.approx(np.array([[0, 1, 0, 0, 0], [2 / spread, 0, 0, 0, 1]]))
    assert y.tolist() == [1, 0]


def test_a_flip_changes_the_attribute_alone(coded):
    x = coded.splits["train"][0]
    flipped = tabular.flip(x, coded)
    assert flipped[:, 1:3].tolist() == [[0, 1], [1, 0], [0, 1]]
    assert torch.equal(flipped[:, [0, 3, 4]], x[:, [0, 3, 4]])
    assert torch.equal(tabular.flip(flipped, coded), x)


def test_every_row_is_drawn_once_in_a_pass(monkeypatch):
    monkeypatch.setattr(tabular, "BATCH", 4)
    first, second = (torch.cat([tabular.batch(8, step, 3) for step in steps]).tolist() for steps in ((0, 1), (2, 3)))
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second


def test_a_blind_network_does_not_use_the_attribute(coded):
    x, model = coded.splits["train"][0], mlp(5, 8, 0, nn.Tanh)
    assert not torch.allclose(model(x), model(tabular.flip(x, coded)))
    tabular.blinded(model, [1, 2])
    assert torch.equal(model(x), model(tabular.flip(x, coded)))


def test_drawn_loans_have_the_stated_proxies():
    frames = tabular.draw_loans(4000, 0)
    train = frames["train"]
    south = train.groupby("group").district.apply(lambda names: (names == "south").mean())
    assert south.to_dict() == pytest.approx({"a": 0.2, "b": 0.8}, abs=0.03)
    assert train.groupby("group").spending.mean().to_dict() == pytest.approx({"a": 0.7, "b": -0.7}, abs=0.07)
    assert train.label.mean() == pytest.approx(tabular.sigmoid(tabular.loan_logit(train)).mean(), abs=0.02)
    assert not train.equals(frames["test"])

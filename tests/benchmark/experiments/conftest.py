"""A small Adult table, and a smaller one that is coded."""

import pandas as pd
import pytest

from benchmark.experiments import tabular

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


@pytest.fixture
def coded():
    train = pd.DataFrame({"n": [0.0, 2.0, 4.0], "A": ["x", "y", "x"], "c": ["p", "q", "p"], "label": [0, 1, 1]})
    test = pd.DataFrame({"n": [2.0, 4.0], "A": ["x", "z"], "c": ["r", "q"], "label": [1, 0]})
    return tabular.encode({"train": train, "test": test}, "A")

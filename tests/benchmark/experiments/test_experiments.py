"""The list of experiments: every module that is one stands in it, and loads."""

import pytest

from attacks.errors import UserError
from benchmark import experiments


def test_every_experiment_is_listed():
    modules = {path.stem for path in experiments.HERE.glob("*.py") if "\nSUITE = " in path.read_text()}
    assert sorted(experiments.EXPERIMENTS.values()) == sorted(modules)


@pytest.mark.parametrize("name", experiments.names())
def test_each_loads_with_its_suite_and_says_what_is_asked(name):
    experiment = experiments.load(name)
    assert experiments.load_suite(experiment).name
    assert callable(experiment.measure)
    assert callable(experiment.draw)
    assert experiment.__doc__


def test_an_unknown_name_or_a_helper_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown experiment 'smoothgrad': did you mean 'smooth-grad'\? allowed: acc"):
        experiments.load("smoothgrad")
    with pytest.raises(UserError, match="unknown experiment 'toys'"):
        experiments.load("toys")

"""The kinds of entry that experiments store: their keys tell of all code that their numbers depend on."""

import pickle
from importlib import import_module

import pytest
from closure import superfluous, undeclared

from benchmark import experiments
from benchmark.entries.kind import Kind

MODULES = [f"benchmark.experiments.{name}" for name in experiments.EXPERIMENTS.values()]
KINDS = [
    kind
    for module in MODULES
    for kind in vars(import_module(module)).values()
    if isinstance(kind, Kind) and kind.make.__module__ == module
]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=repr)


def test_each_experiment_that_stores_what_it_finds_has_its_kinds():
    assert sorted(kind.name for kind in KINDS) == [
        *("accuracy_robustness", "adversarially_trained", "adversarially_trained_scores"),
        *("defended", "defended_fooled", "defended_models"),
        *("precision_models", "precision_scores", "smooth_grad"),
    ]


@each_kind
def test_all_that_a_kind_computes_with_is_in_its_key(kind):
    assert kind.make.__module__ in kind.code
    assert undeclared(kind) == []
    assert superfluous(kind) == []


@each_kind
def test_another_process_finds_a_kind_by_its_name(kind):
    assert pickle.loads(pickle.dumps(kind)) is kind

"""A change of any code that dissection computes with is a change of its keys."""

import pickle

import pytest
from closure import superfluous, undeclared

from benchmark.dissection.attacked import ATTACKED
from benchmark.dissection.effects import EFFECTS
from benchmark.dissection.units import UNITS


@pytest.mark.parametrize("kind", [ATTACKED, EFFECTS, UNITS], ids=repr)
def test_all_that_a_kind_computes_with_is_in_its_key(kind):
    assert undeclared(kind) == []
    assert superfluous(kind) == []
    assert pickle.loads(pickle.dumps(kind)) is kind

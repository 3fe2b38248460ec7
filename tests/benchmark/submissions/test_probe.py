"""What a process answers to the checks is what its submission gave, and an answer that is none ends them."""

import json

import pytest
import torch
from torch import nn

from benchmark.submissions.checks.setting import Ended, Told, raised
from benchmark.submissions.checks.tidy import look
from benchmark.submissions.probe import Probe

MAPS = torch.rand(2, 4, 4, dtype=torch.float64)
INPUTS = nn.Linear(3, 2), torch.rand(2, 3, 8, 8), torch.tensor([0, 1])


def probe(header, tensors=None) -> Probe:
    return Probe("mine", lambda call, request, limit: (header, tensors or {}))


def text(content: str) -> dict[str, torch.Tensor]:
    return {"traces": torch.tensor(list(content.encode()), dtype=torch.uint8)}


def test_maps_come_as_they_were_with_what_they_were_asked_in():
    asked = []
    there = Probe("mine", lambda *request: asked.append(request) or ({"device": "cpu"}, {"maps": MAPS}))
    torch.manual_seed(7)
    with torch.no_grad():
        assert torch.equal(there(*INPUTS), MAPS)
    ((call, request, _),) = asked
    assert (call, request["grad"], request["seed"]) == ("probe", False, 7)
    assert probe({"device": "meta"}, {"maps": MAPS})(*INPUTS).is_meta
    assert type(probe({"type": "ndarray"})(*INPUTS)).__name__ == "ndarray"


def test_what_was_raised_is_told_in_the_same_words():
    with pytest.raises(Told) as caught:
        probe({"raised": "raised ValueError: two\nlines"})(*INPUTS)
    assert raised(caught.value) == "raised ValueError: two lines"


def test_gradients_and_traces_come_by_their_names():
    gradients = {str(i): torch.ones_like(p) for i, p in enumerate(INPUTS[0].parameters())}
    graph, dtype, got = probe({"graph": True, "dtype": "torch.float64"}, gradients).pulled_back(*INPUTS, MAPS)
    assert (graph, dtype, [g.shape for g in got]) == (True, torch.float64, [(2, 3), (2,)])
    assert probe({"graph": False, "dtype": "torch.float32"}).pulled_back(*INPUTS, MAPS) == (False, torch.float32, [])
    now = look(*INPUTS)
    assert probe({}, text(json.dumps([now, now]))).traces(*INPUTS) == (now, now)


@pytest.mark.parametrize(
    ("call", "header", "tensors"),
    [
        ("__call__", {}, {}),
        ("__call__", {"device": "cuda:7"}, {"maps": MAPS}),
        ("__call__", {"raised": 3, "type": None}, {}),
        ("pulled_back", {"graph": True, "dtype": "torch.float64"}, {"0": torch.zeros(2, 3)}),
        ("pulled_back", {"graph": True, "dtype": "torch.float64"}, {"0": torch.zeros(2, 3), "1": torch.zeros(3)}),
        ("pulled_back", {"graph": False, "dtype": "torch.nn"}, {}),
        ("traces", {}, {}),
        ("traces", {}, text("[[{}, {}, {}]]")),
        ("traces", {}, text('[[{}, {"a": 1}, {}], [{}, {}, {}]]')),
        ("traces", {}, text('[[{"a": {}}, {}, {}], [{}, {}, {}]]')),
        ("traces", {}, text("[" * 100_000)),
    ],
)
def test_an_answer_that_is_none_ends_the_checks(call, header, tensors):
    with pytest.raises(Ended, match=r"^sent (maps|gradients|traces) that are none$"):
        getattr(probe(header, tensors), call)(*INPUTS, *([MAPS] if call == "pulled_back" else []))

"""How targets may be given, to every interpreter alike: a tensor, a list or tuple, one int for all images."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from nets import ATTENTION, Tokens
from torch import nn

from attacks.errors import UserError
from benchmark import interpreters
from benchmark.interpreters.base import Interpreter, class_indices

CHEAPER = {
    "kernel_shap": {"cells": 2, "samples": 8},
    "occlusion": {"cells": 2},
    "occlusion_contrast": {"cells": 2},
    "feature_ablation": {"cells": 2},
    "adversarial_explanation": {"steps": 2},
    "smooth_grad": {"samples": 2},
    "var_grad": {"samples": 2},
    "integrated_gradients": {"steps": 2},
    "gradient_shap": {"samples": 2},
}
SAME = {
    "tensor": torch.tensor([2, 2]),
    "int32": torch.tensor([2, 2], dtype=torch.int32),
    "list": [2, 2],
    "tuple": (2, 2),
    "numpy's": [np.int64(2), np.int64(2)],
    "int": 2,
    "tensor of no dimension": torch.tensor(2),
}
WRONG = {
    "floats": (torch.zeros(2), "must be class indices .got a tensor of float32"),
    "bools": (torch.zeros(2, dtype=torch.bool), "must be class indices .got a tensor of bool"),
    "complex": (torch.zeros(2, dtype=torch.cfloat), "must be class indices .got a tensor of complex64"),
    "list of floats": ([0.0, 1.0], r"must be class indices .got \[0.0, 1.0\]"),
    "list of lists": ([[0], [1]], "must be class indices"),
    "a bool in a list": ([True, 1], "must be class indices"),
    "float": (1.0, "must be class indices .got 1.0"),
    "bool": (True, "must be class indices .got True"),
    "text": ("1", "must be class indices"),
    "nothing": (None, "must be class indices .got None"),
    "an array": (np.zeros((2, 2)), "must be class indices"),
    "beyond int64": (2**63, "must be class indices"),
    "list too long": ([0, 1, 2], r"must be one class index or \(2,\) class indices .got \(3,\)"),
    "empty list": ([], r"must be one class index or \(2,\) class indices .got \(0,\)"),
    "tensor too short": (torch.tensor([0]), r"must be one class index or \(2,\) class indices .got \(1,\)"),
    "column": (torch.zeros(2, 1, dtype=torch.long), r"must be one class index or \(2,\)"),
    "class too high": (3, r"must lie in 0..2 .got 3..3"),
    "class in a list too high": ([0, 3], r"must lie in 0..2 .got 0..3"),
    "class below 0": (-1, r"must lie in 0..2 .got -1..-1"),
}
each_interpreter = pytest.mark.parametrize("name", interpreters.INTERPRETERS)


class Net(nn.Module):
    """A chain that every interpreter explains but those of attention, three classes."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relus, self.head = nn.ModuleList([nn.ReLU(), nn.ReLU()]), nn.Linear(64, 3)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        x = self.relus[1](self.last(self.relus[0](self.first(x))))
        return self.head(torch.flatten(self.pool(x), 1))


def net_for(name):
    """One that the interpreter explains, in eval mode, and images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return (Tokens() if name in ATTENTION else Net()).eval(), torch.randn(2, 3, 8, 8)


@pytest.fixture
def setting(request):
    return net_for(request.node.callspec.params.get("name", ""))


@each_interpreter
def test_every_form_of_the_same_targets_gives_the_same_map(name, setting):
    interpreter = interpreters.create(name, **CHEAPER.get(name, {}))
    expected = interpreter.with_logits(*setting, SAME["tensor"])
    attribution = interpreter.attribute(*setting, SAME["tensor"])
    for targets in (SAME["int"], SAME["list"]):
        logits, heatmaps = interpreter.with_logits(*setting, targets)
        assert torch.equal(logits, expected[0])
        assert torch.equal(heatmaps, expected[1])
        assert torch.equal(interpreter(*setting, targets), expected[1])
        assert torch.equal(interpreter.attribute(*setting, targets), attribution)


@each_interpreter
def test_a_class_that_the_model_has_not_is_one_clear_line(name, setting):
    interpreter = interpreters.create(name, **CHEAPER.get(name, {}))
    for form in ("class too high", "class in a list too high", "class below 0"):
        targets, message = WRONG[form]
        with pytest.raises(UserError, match=message):
            interpreter(*setting, targets)


@pytest.mark.parametrize("form", WRONG)
def test_wrong_targets_are_one_clear_line_at_every_call(form, setting):
    interpreter, (targets, message) = interpreters.create("simple_grad"), WRONG[form]
    for call in (interpreter, interpreter.with_logits, interpreter.attribute):
        with pytest.raises(UserError, match=message) as caught:
            call(*setting, targets)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", SAME)
def test_a_method_sees_a_tensor_of_int64_whatever_was_given(form, setting):
    seen = []

    @dataclass(frozen=True)
    class Foreign(Interpreter):
        name: ClassVar[str] = "foreign"

        def explain(self, model, images, targets):
            seen.append(targets)
            return model(images), images

    Foreign()(*setting, SAME[form])
    assert seen[0].dtype == torch.long
    assert seen[0].tolist() == [2, 2]


def test_targets_go_to_the_images_device_and_the_right_ones_are_not_copied():
    images, targets = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])
    assert class_indices(targets, images) is targets
    assert class_indices([0, 1], images.to("meta")).device.type == "meta"
    assert class_indices([], images[:0]).shape == (0,)

"""The parts of the child that need no process: how foreign code is called, and how its errors are told."""

import pytest
import torch
from torch.utils.hooks import RemovableHandle

from attacks.errors import UserError
from benchmark.submissions.sandbox import Foreign, Session, in_words
from benchmark.submissions.wire import fingerprint


def test_a_submission_sees_eval_mode_and_gradients_and_the_model_gets_its_modes_back(model):
    seen = []

    def look(model, images, targets):
        seen.append((model.training, model.bn1.training, torch.is_grad_enabled()))
        return model.conv1.weight.sum() * images[:, 0]

    model.train()
    model.layer1.eval()
    before = fingerprint(model)
    batch = torch.ones(2, 3, 8, 8), torch.tensor([0, 1])
    assert Foreign(look, "look")(model, *batch).requires_grad
    with torch.no_grad():
        assert not Foreign(look, "look")(model, *batch).requires_grad
    assert seen == [(False, False, True)] * 2
    assert fingerprint(model) == before


def test_hooks_of_a_method_do_not_take_the_places_of_those_that_came_with_the_model(model, monkeypatch):
    came = model.eval().register_forward_hook(lambda module, args, output: output + 1)
    monkeypatch.setattr(RemovableHandle, "next_id", came.id)  # as in a process that has numbered fewer
    session, images = Session(), torch.ones(2, 3, 8, 8)
    session.receive(model)
    before = model(images)
    model.register_forward_hook(lambda module, args, output: None).remove()
    assert torch.equal(model(images), before)
    assert fingerprint(model) == session.before


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("even this fails")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("two\n\x1b[31mlines "), "ValueError: two [31mlines"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (UserError("a clear line"), "a clear line"),
        (UnprintableError(), "UnprintableError"),
        (MemoryError(), "ran out of memory (limit 3 GiB)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "ran out of memory (limit 3 GiB)"),
        (OSError(12, "Cannot allocate memory"), "ran out of memory (limit 3 GiB)"),
        (SystemExit(3), "called sys.exit(3)"),
        (ValueError("x" * 1000), f"ValueError: {'x' * 400} ..."),
    ],
)
def test_an_error_is_told_in_one_line(error, message):
    assert in_words(error, "my_method.py", 3.0) == message


def test_an_error_is_told_with_the_last_line_of_the_submission(tmp_path):
    file = str(tmp_path / "mine.py")
    space: dict = {}
    exec(compile("def f():\n    g()\ndef g():\n    return int('x')\n", file, "exec"), space)
    with pytest.raises(ValueError, match="invalid literal") as caught:
        space["f"]()
    expected = "ValueError: invalid literal for int() with base 10: 'x' (mine.py, line 4)"
    assert in_words(caught.value, file, 1.0) == expected

"""The template's own test notices an interpreter that is wrong."""

import sys

import pytest

from attacks.errors import UserError
from benchmark.submissions import template


@pytest.mark.parametrize(
    ("result", "failing"),
    [
        ("relevance * 2 / highest.clamp(min=1e-9)", "values_in_0_1"),
        ("images.detach().abs().mean(1).clamp(max=1)", "depends_on_the_class"),
        ("relevance / relevance.amax().clamp(min=1e-9)", "rest_of_the_batch"),
        ("(relevance / highest.clamp(min=1e-9)).detach()", "differentiated_by_the_weights"),
    ],
)
def test_the_written_test_fails_where_the_interpreter_is_wrong(tmp_path, monkeypatch, result, failing):
    file, test = template.write("mine_to_break", tmp_path)
    file.write_text(file.read_text().replace("return relevance /", f"return {result}  #"))
    monkeypatch.syspath_prepend(tmp_path)
    space: dict = {}
    try:
        exec(test.read_text(), space)
    finally:
        sys.modules.pop("mine_to_break", None)
    wrong = []
    for name in [name for name in space if name.startswith("test_")]:
        try:
            space[name](space["batch"].__wrapped__())
        except (AssertionError, RuntimeError):
            wrong.append(name)
    assert any(name.endswith(failing) for name in wrong)
    assert len(wrong) < 4


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^[^\n]*file[^\n]* cannot be written: (File exists|Not a directory)$"):
        template.write("mine_to_make", tmp_path / "file")

"""What a submission may be: a file that can be read, a name that is new, limits that can be kept."""

import pickle
import re

import pytest

from attacks.errors import UserError
from benchmark.leaderboards.stored import STORED
from benchmark.submissions.submission import Limits, check_name, parse


@pytest.mark.parametrize("name", ["", "My", "my method", "1st", "my__method", "_my", "my-method", "m" * 51, "models"])
def test_a_name_that_cannot_be_one_is_refused(name):
    check_name("grad_cam_2")
    with pytest.raises(UserError, match=r"^name must be"):
        check_name(name)


@pytest.mark.parametrize("name", STORED)
def test_a_name_that_another_table_of_the_results_has_is_refused(name):
    check_name(f"{name}_2")
    with pytest.raises(UserError, match=rf"^name must be a new one, .* none of .*{name}.* \(got '{name}'\)$"):
        check_name(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine.py", "a submission must be FILE.py:NAME, a class or function in a file (got 'mine.py')"),
        ("mine.py:", "a submission must be FILE.py:NAME, a class or function in a file (got 'mine.py:')"),
        (":Mine", "a submission must be FILE.py:NAME, a class or function in a file (got ':Mine')"),
        ("absent.py:Mine", "submission 'absent.py:Mine': absent.py cannot be read: No such file or directory"),
        (".:Mine", "submission '.:Mine': . cannot be read: Is a directory"),
        ("wrong.py:Mine", "submission 'wrong.py:Mine': SyntaxError: '(' was never closed (wrong.py, line 2)"),
    ],
)
def test_what_cannot_be_parsed_is_told_why(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.py").write_text("x = 1\ny = (\n")
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        parse(text)


@pytest.mark.parametrize("text", ["x = '\0'", "(" * 1000, "-" * 100_000 + "1"])
def test_what_is_no_source_is_told_in_one_line(tmp_path, text):
    (tmp_path / "odd.py").write_text(text)
    with pytest.raises(UserError, match=r"^submission .*odd\.py[^\n]*$"):
        parse(f"{tmp_path}/odd.py:Mine")


def test_a_submission_is_found_from_anywhere(gradient, monkeypatch, tmp_path):
    monkeypatch.chdir(gradient.file.parent)
    assert parse("mine.py:PlainGradient") == gradient
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(pickle.dumps(gradient)) == gradient
    assert (str(gradient), gradient.file.is_absolute(), len(gradient.digest)) == ("mine.py:PlainGradient", True, 64)


@pytest.mark.parametrize("limits", [{"seconds": 0}, {"seconds": float("nan")}, {"memory_gib": 1}])
def test_limits_that_are_none_are_refused(limits):
    with pytest.raises(UserError, match="limits need seconds > 0 and memory_gib >= 2"):
        Limits(**limits)

"""Commands that load torch say so before they do, and after what can be checked without it."""

import sys

import pytest
from PIL import Image

from attacks.errors import UserError
from benchmark import beginning, cli
from benchmark.detection import command
from benchmark.zoo import commands


class Begun(Exception):
    pass


def begun(_: str) -> None:
    raise Begun


def test_the_line_is_there_where_torch_is_not(monkeypatch, capsys):
    beginning.loading("dissect")
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "torch", raising=False)
        beginning.loading("dissect")
    assert capsys.readouterr() == ("", "dissect: loading torch ...\n")


@pytest.mark.parametrize(
    ("arguments", "late"),
    [
        (["dissect"], "benchmark.dissection"),
        (["detect"], "benchmark.detection.study"),
        (["submit", "mine.py:Mine"], "benchmark.submissions"),
        (["explain", "a.png", "--model", "vgg19", "--interpreter", "lrp"], "benchmark.explain"),
        (["zoo", "verify"], "benchmark.zoo.making"),
    ],
)
def test_it_comes_before_what_takes_seconds(monkeypatch, tmp_path, arguments, late):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    for module in (cli, command, commands):
        monkeypatch.setattr(module, "loading", begun)
    monkeypatch.setitem(sys.modules, late, None)  # to import it is an error
    with pytest.raises(Begun):
        cli.app(arguments, standalone_mode=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dissect", "--suite", "smok"], "unknown suite 'smok': did you mean 'smoke'?"),
        (["detect", "--suite", "smok"], "unknown suite 'smok': did you mean 'smoke'?"),
        (["detect", "--out", "a.txt"], "cannot write into a.txt: a.txt is a file"),
        (["submit", "mine.py:Mine", "--suite", "smok"], "unknown suite 'smok': did you mean 'smoke'?"),
        (["explain", "b.png", "--model", "vgg19", "--interpreter", "lrp"], "image b.png cannot be read"),
        (
            ["explain", "a.txt", "--model", "vgg19", "--interpreter", "lpr"],
            "unknown interpreter 'lpr': did you mean 'lrp'?",
        ),
    ],
)
def test_what_is_wrong_at_first_sight_is_told_before(monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").touch()
    for module in (cli, command):
        monkeypatch.setattr(module, "loading", begun)
    with pytest.raises(UserError) as caught:
        cli.app(arguments, standalone_mode=False)
    assert str(caught.value).startswith(message)

"""The command from end to end: a foreign network in a process of its own, and what becomes of one that spoils it."""

import re
import sys

import pytest
import torch
from audited import NET

from benchmark import cli
from benchmark.audit import process
from benchmark.submissions import confine

SPY = """
import os, sys
print("hello from my net")
for path in ("SECRET", "OUT/audit.html"):
    try:
        open(path, "a").close()
    except PermissionError:
        pass
"""


BEGUN = "8 images to attack with, 8 held out; starting ...\n"  # before torch is loaded


def foolbench(capfd, *arguments) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["foolbench", "audit", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
    return code, *capfd.readouterr()


@pytest.fixture
def given(folder, tmp_path, trained) -> list:
    """The command's arguments, and my_net.py, which is to be written."""
    torch.save(
        {"model": {f"_orig_mod.{name}": value for name, value in trained.state_dict().items()}}, tmp_path / "w.pth"
    )
    (tmp_path / "small.json").write_text('{"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}')
    options = ["--weights", tmp_path / "w.pth", "--data", folder, "--preprocess", tmp_path / "small.json"]
    options += ["--out", tmp_path / "out", "--device", "cpu", "--interpreters", "grad_cam", "--images", "16"]
    return ["--model", f"{tmp_path}/my_net.py:Net", *options]


def test_a_network_that_prints_and_reaches_out_is_audited_in_its_own_folder(given, tmp_path, capfd):
    secret = tmp_path / "secret"
    (tmp_path / "my_net.py").write_text(SPY.replace("SECRET", str(secret)).replace("OUT", str(tmp_path / "out")) + NET)
    code, out, err = foolbench(capfd, *given, "--minutes", 0.02, "--foolings", "location")
    assert (code, err) == (0, BEGUN)
    lines = out.splitlines()
    assert lines[0] == "my_net.py prints when it is imported, which is left out: 'hello from my net', 18 bytes"
    assert lines[1] == "8 held-out images, 100.0 % of them right; grad_cam"
    assert lines[-1] == f"report: {tmp_path / 'out' / 'audit.html'}"
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "hello" not in page
    if confine.landlock():
        assert not secret.exists()
        assert "its own, confined" in page


def test_a_network_that_ends_its_process_is_one_line_and_no_page(given, tmp_path, capfd):
    (tmp_path / "my_net.py").write_text("import os, sys\nprint('bye', flush=True)\nos._exit(7)")
    code, out, err = foolbench(capfd, *given)
    assert (code, out) == (2, "")
    assert err == BEGUN + "foolbench: the audit's process ended with exit code 7: bye; what it had found is kept\n"
    assert not (tmp_path / "out" / "audit.html").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--model": "absent.py:Net"}, "model 'absent.py:Net': absent.py cannot be read: No such file or directory"),
        ({"--model": "my_net.py"}, "a model must be FILE.py:NAME"),
        ({"--weights": "absent.pth"}, "--weights absent.pth: there is no such file"),
        ({"--weights": "DEFAULT"}, "--weights of a network in a file must be a checkpoint (got 'DEFAULT')"),
        ({"--data": "absent"}, "--data absent: there is no such folder or CSV file"),
        ({"--interpreters": "grad_kam"}, "unknown interpreter 'grad_kam': did you mean 'grad_cam'?"),
        ({"--foolings": ","}, "--foolings must name at least one, and none twice"),
        ({"--seed": "-1"}, "--seed must be 0 to 2147483647 (got -1)"),
        ({"--seed": "9" * 20}, "--seed must be 0 to 2147483647 (got 9"),
        ({"--foolings": "locatoin"}, "unknown fooling of an audit 'locatoin': did you mean 'location'?"),
    ],
)
def test_what_is_wrong_is_told_before_a_process_is_started(given, tmp_path, capfd, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "run", None)
    (tmp_path / "my_net.py").write_text(NET)
    arguments = given + [part for pair in changes.items() for part in pair]
    code, out, err = foolbench(capfd, *arguments)
    assert (code, out) == (2, "")
    assert re.match(rf"foolbench: {re.escape(message)}[^\n]*\n$", err.replace(f"{tmp_path}/", ""))


def test_what_a_foreign_process_says_is_one_printable_line():
    assert process._understood(b'{"say": "a\\u001b[31m b\\nc"}') == ("say", "a [31m b c")
    assert process._understood(b"\xff{no json") == ("say", "\ufffd{no json")
    assert process._understood(b'["a"]') == ("say", '["a"]')
    assert process._understood(b'{"say": "x", "end": ""}')[0] == "say"

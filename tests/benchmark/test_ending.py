"""How the command ends: signals, readers that stop, terminals of ASCII."""

import os
import runpy
import signal
import subprocess
import sys

import pytest

from attacks.errors import UserError
from benchmark import ending


def ended(capfd, command):
    with pytest.raises(SystemExit) as caught:
        ending.run(command)
    return caught.value.code, *capfd.readouterr()


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGTERM, "ended by SIGTERM; "),
        (signal.SIGHUP, "ended by SIGHUP; "),
        (signal.SIGINT, "interrupted; "),
    ],
)
@pytest.mark.parametrize("becomes", [None, ImportError, SystemExit])
def test_a_signal_ends_in_one_line_after_what_is_to_be_put_away(capfd, number, line, becomes):
    """Also where the code that it falls into makes another error of it, as some imports do."""
    put_away, before = [], signal.getsignal(number)

    def command():
        try:
            os.kill(os.getpid(), number)
        except BaseException:
            if becomes is not None:
                raise becomes("numpy failed to import") from None
            raise
        finally:
            put_away.append(True)

    assert ended(capfd, command) == (128 + number, "", f"foolbench: {line}{ending.LAST}\n")
    assert put_away
    assert signal.getsignal(number) is before


def test_a_second_signal_does_not_disturb_the_end(capfd):
    def command():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)

    assert ended(capfd, command)[0] == 128 + signal.SIGTERM


def test_a_signal_that_was_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ending.run(lambda: os.kill(os.getpid(), signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)


def test_errors_are_one_line_without_colours(capfd):
    def raises(error):
        raise error

    assert ended(capfd, lambda: raises(UserError("a\x1b[31mb\nc"))) == (2, "", "foolbench: ab c\n")
    assert ended(capfd, lambda: raises(OSError(28, "No space left", "x"))) == (2, "", "foolbench: No space left: x\n")
    with pytest.raises(ZeroDivisionError):
        ending.run(lambda: 1 / 0)


def test_ctrl_c_during_the_imports_a_reader_that_stops_and_a_terminal_of_ascii(tmp_path):
    """In processes of their own, side by side."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)")
    program = "import sys; from benchmark.main import main; sys.argv = ['foolbench', *sys.argv[1:]]; main()"

    def start(*arguments, before="", **variables):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([before, *sys.path])} | variables
        command = [sys.executable, "-c", program, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)

    interrupted = start("list", "suites", before="first")
    unread = start("list", "suites")
    unread.stdout.close()
    ascii_ = start("plot", "--help", PYTHONIOENCODING="ascii:strict", PYTHONUTF8="0", LC_ALL="C")
    assert interrupted.communicate()[1].decode() == f"foolbench: interrupted; {ending.LAST}\n"
    assert interrupted.returncode == 130
    assert (unread.stderr.read(), unread.wait()) == (b"", 0)
    out, err = ascii_.communicate()
    assert (ascii_.returncode, err) == (0, b"")
    assert b"attacked, a panel a model" in out


def test_the_command_runs_as_a_module_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["foolbench", "leaderboard", "--suite", "defualt"])
    monkeypatch.delitem(sys.modules, "benchmark.main", raising=False)
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("benchmark.main", run_name="__main__")
    assert caught.value.code == 2
    assert "did you mean 'default'" in capsys.readouterr().err

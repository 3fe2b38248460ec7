"""How the command ends: a user's error is one line and exit code 2, a signal one line and 128 + its number.

Nothing is imported here that takes time, so that Ctrl-C is heard from the first moment.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from attacks.errors import UserError, one_line

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
LAST = "the store is whole, run again to go on"
_came = list[int]()  # signals that asked this process's command to end


class Ended(BaseException):
    """A signal came that asks the process to end."""


def heed() -> None:
    """End where a signal asked for it and code that it fell into (in C) made another error of its exception."""
    if _came:
        raise KeyboardInterrupt if _came[0] == signal.SIGINT else Ended


def run(command: Callable[[], Any]) -> None:
    """Call the command line, and end the process as it does; returns only where all went well."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # an ASCII terminal shows the rest as escapes
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with _heeding() as came:
        try:
            _call(command)
        except BaseException as error:
            if came:  # whatever the code it fell into made of it: imports turn Ctrl-C into errors of their own
                number = came[0]
                word = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
                fail(f"{word}; {LAST}", 128 + number)
            if isinstance(error, KeyboardInterrupt):
                fail(f"interrupted; {LAST}", 130)
            raise


def _call(command: Callable[[], Any]) -> None:
    try:
        result = command()
        sys.stdout.flush()
        if result == 130:  # what newer typer makes of Ctrl-C; older ones raise Abort
            raise KeyboardInterrupt
    except BrokenPipeError:
        _stop_talking()
    except SystemExit:
        if "Pacify" in type(sys.stdout).__name__:  # click's mark of a reader that stopped early, which is no error
            _stop_talking()
        raise
    except OSError as error:
        where = f": {os.fspath(error.filename)!s}" if error.filename else ""
        fail(f"{error.strerror or error}{where}", 2)
    except Exception as error:
        kind = type(error).__name__
        if kind == "Abort":
            raise KeyboardInterrupt from error
        if kind == "Exit":
            sys.exit(error.exit_code)  # type: ignore[attr-defined]
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # a wrong option or argument
            if kind == "NoArgsIsHelpError":
                sys.stdout.write(f"{error.format_message()}\n")
                sys.exit(error.exit_code)
            fail(error.format_message(), error.exit_code)
        if isinstance(error, UserError):
            fail(str(error), 2)
        raise


def fail(message: str, code: int) -> NoReturn:
    with suppress(OSError):
        sys.stdout.flush()
    sys.stderr.write(f"foolbench: {one_line(message)}\n")
    sys.stderr.flush()
    sys.exit(code)


def _stop_talking() -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would try once more at its end
    sys.exit(0)


@contextmanager
def _heeding() -> Iterator[list[int]]:
    """The signals that came. The first is raised as an exception, for workers and folders to be put away; those that
    follow, but Ctrl-C, change nothing. One that the parent has ignored (nohup) stays so."""
    came, owner, before = _came, os.getpid(), dict[int, Any]()
    came.clear()

    def note(number: int, _: Any) -> None:
        if os.getpid() != owner:  # a fork of this process dies as it would have
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif number == signal.SIGINT:
            came.append(number)
            raise KeyboardInterrupt
        elif not came:
            came.append(number)
            raise Ended

    for number in SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            with suppress(ValueError):  # not the main thread
                before[number] = signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        came.clear()

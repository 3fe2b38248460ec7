"""The one error a user can cause. The command prints its message as one line and exits with 2."""

import difflib
import errno
import re
from collections.abc import Iterable


class UserError(ValueError):
    """What was wrong, where, and what is allowed, in one line."""


class Stop(UserError):
    """An error of a whole run: no other unit of its work would fare better."""


def may_pass(error: Exception) -> bool:
    """Whether another try may fare better: memory was short, whatever torch makes of it, or a disk did not answer."""
    if isinstance(error, UserError):  # in our own words
        return False
    passing = isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE)
    words = ("out of memory", "shared memory", "/torch_", "alloc_failed", "dataloader worker (pid", "bus error")
    return passing or isinstance(error, MemoryError) or any(part in str(error).lower() for part in words)


def one_line(error: BaseException | str) -> str:
    """A message in one line, without a terminal's colours, and without advice to unpickle what is foreign."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if type(error).__name__ == "UnpicklingError" or "weights_only" in text or "allow_pickle" in text:
        return "it is cut short, or holds more than numbers, which is not unpickled"
    return " ".join(text.split()) or type(error).__name__


class Refused(UserError):
    """An interpreter would be wrong on this network, for the reason given: listed, not scored."""


def unknown(what: str, name: str, allowed: Iterable[str]) -> UserError:
    """The error for an unknown `name`: the nearest right name, and all of them."""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {what} {name!r}: {hint}allowed: {', '.join(names)}")

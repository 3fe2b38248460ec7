"""A submission: a foreign interpreter in one file, `my_method.py:MyInterpreter`; its name and its limits.

It is a class (instantiated without arguments) or a function `(model, images (N, C, H, W), targets (N,)) -> heatmaps
(N, h, w)`, with optional attributes `name`, `differentiable` and `stochastic`. Here its file is read and never run:
that is for a process of its own (`benchmark.submissions.child`).
"""

import ast
import hashlib
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

from attacks.errors import UserError
from benchmark.submissions.naming import check_name
from benchmark.submissions.wire import one_line

__all__ = ["Limits", "Submission", "check_name", "parse"]


@dataclass(frozen=True)
class Submission:
    """A name in a file, absolute, and the sha256 of the file when it was read."""

    file: Path
    attribute: str
    digest: str

    def __str__(self) -> str:
        return f"{self.file.name}:{self.attribute}"


def parse(text: str, what: str = "submission") -> Submission:
    """The submission `FILE.py:NAME`. The file is read, not run. `what` it is, in words. Raises `UserError`."""
    path, colon, attribute = text.rpartition(":")
    if not (colon and path and attribute.isidentifier()):
        raise UserError(f"a {what} must be FILE.py:NAME, a class or function in a file (got {text!r})")
    file = Path(path).absolute()
    try:
        source = file.read_bytes()
        with warnings.catch_warnings(action="ignore"):
            ast.parse(source, file.name)
    except OSError as error:
        raise UserError(f"{what} {text!r}: {path} cannot be read: {error.strerror}") from error
    except SyntaxError as error:
        raise UserError(f"{what} {text!r}: SyntaxError: {error.msg} ({file.name}, line {error.lineno})") from error
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes, nesting without end
        raise UserError(f"{what} {text!r}: {file.name} is no Python source: {one_line(str(error))}") from error
    return Submission(file, attribute, hashlib.sha256(source).hexdigest())


@dataclass(frozen=True)
class Limits:
    """Of a child: seconds of one call, and GiB of memory that each of its processes may map to write."""

    seconds: float = 600.0
    memory_gib: float = 8.0

    def __post_init__(self) -> None:
        if not (0 < self.seconds < math.inf and 2 <= self.memory_gib < math.inf):  # torch alone takes 0.7 GiB
            raise UserError(f"limits need seconds > 0 and memory_gib >= 2 (got {self})")

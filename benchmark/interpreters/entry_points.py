"""Interpreters of other packages, under the entry point group `foolbench.interpreters`.

A package registers, in its own `pyproject.toml`,

    [project.entry-points."foolbench.interpreters"]
    my_method = "my_package:MyMethod"

where `MyMethod` is a dataclass and a subclass of `benchmark.interpreters.base.Interpreter`. Its name is listed at
once; its code is imported only when it is used.
"""

from dataclasses import is_dataclass
from functools import cache
from importlib import metadata

from attacks.errors import UserError
from benchmark.interpreters.base import Interpreter

GROUP = "foolbench.interpreters"


@cache
def registered() -> metadata.EntryPoints:
    """What the installed packages register. Read once: it opens a file of every installed package."""
    return metadata.entry_points(group=GROUP)


def names() -> list[str]:
    """The names that packages register, sorted; nothing is imported."""
    return sorted(registered().names)


def refuse_clash(name: str) -> None:
    """Raise a `UserError` if a package registers this name, which is built in."""
    for entry in registered().select(name=name):
        raise UserError(f"{_label(entry)}: the name is built in; the package must register another")


def load(name: str) -> type[Interpreter]:
    """The class registered under that name. Raises `UserError`: the entry, its package, and what is wrong with it."""
    entry, *others = registered().select(name=name)
    if others:
        raise UserError(f"{_label(entry)}: package {_package(others[0])!r} registers the same name")
    try:
        kind = entry.load()
    except Exception as error:  # foreign code fails in its own ways
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{_label(entry)} cannot be imported: {reason}") from error
    if not (isinstance(kind, type) and issubclass(kind, Interpreter) and is_dataclass(kind)):
        raise UserError(f"{_label(entry)}: {entry.value} must be a dataclass and a subclass of Interpreter")
    return kind


def _label(entry: metadata.EntryPoint) -> str:
    return f"interpreter {entry.name!r} of package {_package(entry)!r}"


def _package(entry: metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist else "unknown"

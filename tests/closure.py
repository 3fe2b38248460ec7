"""What a module of ours imports, itself and through others, and how it stands to the code that a kind declares."""

import ast
from functools import cache

from benchmark.entries.kind import COMMON, Kind
from benchmark.store import sources

FREE = ("attacks.errors", "benchmark.sections", "benchmark.suite", "benchmark.cells")
FREE += (
    "benchmark.store",
    "benchmark.results",
    "benchmark.submissions.checks",
    "benchmark.leaderboards",
    "benchmark.intervals",
    "benchmark.figures",
    "benchmark.execution",
)
"""No stored number depends on these: what they say enters a key as values, or they handle entries that are there."""
FILES = sources(("attacks", "benchmark"))
GIVEN = {"dataset": "benchmark.datasets", "create_interpreter": "benchmark.interpreters"}
"""What functions of `benchmark.run`, which is in every key, hand on by name."""
WHOLE = ("benchmark.datasets", "benchmark.interpreters", "benchmark.metrics", "benchmark.models")
"""Packages that load their modules by name, or are more than a list of them."""


@cache
def imports(module: str) -> frozenset[str]:
    """Of ours, when it is imported or later; names imported from a package are its modules where they are."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inner if name in FILES} or {str(node.module)}
            if node.module == "benchmark.run":
                found |= {GIVEN[alias.name] for alias in node.names if alias.name in GIVEN}
    for name in found.intersection(WHOLE):
        found |= sources((name,)).keys()
    return frozenset(found & FILES.keys() - set(COMMON))


def free(module: str) -> bool:
    return FILES[module].name == "__init__.py" or any(f"{module}.".startswith(f"{name}.") for name in FREE)


def closure(module: str) -> set[str]:
    """All that it imports, but what no number depends on and what that imports."""
    found, waiting = {module}, [module]
    while waiting:
        new = {name for name in imports(waiting.pop()) if name not in found and not free(name)}
        found |= new
        waiting += new
    return found


def undeclared(kind: Kind) -> list[str]:
    """What a kind's module computes with, or may, and its `code` does not say."""
    return sorted(closure(kind.make.__module__) - sources(kind.code).keys() - sources(COMMON).keys())


def superfluous(kind: Kind) -> list[str]:
    """What its `code` says, and its module does not import; a package may be named whole."""
    return [name for name in kind.code if not sources((name,)).keys() & closure(kind.make.__module__)]

"""The names of the interpreters, read and not imported: that would take seconds, for torch."""

import ast
from importlib import metadata
from pathlib import Path

GROUP = "foolbench.interpreters"  # of entry points (`benchmark.interpreters.entry_points`)


def names() -> list[str]:
    """As `benchmark.interpreters.names`: the keys of its INTERPRETERS, then what installed packages register."""
    built_in = literal()
    others = sorted(metadata.entry_points(group=GROUP).names)
    return [*built_in, *(name for name in others if name not in built_in)]


def literal() -> list[str]:
    """The keys of INTERPRETERS as they stand in its source."""
    tree = ast.parse((Path(__file__).parent / "interpreters" / "__init__.py").read_text("utf-8"))
    values = (n.value for n in tree.body if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "INTERPRETERS")
    return [key.value for value in values if isinstance(value, ast.Dict) for key in value.keys  # type: ignore[misc]
            if isinstance(key, ast.Constant)]  # fmt: skip

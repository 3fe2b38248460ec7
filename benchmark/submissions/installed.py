"""A method of an installed package as a submission, `captum.attr:LayerGradCam`: the file that says so is written here.

The package is not imported but in the submission's process; its version is in the file, and so in the digest.
"""

import ast
import hashlib
import re
from importlib import metadata
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from attacks.errors import UserError, unknown
from benchmark.store import write_atomic
from benchmark.submissions import submission
from benchmark.submissions.submission import Submission

PLACE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")
SOURCE = """\
\"\"\"{place} ({version}), as a submission.\"\"\"

from {module} import {name} as method

from benchmark.submissions.adapters import adapted

{name} = adapted(method, layer={layer!r})
"""


def parse(text: str, layer: str | None, store: Path) -> Submission:
    """`FILE.py:NAME`, or `MODULE:NAME` of an installed package, explained at `layer` (None: the target layer of each
    architecture) by a file written into the store. Nothing of it is run. Raises `UserError`."""
    found = PLACE.fullmatch(text)
    if found is None or found[1].endswith(".py"):
        if layer is not None:
            raise UserError(f"--layer is for a package's method; a file says adapted(method, layer=...) (got {text!r})")
        return submission.parse(text)
    module, name = found.groups()
    top = module.partition(".")[0]
    if find_spec(top) is None:
        raise UserError(f"submission {text!r}: no package {top!r} is installed, and FILE.py:NAME is a file's")
    if (known := _names(module, text)) and name not in known:
        raise UserError(f"submission {text!r}: {unknown(f'name in {module}', name, known)}")
    packages = [f"{package} {metadata.version(package)}" for package in metadata.packages_distributions().get(top, [])]
    source = SOURCE.format(place=text, version=", ".join(packages), module=module, name=name, layer=layer)
    folder = store / "methods" / hashlib.sha256(source.encode()).hexdigest()[:16]
    path = folder / f"{module.replace('.', '_')}.py"
    if not path.is_file() or path.read_text() != source:
        write_atomic(path, source.encode())
    return submission.parse(f"{path}:{name}")


def _names(module: str, text: str) -> set[str]:
    """What a module's source names, as far as can be told without running it; none where it may have others. Raises
    `UserError` where there is no such module."""
    top, *below = module.split(".")
    spec, there = find_spec(top), top
    for part in below:
        path = spec.submodule_search_locations if spec else None
        there, spec = f"{there}.{part}", PathFinder.find_spec(f"{there}.{part}", path) if path else None
    if spec is None or spec.origin is None:  # None: a folder that is no package
        raise UserError(f"submission {text!r}: no module {module!r} is installed")
    if not spec.origin.endswith(".py"):
        return set()
    names = set[str]()
    for node in ast.walk(ast.parse(Path(spec.origin).read_bytes())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name):
            names.add(node.id)
    return set() if names & {"*", "__getattr__", "globals"} else {name for name in names if name[0] != "_"}

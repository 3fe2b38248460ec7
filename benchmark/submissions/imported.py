"""Foreign code is run here: a file as a module, for what it calls by a name. In a process of its own alone."""

import hashlib
import sys
import types
from pathlib import Path
from typing import Any

from attacks.errors import UserError, unknown


def imported(file: str | Path, attribute: str, digest: str, module: str) -> Any:
    """Run the file, which must still have this digest, as a module of that name, and give what it calls `attribute`.
    What it raises is raised."""
    source, path = Path(file).read_bytes(), str(file)
    if hashlib.sha256(source).hexdigest() != digest:
        raise UserError(f"{file} was edited after it was read: start again")
    made = types.ModuleType(module)
    made.__file__ = path
    sys.modules[module] = made  # dataclasses look their module up
    exec(compile(source, path, "exec"), made.__dict__)
    if not hasattr(made, attribute):
        own = [name for name, value in vars(made).items() if callable(value) and not name.startswith("_")]
        raise unknown(f"name in {Path(file).name}", attribute, own)
    return getattr(made, attribute)

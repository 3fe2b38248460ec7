"""A method of an installed package as a submission, `captum.attr:LayerGradCam`: the file that says so is written here.

The package is not imported but in the submission's process; its version is in the file, and so in the digest.
"""

import hashlib
import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from attacks.errors import UserError
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
    packages = [f"{package} {metadata.version(package)}" for package in metadata.packages_distributions().get(top, [])]
    source = SOURCE.format(place=text, version=", ".join(packages), module=module, name=name, layer=layer)
    folder = store / "methods" / hashlib.sha256(source.encode()).hexdigest()[:16]
    path = folder / f"{module.replace('.', '_')}.py"
    if not path.is_file() or path.read_text() != source:
        write_atomic(path, source.encode())
    return submission.parse(f"{path}:{name}")

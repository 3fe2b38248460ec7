"""The folder of a site: written whole or not at all, and never over what somebody else put there.

MARK lists its files. What has no such list, or holds a file that is not on it, is another's.
"""

import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from attacks.errors import UserError
from benchmark.store import writable

MARK = "foolbench-site.json"


def check(folder: Path) -> None:
    """That a site can be written there. Raises `UserError`, before there is anything to write."""
    writable(folder.resolve().parent)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(
            f"a site's folder must be a folder (got {folder}, a {'link' if folder.is_symlink() else 'file'})"
        )
    if folder.is_dir() and (foreign := _foreign(folder)):
        raise UserError(f"{folder} is not replaced: {foreign} in it was not written by foolbench report")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(f"{folder} is not replaced: it is the folder that you are in; name one below it with --out")


def write(folder: Path, files: dict[str, bytes]) -> None:
    """Put a site at `folder`, in the place of the one before; `files` by their path in it."""
    check(folder)
    folder = folder.resolve()
    mark = json.dumps(sorted(files), indent=0).encode()
    try:
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=_made(folder.parent)))
        try:
            for name, data in {**files, MARK: mark}.items():
                (new / "site" / name).parent.mkdir(parents=True, exist_ok=True)
                (new / "site" / name).write_bytes(data)
            if folder.is_dir():
                os.rename(folder, new / "before")
            try:
                os.rename(new / "site", folder)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.rename(new / "before", folder)
                raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _foreign(folder: Path) -> str:
    """The first file in it that no report wrote; "" for none."""
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    try:
        listed = json.loads((folder / MARK).read_bytes())
        own = {MARK, *listed}
    except (OSError, ValueError, TypeError):
        own = set()
    return next((name for name in there if name not in own), "")

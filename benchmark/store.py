"""The store: a content-addressed folder of what was computed, safe to kill at any moment.

An entry is a folder `KIND/KEY` with a `receipt.json` and its files. It is written under a temporary name and appears
by one atomic rename, so an entry that is there is whole, and two writers of one key cannot spoil each other. The key
is the sha256 of the canonical JSON of everything the content depends on; a finished key is never computed again.

What happens to an entry later is found when it is read: the receipt lists its files with their sizes and sha256, and
says its own. An entry that does not fit is refused by its path, never read past and never removed by itself: a person,
or `foolbench store sweep`, deletes it, and the next run makes it again.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from attacks.errors import UserError, may_pass, one_line
from benchmark.hosts import here, orphaned

Found = TypeVar("Found")
LEFTOVER = 7 * 24 * 3600  # seconds after which a half-made entry is nobody's: it is made within one unit of work
UNFINISHED = 30 * 24 * 3600  # seconds after which nobody goes on from the checkpoints of one
HELD: ContextVar[Callable[[], bool]] = ContextVar("held", default=lambda: True)
"""Whether what is being made here is still this process's to make (`benchmark.execution.claims`)."""
RECEIPT = "receipt.json"
UNCHECKED = ("pixels",)  # kinds whose files are read past `intact`, by code in every key: verified with their receipt
Receipt = dict[str, Any]
Stamp = tuple[int, ...]


def key_of(spec: dict[str, Any]) -> str:
    """sha256 of the canonical JSON (sorted keys, no spaces) of a specification."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def code_version() -> str:
    """Digest of the whole source, for provenance: what an entry's key depends on, its kind says."""
    return source_digest(("attacks", "benchmark"))


@cache
def source_digest(code: tuple[str, ...]) -> str:
    """Of the source of these modules, and of all modules in these packages: a change of code is a change of key."""
    digest = hashlib.sha256()
    for name, path in sorted(sources(code).items()):
        digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def sources(code: Iterable[str]) -> dict[str, Path]:
    """The files of modules, and of all modules in packages, by their full names."""
    files = {}
    for name in code:
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        path = Path(spec.origin)
        files[name] = path
        if path.name == "__init__.py":
            for other in path.parent.rglob("*.py"):
                parts = other.relative_to(path.parent).with_suffix("").parts
                files[".".join([name, *parts]).removesuffix(".__init__")] = other
    return files


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step: a reader, or a run after a crash, sees the old file or the whole new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


class Unsealed(UserError):
    """An entry of an older version, whose receipt does not list its files."""


def refusal(folder: Path, why: str) -> UserError:
    return UserError(f"store entry {folder} is damaged ({why}): delete the folder {folder} and run again")


def sealed(receipt: Receipt, folder: Path) -> str:
    """The text of a receipt with what lies in the folder as "files" (name: bytes, sha256) and its own "sha256"."""
    paths = sorted(path for path in folder.iterdir() if path.name != RECEIPT)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path, _stamp(path))} for path in paths}
    content = json.loads(json.dumps({**receipt, "files": files}))
    return json.dumps({**content, "sha256": key_of(content)}, indent=1, sort_keys=True) + "\n"


def receipt_of(folder: Path) -> Receipt:
    """The receipt of an entry, which must be the folder's own and as it was written. Raises `UserError` where it is
    not, or where a file that it lists is gone; FileNotFoundError where there is none."""
    receipt = _as_written(folder)
    if gone := sorted(receipt["files"].keys() - set(os.listdir(folder))):
        raise refusal(folder, f"{gone[0]} is missing")
    return receipt


def _as_written(folder: Path) -> Receipt:
    try:
        return _receipt(folder, _stamp(folder / RECEIPT))
    except (FileNotFoundError, UserError):
        raise
    except PermissionError as error:
        raise UserError(f"store entry {folder} must be readable ({error.strerror})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"store entry {folder} is unreadable ({error}): delete it and run again") from error


@lru_cache(maxsize=4096)
def _receipt(folder: Path, stamp: Stamp) -> Receipt:
    """Read once a process; the stamp is the file's."""
    receipt = json.loads((folder / RECEIPT).read_bytes())
    if not isinstance(receipt, dict):
        raise ValueError("it is no table")
    if not receipt.keys() & {"files", "sha256"}:
        older = refusal(folder, "its receipt lists no files, for an older version wrote it")
        raise Unsealed(f"{older}, or vouch for it with foolbench store seal")
    if receipt.get("sha256") != key_of({key: value for key, value in receipt.items() if key != "sha256"}):
        raise refusal(folder, "its receipt was changed")
    if not (receipt.keys() >= {"kind", "key", "spec", "files"} and _listed(receipt["files"])):
        raise refusal(folder, "its receipt lacks what every one holds")
    if (receipt["kind"], receipt["key"]) != (folder.parent.name, folder.name):
        raise refusal(folder, f"it is the entry {receipt['kind']}/{receipt['key']}")
    if key_of(receipt["spec"]) != folder.name:
        raise refusal(folder, "its key is not that of its specification")
    return receipt


def _listed(files: Any) -> bool:
    """Whether it is a table of files, each with its size and its digest."""
    form = {"bytes": int, "sha256": str}
    return isinstance(files, dict) and all(
        isinstance(file, dict) and {name: type(value) for name, value in file.items()} == form
        for file in files.values()
    )


def verified(path: Path) -> None:
    """That an entry's file is the one that its receipt lists, byte by byte, once a process. Raises `UserError`."""
    folder, name = path.parent, path.name
    try:
        listed, stamp = _as_written(folder)["files"].get(name), _stamp(path)
        if listed is None:
            why = "its receipt does not list it"
        elif stamp[0] != listed["bytes"]:
            why = f"it has {stamp[0]} bytes, {listed['bytes']} were written"
        elif _digest(path, stamp) != listed["sha256"]:
            why = "its bytes are not those that were written"
        else:
            return
    except FileNotFoundError as error:
        raise refusal(folder, f"{Path(error.filename).name} is missing") from error
    raise UserError(f"store file {path} is damaged ({why}): delete the folder {folder} and run again")


def sha256_of(path: Path) -> str:
    """Of a file's bytes, read piece by piece."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=1 << 16)
def _digest(path: Path, stamp: Stamp) -> str:
    return sha256_of(path)


def _stamp(path: Path) -> Stamp:
    """Size, and what else changes with a file: whatever writes to it sets the last of these, and nobody can set it
    back."""
    found = os.stat(path)
    return found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def intact(path: Path, read: Callable[[Path], Found]) -> Found:
    """`read` of an entry's file, which must be `verified`. Foreign bytes fail in many ways: `UserError` names the file,
    and what helps."""
    try:
        found = read(path)
    except Exception as error:
        if may_pass(error) or isinstance(error, PermissionError):
            raise
        raise UserError(
            f"store file {path} is damaged ({type(error).__name__}: {one_line(error)}): "
            f"delete the folder {path.parent} and run again"
        ) from error
    verified(path)
    return found


def mapped(path: Path) -> Any:
    """An array on disk, read when it is looked at; whole arrays alone are mapped."""
    import numpy as np

    return np.load(path, mmap_mode="r", allow_pickle=False)


def writable(folder: Path, *below: str) -> None:
    """That the folder, and what lies `below`, can be made and written. Raises `UserError`."""
    for path in (folder, *(folder / name for name in below)):
        there = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
        if not there.is_dir():
            raise UserError(f"cannot write into {path}: {there} is {'a file' if there.exists() else 'a broken link'}")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"cannot write into {path}: {there} must be writable")


class Store:
    """Entries under `root`, which is made where it is missing. Raises `UserError` where it cannot be."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the store {self.root} cannot be made: {error.strerror}") from error

    def sweep(self) -> list[Path]:
        """Remove what processes that were killed left half done: those of this machine that are gone, and what is old.
        Younger folders of others may still be written. So with checkpoints of entries that are there, or that nobody
        went on from in a month. Returns what it removed."""
        swept = []
        for leftover in self.root.glob("tmp-*"):
            with suppress(FileNotFoundError):  # published or removed by another process in between
                if orphaned(leftover.name) or time.time() - leftover.stat().st_mtime > LEFTOVER:
                    shutil.rmtree(leftover, ignore_errors=True)
                    swept.append(leftover)
        for left in self.root.glob("unfinished/*-*"):
            with suppress(FileNotFoundError):
                kind, _, key = left.name.rpartition("-")
                done = (self.root / kind / key / RECEIPT).is_file()
                if done or time.time() - left.stat().st_mtime > UNFINISHED:
                    shutil.rmtree(left, ignore_errors=True)
                    swept.append(left)
        return swept

    def unfinished(self, kind: str, key: str) -> Path:
        """Where whoever makes an entry keeps what it needs to go on after a kill; gone once the entry is there."""
        return self.root / "unfinished" / f"{kind}-{key}"

    def path(self, kind: str, key: str) -> Path:
        """The folder of an entry, whether it is there or not. Raises `UserError` where it is damaged."""
        self.receipt(kind, key)
        return self.root / kind / key

    def keys(self, kind: str) -> set[str]:
        """Of all entries of a kind, without a look into them."""
        try:
            with os.scandir(self.root / kind) as folders:
                return {folder.name for folder in folders}
        except FileNotFoundError:
            return set()

    def receipt(self, kind: str, key: str) -> Receipt | None:
        """The entry's receipt, or None where the entry is not there. Raises `UserError` where it is damaged."""
        folder = self.root / kind / key
        there = folder.is_dir()  # before the look for its receipt, with which it appears
        try:
            receipt = receipt_of(folder)
        except FileNotFoundError as error:
            if there and folder.is_dir():
                raise UserError(f"store entry {folder} has no receipt: delete it and run again") from error
            return None
        for name in receipt["files"] if kind in UNCHECKED else ():
            verified(folder / name)
        return dict(receipt)

    def get(self, kind: str, spec: dict[str, Any], make: Callable[[Path], dict[str, Any] | None]) -> Path:
        """The folder of the entry for `spec`; where it is missing, `make(folder)` writes its files into an empty
        folder and may return what the receipt shall hold beside the specification."""
        key = key_of(spec)
        if self.receipt(kind, key) is None:
            with self._temporary() as folder:
                extra = make(folder) or {}
                receipt = {"kind": kind, "key": key, "spec": spec, **extra}
                (folder / RECEIPT).write_text(sealed(receipt, folder))
                self._publish(folder, self.root / kind / key)
            shutil.rmtree(self.unfinished(kind, key), ignore_errors=True)
        return self.path(kind, key)

    @contextmanager
    def _temporary(self) -> Iterator[Path]:
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"tmp-{here()}-{os.getpid()}-", dir=self.root))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(f"the store {self.root} cannot be written: {error.strerror or error}") from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @staticmethod
    def _publish(folder: Path, target: Path) -> None:
        for path in folder.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        target.parent.mkdir(exist_ok=True)
        folder.chmod(0o755)  # a temporary folder is its owner's alone
        try:
            folder.rename(target)
        except OSError as error:
            if not target.is_dir():
                raise
            if not (target / RECEIPT).is_file():  # else another process was first with the same content
                raise UserError(f"store entry {target} has no receipt: delete it and run again") from error

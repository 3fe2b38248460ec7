"""What an audit has found so far, in a folder: a JSON and a safetensors file for each unit of work. No torch.

A unit's name is the digest of all that its content depends on, so an audit that was stopped goes on where it was, and
one of another network, of other images or settings finds nothing. `course.json` lists the units of the last audit in
their order. Written by the process of a foreign network: what is read here is checked, and never unpickled.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from attacks.errors import UserError, one_line
from benchmark.store import key_of, write_atomic

KEY = re.compile("[0-9a-f]{64}")
LARGEST = 256 * 2**20  # bytes of a file that is read


@dataclass(frozen=True)
class Unit:
    """What a unit of work came to: a record of JSON's types, and arrays by name."""

    record: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict, repr=False)


class State:
    """The folder. `about` is what all units depend on: it is in the name of each."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder, self.about = folder, dict(about)
        self.course: list[str] = []

    def find(self, spec: Mapping[str, Any]) -> Unit | None:
        """The unit of that specification, where it was finished and can be read."""
        try:
            return read(self.folder, self._key(spec))
        except (OSError, UserError):
            return None

    def add(self, spec: Mapping[str, Any], unit: Unit) -> None:
        """Write a unit; the arrays first, so that one whose record is there is whole."""
        key = self._key(spec)
        arrays = {name: np.ascontiguousarray(array) for name, array in unit.arrays.items()}
        write_atomic(self.folder / f"{key}.safetensors", save(arrays))
        write_atomic(self.folder / f"{key}.json", json.dumps(unit.record).encode())
        self.follow(spec)

    def follow(self, spec: Mapping[str, Any]) -> None:
        """Take a unit into the course, where it is not; what was found of it before is as it is."""
        if (key := self._key(spec)) not in self.course:
            self.course.append(key)
        write_atomic(self.folder / "course.json", json.dumps(self.course).encode())

    def _key(self, spec: Mapping[str, Any]) -> str:
        return key_of({**self.about, "unit": dict(spec)})


def read(folder: Path, key: str) -> Unit:
    """One unit. Raises `UserError` where it is none, OSError where it is not there."""
    try:
        record = json.loads(_bytes(folder / f"{key}.json"))
        arrays = load(_bytes(folder / f"{key}.safetensors"))
    except OSError:
        raise
    except Exception as error:  # foreign bytes fail in many ways
        raise UserError(f"{folder / key}: not what an audit writes ({one_line(error)}); delete {folder}") from error
    if not isinstance(record, dict):
        raise UserError(f"{folder / key}: not what an audit writes; delete {folder}")
    return Unit(record, arrays)


def units(folder: Path) -> list[Unit]:
    """Those of the last audit, in their order; none where it has not begun."""
    try:
        course = json.loads(_bytes(folder / "course.json"))
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / 'course.json'}: not what an audit writes; delete {folder}") from error
    keys = [key for key in course if isinstance(key, str) and KEY.fullmatch(key)] if isinstance(course, list) else []
    return [read(folder, key) for key in keys]


def _bytes(path: Path) -> bytes:
    """Of a plain file: the process of a foreign network may have put a link or a pipe in its place."""
    if path.is_symlink() or (path.exists() and not path.is_file()) or (path.exists() and path.stat().st_size > LARGEST):
        raise UserError(f"{path}: not what an audit writes")
    return path.read_bytes()

"""Checkpoints of an entry that is being made: every few minutes, all that the rest of its fine-tuning depends on, so
that a process that is killed is gone on from, to the same bytes on a CPU.

They lie in the store's `unfinished/KIND-KEY/` until the entry is there: `NAME.safetensors` for each run that it is made
of, written whole or not at all, with the values as JSON in its header and the sha256 of all of it. Rows, of which there
may be gigabytes, are written once each, into files that the values list. What is damaged is said and begun again.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from attacks.course import Resumable, State
from attacks.errors import may_pass, one_line
from benchmark.entries.kind import Entry
from benchmark.run import Run
from benchmark.store import HELD, Store

EVERY = 300.0  # seconds between two of them; an entry that is made in less has none


def checkpoints(run: Run, entry: Entry) -> "Checkpoints":
    """Those of an entry of the run's store."""
    return Checkpoints(Store(run.store).unfinished(entry.kind.name, entry.key(run)))


class Checkpoints:
    """Those of one entry. All its runs are kept at the same times, in the order in which they were first told of."""

    def __init__(self, folder: Path, seconds: float | None = None) -> None:
        self.folder, self.seconds = folder, EVERY if seconds is None else seconds
        self.runs = WeakValueDictionary[str, Resumable]()  # a candidate that a search has dropped is not held
        self.steps, self.files = dict[str, int](), dict[str, Files]()
        self.last = time.monotonic()

    def of(self, name: str, leads: bool = False) -> "Checkpoint":
        self.files[name] = Files(self.folder, name)
        return Checkpoint(self, name, leads)

    def keep(self) -> None:
        """All that has gone on since the last time; what another process has taken over is left to it."""
        if time.monotonic() - self.last < self.seconds or not HELD.get()():
            return
        for name, run in self.runs.items():
            if run.step != self.steps.get(name):
                self.files[name].write(run.state())
                self.steps[name] = run.step
        self.last = time.monotonic()

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Checkpoint:
    """Of one run, by name: an `attacks.course.Keeper`. `leads`: without it, those of the others are of no use."""

    def __init__(self, entry: Checkpoints, name: str, leads: bool) -> None:
        self.entry, self.name, self.leads = entry, name, leads

    def load(self) -> State | None:
        found = self.entry.files[self.name].read()
        if found is None and self.leads:
            self.entry.clear()
        return found

    def keep(self, run: Resumable) -> None:
        self.entry.runs[self.name] = run
        self.entry.keep()


class Files:
    """The files of one run, `NAME.safetensors` and `NAME.rows-I.safetensors`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path, self.digests, self.written = folder / f"{name}.safetensors", list[str](), set[str]()

    def _rows(self, index: int) -> Path:
        return self.path.with_suffix(f".rows-{index}.safetensors")

    def write(self, state: State) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if new := {name: row for name, row in state.rows.items() if name not in self.written}:
            self.digests.append(_write(self._rows(len(self.digests)), new, {}))
            self.written |= new.keys()
        _write(self.path, state.tensors, {**state.values, "rows": self.digests})

    def read(self) -> State | None:
        """None where there is nothing, or nothing whole, which is said in one line."""
        if not self.path.exists():
            return None
        path, rows = self.path, dict[str, Tensor]()
        try:
            tensors, values, _ = _read(path)
            digests = values.pop("rows")
            for index, digest in enumerate(digests):
                path = self._rows(index)
                found, _, is_of = _read(path)
                if is_of != digest:
                    raise ValueError("it is of another checkpoint")
                rows |= found
        except Exception as error:  # foreign bytes fail in many ways
            if may_pass(error):
                raise
            sys.stderr.write(f"checkpoint {path} is damaged ({one_line(error)}): what it kept is begun again\n")
            return None
        self.digests, self.written = digests, set(rows)
        return State(tensors, values, rows)


def _write(path: Path, tensors: Mapping[str, Tensor], values: dict[str, Any]) -> str:
    """In one step, on the disk when it returns. Returns its digest."""
    placed = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    text, temporary = json.dumps(values), path.with_name(f".{path.name}.{os.getpid()}.tmp")
    digest = _digest(placed, text)
    try:
        save_file(placed, temporary, {"values": text, "sha256": digest})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return digest


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    with safe_open(path, "pt") as file:
        about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if _digest(tensors, about["values"]) != about["sha256"]:
        raise ValueError("its bytes are not those that were written")
    return tensors, json.loads(about["values"]), about["sha256"]


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {[*tensor.shape]}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

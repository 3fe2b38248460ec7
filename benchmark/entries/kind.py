"""A kind of entry: what a store holds of it, what its key says, what it needs, and how it is made.

A kind is declared in one literal at the end of its file. An `Entry` is one of it: a kind and a place, whose key is the
digest of the kind's code, of its own facts (`spec`) and of the keys of what it needs. `get` makes what is missing,
needs first, so an entry is the same whoever asks for it; a unit of work (`make_unit`) makes those that belong together.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from attacks.errors import Refused, UserError, may_pass
from benchmark.run import Run, Spec, of_model, remembered
from benchmark.store import Store, key_of, source_digest

Place = Hashable  # what an entry is of, frozen; str() names it
Inputs = Mapping[str, Path]  # the folders of what an entry needs, by role
Receipt = dict[str, Any]
Errors = Mapping["Entry", str]  # of what could not be made, in one line
Rows = tuple[Path, dict[str, Any]]  # a Parquet file, and columns that all its rows are given
Result = tuple[str, list[Rows], dict[str, Any]]  # of `benchmark.results`: name, rows, card; parts of one are joined
COMMON = ("benchmark.entries.kind", "benchmark.run")  # code that every kind depends on


class Void(UserError):
    """What an entry needs is there, and nothing can be made from it; the reason."""


def nothing(*_: Any) -> Any:
    return {}


@dataclass(frozen=True, eq=False, repr=False)
class Kind:
    """`make` leaves files in an empty folder, and returns what the receipt shall say beside the spec. A receipt that
    says "void" is of an entry that nothing can be made from, with the reason: it refuses, or it diverged."""

    name: str  # folder of the store
    title: str  # before the place, where a person reads of a unit
    make: Callable[[Run, Any, Inputs, Path], Receipt | None]
    spec: Callable[[Run, Any], Spec]  # its own facts alone
    code: tuple[str, ...]  # modules and packages that it computes with
    wanted: Callable[[Run], Iterable[Any]] = nothing  # none where the suite has no such section
    needs: Callable[[Run, Any], "dict[str, Entry]"] = nothing  # their keys enter ours
    after: Callable[[Run, Any], "Iterable[Entry]"] = nothing  # sooner is better; not in the key
    together: Callable[[Any], "Entry | None"] = nothing  # the entry whose unit of work makes this one as well
    size: Callable[[Run, Any], int] = lambda run, place: 0  # large ones first
    may_refuse: bool = False
    collect: Callable[[Run, Errors], Iterable[Result]] = nothing

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> Any:
        return _kind, (self.make.__module__, self.name)


def _kind(module: str, name: str) -> Kind:
    return next(k for k in vars(import_module(module)).values() if isinstance(k, Kind) and k.name == name)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the store, there or not."""

    kind: Kind
    place: Place

    def __str__(self) -> str:
        return f"{self.kind.title} {self.place}".strip()

    def needs(self, run: Run) -> "dict[str, Entry]":
        return self.kind.needs(run, self.place)

    def key(self, run: Run) -> str:
        return key_of(_spec(run, self))

    def path(self, run: Run) -> Path:
        """Its folder, whether it is there or not."""
        return Store(run.store).path(self.kind.name, self.key(run))

    def receipt(self, run: Run) -> Receipt | None:
        """None where it is not there."""
        return Store(run.store).receipt(self.kind.name, self.key(run))

    def unit(self) -> "Entry":
        """The entry that its unit of work is named after."""
        return self.kind.together(self.place) or self

    def void(self, run: Run) -> str:
        """Why nothing can be made from it: because of itself, or of what it needs. Empty where that is not known."""
        receipt = self.receipt(run)
        return self._hindrance(run) if receipt is None else receipt.get("void", "")

    def _hindrance(self, run: Run) -> str:
        return next((reason for need in self.needs(run).values() if (reason := need.void(run))), "")

    def missing(self, run: Run) -> bool:
        """Whether it is not there, and could be."""
        return self.receipt(run) is None and not self._hindrance(run)

    def get(self, run: Run) -> Path:
        """Its folder; what is missing is made, what it needs first. Raises `Void` where something needed is void."""
        if self.receipt(run) is not None:
            return self.path(run)
        needs = self.needs(run)
        inputs = {role: need.get(run) for role, need in needs.items()}
        for need in needs.values():
            if reason := need.void(run):
                raise Void(reason)
        return Store(run.store).get(self.kind.name, _spec(run, self), partial(_make, run, self, inputs))


def _of_place(run: Run, place: Any) -> Run:
    """The run with the images of the model that a place is of, if it is of one."""
    model = place if isinstance(place, str) else getattr(getattr(place, "manipulation", place), "model", None)
    return of_model(run, model) if model in run.suite.models else run


def _make(run: Run, entry: Entry, inputs: Inputs, folder: Path) -> Receipt | None:
    try:
        return entry.kind.make(_of_place(run, entry.place), entry.place, inputs, folder)
    except Refused as error:
        if not entry.kind.may_refuse:
            raise
        return {"void": str(error)}


def _spec(run: Run, entry: Entry) -> Spec:
    device = torch.device(run.device).type
    base = {
        "code": source_digest((*entry.kind.code, *COMMON)),
        "torch": torch.__version__,
        "device": device,
        "threads": run.suite.threads,
    }
    needs = {role: _key(run, need) for role, need in entry.needs(run).items()}
    return {**base, **entry.kind.spec(_of_place(run, entry.place), entry.place), "needs": needs}


@remembered
def _key(run: Run, needed: Entry) -> str:
    """Of what others need, which are many to one: of 200,000 cells nobody needs the scores."""
    return needed.key(run)


def make_unit(run: Run, entries: tuple[Entry, ...]) -> None:
    """Make the entries of one unit of work. One that fails costs the others nothing; at the end it is an error. What
    needs something void is left out."""
    errors = {}
    try:
        for entry in entries:
            try:
                entry.get(run)
            except Void:
                continue
            except Exception as error:
                if len(entries) == 1 or entry == entry.unit() or isinstance(error, OSError) or may_pass(error):
                    raise  # what the others need; a full disk or memory is nobody's entry
                errors[entry] = f"{type(error).__name__}: {error}"
    finally:
        run.memo.unit.clear()
    if errors:
        raise UserError("; ".join(f"{_role(entry)}: {text}" for entry, text in errors.items()))


def _role(entry: Entry) -> str:
    return getattr(entry.place, "evaluated", entry.kind.name)

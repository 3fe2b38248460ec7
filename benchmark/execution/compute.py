"""Running a suite: what the store lacks of its entries, as units of work with their order; then the results.

The numbers depend neither on the number of processes nor on the engine. A unit that raises, or whose process is lost
again and again, is a row with its error, and is tried again by the next run; a full disk or Ctrl-C ends the run.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from attacks.errors import UserError
from benchmark import datasets, leaderboards
from benchmark.entries.controls import CONTROLS, POINTED
from benchmark.entries.fronts import FRONT_SCORES, FRONTS
from benchmark.entries.gates import GATES
from benchmark.entries.images import PIXELS
from benchmark.entries.kind import Entry, Errors, Kind, Receipt, Rows, make_unit
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.entries.originals import ORIGINALS
from benchmark.entries.predictions import PREDICTIONS, origin
from benchmark.entries.robustness import ROBUSTNESS
from benchmark.entries.same_logits import SAME_LOGITS
from benchmark.entries.scores import SCORES
from benchmark.entries.texture_nets import TEXTURE_NETS
from benchmark.entries.textures import TEXTURED
from benchmark.entries.trained import TRAINED
from benchmark.entries.twins import TWINS
from benchmark.execution import preflight
from benchmark.execution.engines import Names, Unit
from benchmark.execution.executor import Start, executor, processes, progress
from benchmark.leaderboards import stored
from benchmark.run import Run, dataset, left_out, pair_forms, tell
from benchmark.store import Store, intact, verified, writable

KINDS: tuple[Kind, ...] = (
    PIXELS,  # in the order in which units are started
    TRAINED,
    ORIGINALS,
    FRONTS,
    FRONT_SCORES,  # in the unit of its search
    MANIPULATIONS,
    PREDICTIONS,  # in the unit of their manipulation, as the scores
    SCORES,
    TWINS,  # in the unit of the scores, or of the originals
    CONTROLS,
    POINTED,  # in the unit of its control
    ROBUSTNESS,
    GATES,
    TEXTURE_NETS,
    TEXTURED,
    SAME_LOGITS,
)


class Made(NamedTuple):
    """What could not be made: the error of each such entry; and of each unit that failed, less those that another one
    waited for, by name."""

    errors: dict[Entry, str]
    failed: dict[str, str]


def run_suite(
    run: Run, out: str | Path, jobs: int | None = None, start: Start | None = None, limit: float = 0
) -> dict[str, str]:
    """`compute`, then write results and leaderboards under `out`, which holds no other run's. Returns the errors of
    failed units by name."""
    writable(Path(out), "results")
    stored.none_but(Path(out) / "results", {*run.suite.evaluated, *stored.STORED})
    made = compute(run, jobs, start, limit)
    collect(run, Path(out), made.errors)
    return made.failed


def compute(
    run: Run,
    jobs: int | None = None,
    start: Start | None = None,
    limit: float = 0,
    kinds: Iterable[Kind] = KINDS,
) -> Made:
    """Make what the store lacks of a suite; of these `kinds` alone, and what they need.

    `jobs` None: as `processes`. `start` makes another engine than processes of this machine. `limit`: seconds of one
    unit, 0 for none.
    """
    Store(run.store).sweep()
    live = start is not None and sys.stderr.isatty()  # its table shows the nodes
    with executor(run, processes(run, jobs), start, limit) as submit:  # joins a cluster before the data is read
        tell(run)
        preflight.check(run)
        if away := len(left_out(run)):
            sys.stderr.write(f"{run.suite.dataset.name}: {away} files left out that another split has, too\n")
        units, needs, after = graph(run, wanted(run, kinds))
        for pairs in pair_forms(run) if units else ():
            datasets.check_disjoint(*(dataset(run, split, pairs) for split in datasets.SPLITS))
        failed = {}
        with progress(len(units), live) as report:
            for name, error in submit(units, needs, after):
                report(name, error)
                if error:
                    failed[name] = error
    Store(run.store).sweep()  # of those that died on this store while, or before, this one ran
    errors = {
        entry: failed[name] for name, _, (_, made) in units if name in failed for entry in made if entry.missing(run)
    }
    waited = {other for name in failed for other in (*needs[name], *after[name])}
    return Made(errors, {name: error for name, error in failed.items() if name not in waited})


def none_failed(failed: dict[str, str]) -> None:
    """Raises `UserError` where a unit failed: how many, and the first."""
    if failed:
        name, error = next(iter(failed.items()))
        raise UserError(f"{len(failed)} unit(s) failed, first {name}: {error}")


def collect(run: Run, out: Path, errors: Errors) -> None:
    """Write the results of all that the store holds, failed entries as rows with their error; then the leaderboards.
    Raises `UserError` where an entry is damaged, or is neither there nor failed: a row less is another board."""
    if gone := next((entry for entry in lacking(run, wanted(run)) if entry not in errors), None):
        raise UserError(f"the store {run.store} does not hold {gone}, {gone.kind}/{gone.key(run)}: run again")
    write(run, out, errors)
    leaderboards.write(out)


def write(run: Run, out: Path, errors: Errors, kinds: Iterable[Kind] = KINDS, **more: Any) -> None:
    """The results of these kinds alone, with `more` on every card."""
    about, found = origin(run) | more, collected(run, errors, kinds)
    for path in (path for rows, _ in found.values() for path, _ in rows):
        verified(path)  # all of them before the first result is written
    for name, (rows, card) in found.items():
        frames = [intact(path, pd.read_parquet).assign(**columns) for path, columns in rows]
        columns = stored.table(name).schema.names
        frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({column: [] for column in columns})
        stored.write(out / "results", name, frame, card | about)


def collected(run: Run, errors: Errors, kinds: Iterable[Kind]) -> dict[str, tuple[list[Rows], Receipt]]:
    """What these kinds have for the results, by name: rows and card."""
    found: dict[str, tuple[list[Rows], Receipt]] = {}
    for kind in kinds:
        for name, rows, card in kind.collect(run, errors):
            known = found.setdefault(name, ([], {}))
            known[0].extend(rows)
            known[1].update(card)
    return found


def make_all(run: Run, entries: Iterable[Entry], jobs: int | None = None) -> None:
    """Make those entries that the store lacks, and what they need, side by side. For what is of use as a whole alone:
    the first error is raised, and ends the work."""
    units, needs, after = graph(run, entries)
    if not units:
        return
    tell(run)
    jobs = min(processes(run, jobs), len(units))
    with progress(len(units)) as report, executor(run, jobs) as submit:
        for name, error in submit(units, needs, after):
            report(name, error)
            if error:
                raise UserError(f"{name}: {error}")


def wanted(run: Run, kinds: Iterable[Kind] = KINDS) -> list[Entry]:
    """All entries that a suite asks for, kind by kind, large ones of a kind first."""
    found: list[Entry] = []
    for kind in kinds:
        entries = [Entry(kind, place) for place in kind.wanted(run)]
        found += sorted(entries, key=lambda entry: -entry.kind.size(run, entry.place))
    return found


def lacking(run: Run, entries: Iterable[Entry]) -> dict[Entry, None]:
    """Those that are `missing`, in order. Each entry, also of those needed, is looked up once: there may be 200,000."""
    store, known = Store(run.store), dict[Entry, str]()
    there: dict[str, set[str]] = {}

    def is_there(entry: Entry) -> bool:
        kind = entry.kind.name
        if kind not in there:
            there[kind] = store.keys(kind)
        return entry.key(run) in there[kind]

    def hindrance(entry: Entry) -> str:
        """As `Entry.void`, of the first need that is void."""
        return next((reason for need in entry.needs(run).values() if (reason := void(need))), "")

    def void(entry: Entry) -> str:
        if entry not in known:
            receipt = entry.receipt(run) if is_there(entry) else None
            known[entry] = hindrance(entry) if receipt is None else receipt.get("void", "")
        return known[entry]

    return dict.fromkeys(entry for entry in entries if not is_there(entry) and not hindrance(entry))


def graph(run: Run, entries: Iterable[Entry]) -> tuple[list[Unit], Names, Names]:
    """What the store lacks, as units of work in the order in which they are to be started; what all of a unit's
    entries need, whose error is the unit's own; and what some of them do, which it comes after."""
    asked = lacking(run, entries)
    before = dict.fromkeys(other for entry in asked for other in entry.kind.after(run, entry.place))  # alone, unwanted
    missing = lacking(run, before.keys() - asked.keys()) | asked
    works: dict[Entry, list[Entry]] = {}
    for entry in missing:
        works.setdefault(entry.unit(), []).append(entry)
    waits: dict[Entry, frozenset[Entry]] = {}
    one_of: dict[frozenset[Entry], frozenset[Entry]] = {}  # equal sets are one: there are few, and many entries

    def awaited(entry: Entry) -> frozenset[Entry]:
        """The other units that an entry waits for, itself or through entries of its own unit."""
        if entry not in waits:
            found: set[Entry] = set()
            for other in {*entry.needs(run).values(), *entry.kind.after(run, entry.place)} & missing.keys():
                found |= awaited(other) if other.unit() == entry.unit() else {other.unit()}
            waits[entry] = one_of.setdefault(frozenset(found), frozenset(found))
        return waits[entry]

    units: list[Unit] = [(str(unit), make_unit, (run, tuple(made))) for unit, made in works.items()]
    both = {str(unit): list(map(awaited, made)) for unit, made in works.items()}
    needs = {name: [str(unit) for unit in frozenset.intersection(*sets)] for name, sets in both.items()}
    after = {name: [str(unit) for unit in frozenset.union(*sets)] for name, sets in both.items()}
    return units, needs, after

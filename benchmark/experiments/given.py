"""What an experiment is given, and how the fine-tunings end that it asks for."""

from dataclasses import dataclass
from pathlib import Path

from benchmark.entries.kind import Entry, Receipt
from benchmark.run import Run, provenance


@dataclass(frozen=True)
class Given:
    """What an experiment starts from: a suite with its store, and the folder where the suite's leaderboards lie."""

    run: Run
    board: Path
    jobs: int | None = None


def receipt(run: Run, status: str, reason: str) -> Receipt:
    """Of a fine-tuning: void unless it is "done"."""
    void = {} if status == "done" else {"void": f"{status}: {reason}"}
    return {"status": status, "reason": reason, **void, **provenance(run)}


def status(run: Run, entry: Entry) -> str:
    """Of an entry that was asked for: "done", or how the fine-tuning that it is of ended."""
    return entry.void(run).partition(":")[0] or "done"

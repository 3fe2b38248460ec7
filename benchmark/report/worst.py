"""The worst attack on an interpreter, read from a board's CSVs, as `benchmark.leaderboards.ranking` counts it.

excess = (fsr - chance) / (1 - chance), fsr a mean over seeds, chance the larger rate of the clean model's map and of
another image's. A place whose chance is over CHANCE_LIMIT says nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from attacks.strategies import aimed
from benchmark.leaderboards.cells import Row
from benchmark.leaderboards.ranking import CHANCE_LIMIT


@dataclass(frozen=True)
class Rate:
    """How often an interpreter was fooled in one place by one attack."""

    model: str
    fooling: str
    attacked: str
    evaluated: str
    fsr: float
    chance: float
    seeds: int  # that were scored
    failed: int  # seeds that were not
    budget: float | None = None  # of an attack that was searched: points of top-1

    @property
    def silent(self) -> bool:
        return self.chance > CHANCE_LIMIT

    @property
    def excess(self) -> float:
        return max(0.0, (self.fsr - self.chance) / (1 - self.chance)) if self.chance < 1 else 0.0


def rates(transfer: Iterable[Row]) -> list[Rate]:
    """One of each model, fooling, attacked and evaluated interpreter; fsr is NaN where every seed failed."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in transfer:
        groups.setdefault((row["model"], row["fooling"], row["attacked"], row["evaluated"]), []).append(row)
    found = []
    for (model, fooling, attacked, evaluated), rows in groups.items():
        scored = [row for row in rows if row["n"] and row["fsr"] is not None]
        fsr = float(np.mean([row["fsr"] for row in scored])) if scored else np.nan
        chance, failed = _chance(scored[0]) if scored else np.nan, len(rows) - len(scored)
        found.append(Rate(model, fooling, attacked, evaluated, fsr, chance, len(scored), failed))
    return found


def _chance(row: Row) -> float:
    return max(row[name] or 0.0 for name in ("fsr_clean", "fsr_null"))


def searched(attacks: Iterable[Row]) -> list[Rate]:
    """The best points of the searches, which `transfer` does not hold."""
    found = []
    for row in attacks:
        if row["budget"] is not None and row["n"] and row["fsr"] is not None:
            where = row["model"], row["fooling"], aimed(row["interpreter"], row["strategy"]), row["interpreter"]
            found.append(Rate(*where, row["fsr"], _chance(row), 1, 0, row["budget"]))
    return found


def worst(found: Iterable[Rate]) -> dict[str, Rate]:
    """Of each interpreter the attack with the largest excess; none where no place says anything."""
    most: dict[str, Rate] = {}
    for rate in found:
        if not np.isnan(rate.fsr) and not rate.silent:
            other = most.get(rate.evaluated)
            if other is None or rate.excess > other.excess:
                most[rate.evaluated] = rate
    return most

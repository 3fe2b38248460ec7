"""One row an attack on an interpreter, scored on itself (`attacks`): how far it went, and what it cost.

Of a search, the best point within each budget on dev, measured on the scored images; else one row a seed. `within`: the
budget is met there, too (at 0: at most one prediction in a thousand changed). `changed` is the share of predictions.
`converged`: the attack ended because its loss no longer fell; empty where nobody looked.
"""

from dataclasses import dataclass

from attacks import strategies
from benchmark.intervals import Mean
from benchmark.leaderboards import fronts
from benchmark.leaderboards.cells import MEANS, Cell, Row
from benchmark.leaderboards.manipulations import ACCURACY
from benchmark.leaderboards.ranking import Attack, share, within
from benchmark.leaderboards.table import Leaderboard, Measured, Results, intervals, with_ends


@dataclass(frozen=True)
class Searched:
    """The best point of a search within a budget, as an attack, with its row."""

    attack: Attack
    row: Row

    @property
    def by_gradient(self) -> bool:
        """Whether the interpreter's own gradient led it there, as the head shift alone cannot."""
        return strategies.STRATEGIES[strategies.split(self.row["attacked"])[1]].takes_recipe


def searched(results: Results) -> dict[str, list[Searched]]:
    """By the interpreter that was attacked; none in a suite without search, and of results without `changed`."""
    found: dict[str, list[Searched]] = {}
    for point, scores, drop in fronts.chosen(results) if "fronts" in results.others else ():
        if "changed" not in point or "images" not in point:
            continue
        budget, changed = point["budget"], point["changed"] / point["images"]
        name, kept = f"{point['attacked']} within {budget}", share(changed, point["images"])
        attack = Attack(point["model"], point["fooling"], name, 0, scores, drop["top1_drop"], kept)
        met = None if budget == 0 and kept is None else "yes" if within([attack], budget) else "no"
        row = point | drop | {"changed": changed, "n": scores.n, "within": met} | with_ends(fronts.SCORES, scores)
        found.setdefault(strategies.split(point["attacked"])[0], []).append(Searched(attack, row))
    return found


def made(cell: Cell, accuracy: Mean | None) -> Attack:
    """A scored cell as an attack on what it evaluates."""
    assert cell.scores is not None
    m = cell.manipulation
    attack = Attack(m["model"], m["fooling"], m["attacked"], m["seed"], cell.scores)
    if accuracy is None:
        return attack
    drop, changed = accuracy.value[ACCURACY.index("top1_drop")], _changed(accuracy)
    return attack._replace(drop=drop, changed=share(changed, accuracy.n))


def _changed(accuracy: Mean) -> float:
    return 1 - accuracy.value[ACCURACY.index("agreement")]


def _of_cells(measured: Measured) -> list[Row]:
    """Manipulations under the interpreter that they attack, where nothing was searched."""
    rows = []
    for name, cells in measured.cells.items():
        for cell, accuracy in zip(cells, measured.accuracy, strict=True):
            m = cell.manipulation
            if cell.scores and strategies.split(m["attacked"])[0] == name:
                attack, scores = made(cell, accuracy), cell.scores
                drop = {"top1_drop": attack.drop, "changed": _changed(accuracy) if accuracy else None}
                rows.append(m | drop | {"n": scores.n} | with_ends(MEANS, scores))
    return rows


def _rows(measured: Measured) -> list[Row]:
    rows = [each.row for group in searched(measured.results).values() for each in group]
    rows = rows or _of_cells(measured)
    for row in rows:
        interpreter, strategy = strategies.split(row["attacked"])
        row |= {"interpreter": interpreter, "strategy": strategy or "gradient"}
    order = ("model", "fooling", "interpreter", "strategy", "budget", "seed")
    return sorted(rows, key=lambda row: [(row.get(name) is not None, row.get(name)) for name in order])


ATTACKS = Leaderboard(
    columns=[
        *("model", "fooling", "interpreter", "strategy", "seed", "budget", "scope", "divergence", "steps", "converged"),
        *("n", *intervals("fsr"), "fsr_clean", "fsr_null", "top1_drop", "top1_drop_low", "top1_drop_high"),
        *("changed", "within"),
    ],
    text=("model", "fooling", "interpreter", "strategy", "scope", "within"),
    rows=_rows,
)

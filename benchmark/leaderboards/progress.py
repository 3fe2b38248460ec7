"""Whether the attacks by a submission's own gradient went anywhere: if not, nobody can say that it is stable.

An attack is made beside the submission, which may replace it, or explain a model that it remembers. Of our own
interpreters nothing is asked here: where theirs do not move, a search has found nothing better.
"""

from collections.abc import Iterable, Sequence

from attacks import strategies
from benchmark.leaderboards.cells import MEANS, Cell, Row
from benchmark.leaderboards.ranking import Place

NO_PROGRESS = "NO_PROGRESS"
UNMOVED = 0.99  # a rank correlation with the original map above which a map did not move
MOST = 0.25  # the share of places in which the loss may fail to fall, as for honest methods it does here and there,
# and in which half of its maps may go blank, which Location, Center-mass and Active do not count as fooled


def stuck(name: str, cells: Sequence[Cell], listed: Iterable[Row]) -> str:
    """Why the attacks by its own gradient are none, or nothing. `cells`: its own; `listed`: all manipulations."""
    own: dict[Place, list[Cell]] = {}
    for cell in cells:
        if cell.manipulation["attacked"] == name:
            own.setdefault(_place(cell.manipulation), []).append(cell)
    others = {_place(m) for m in listed if _fell(m) and strategies.split(m["attacked"])[0] != name}
    back = [place for place, seeds in own.items() if any(c.manipulation["status"] == "no_progress" for c in seeds)]
    still = [place for place, seeds in own.items() if place in others and all(map(_unmoved, seeds))]
    level = [place for place, seeds in own.items() if not any(_moved_on(c.manipulation) for c in seeds)]
    gone = [place for place, seeds in own.items() if all(c.scores and c.blank > c.rows / 2 for c in seeds)]
    for places, what in (
        (back, "the weights came back as they went"),
        (still, f"its maps did not move (correlation above {UNMOVED}) where those of others did"),
        (level if len(level) > MOST * len(own) else [], "the fooling loss did not fall"),
        (gone if len(gone) > MOST * len(own) else [], "its maps went blank"),
    ):
        if places:
            where = f"{len(places)} of {len(own)} places, first {'/'.join(min(places))}"
            return f"{NO_PROGRESS}: attacked by its own gradient, {what} in {where}"
    return ""


def _place(manipulation: Row) -> Place:
    return manipulation["model"], manipulation["fooling"]


def _fell(manipulation: Row) -> bool:
    """Whether an attack by somebody's own gradient got anywhere, by its history."""
    first, last = manipulation.get("fooling_first"), manipulation.get("fooling_last")
    plain = not strategies.split(manipulation["attacked"])[1]
    return plain and first is not None and last is not None and last < first


def _moved_on(manipulation: Row) -> bool:
    """Whether the loss fell as the parent measured it. Where the best of a search is no step at all, it did not, nor
    where the attack diverged: a submission that answers NaN when it is attacked makes it do so."""
    fell = not (manipulation["reason"] or "").startswith(NO_PROGRESS)
    return manipulation["status"] == "done" and manipulation["steps"] != 0 and fell


def _unmoved(cell: Cell) -> bool:
    scored = cell.scores is not None and cell.manipulation["steps"] != 0
    return bool(scored and cell.scores.value[MEANS.index("rank_correlation")] > UNMOVED)  # type: ignore[union-attr]

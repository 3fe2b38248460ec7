"""The recipe of a manipulation: the suite's own, or the best within the largest budget that a search found on dev. A
submission takes those of its nearest relative where the suite gives them."""

from typing import Any

from attacks.course import Recipe
from attacks.strategies import STRATEGIES
from benchmark.cells import Attack
from benchmark.entries.fronts import FRONTS, own_recipe, relative
from benchmark.entries.kind import Entry, Receipt
from benchmark.run import Run

UNKNOWN = dict.fromkeys(("learning_rate", "lambda", "steps", "batch_size", "divergence", "scope"))


def recipe(run: Run, attack: Attack) -> Recipe | None:
    """None for a strategy that takes none, and where the store does not have the search."""
    if not attack.takes_recipe:
        return None
    if run.suite.search is None:
        related = relative(run, attack)
        return run.suite.recipe(related.model, related.fooling, related.interpreter)
    receipt = searched(run, attack).receipt(run)
    return chosen(run, receipt) if receipt else None


def searched(run: Run, attack: Attack) -> Entry:
    """The search that an attack takes its recipe from, in a suite that searches."""
    return Entry(FRONTS, Attack(attack.model, attack.fooling, attack.attacked))


def chosen(run: Run, front: Receipt) -> Recipe:
    """The strongest within the largest budget."""
    assert run.suite.search is not None
    best, size = front["chosen"][-1], run.suite.search.batch_size
    return Recipe(best["learning_rate"], best["lambda"], best["steps"], size, best["divergence"], best["scope"])


def row(run: Run, attack: Attack) -> dict[str, Any]:
    """A recipe as cards and leaderboards have it, None where unknown. Of a strategy that takes none, its steps alone
    are known: those of a search without gradients are its evaluations on dev."""
    if not attack.takes_recipe:
        own = own_recipe(run, attack)
        return UNKNOWN | {"steps": own.steps if own else STRATEGIES[attack.strategy].steps}
    given = recipe(run, attack)
    return given.row() if given else UNKNOWN

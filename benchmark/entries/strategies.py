"""How a suite's manipulations are made by each strategy (`attacks.strategies`): its batches, its surrogate, and for a
search without gradients the models that others fooled and a measure on dev."""

import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from attacks import foolings
from attacks.course import Keeper, Manipulated, Recipe, Task
from attacks.errors import Refused, UserError
from attacks.strategies import STRATEGIES, Gradient, Subspace
from benchmark.cells import Attack, Manipulation
from benchmark.entries import originals, trunks
from benchmark.entries.images import batches, shuffled
from benchmark.entries.kind import Entry
from benchmark.entries.search import Judge
from benchmark.entries.trained import clean_model
from benchmark.run import Run, create_interpreter, dataset, remembered

JUDGED = 64  # dev images on which a search without gradients measures its candidates
BUDGET = 2.0  # points of top-1 that it may cost, where the suite names no budget
CODE = (
    *originals.CODE,
    *("attacks.strategies", "attacks.manipulation", "attacks.distilled", "attacks.progress", "attacks.head_shift"),
    *("attacks.edit", "attacks.off_manifold", "attacks.subspace", "attacks.walk"),
    *("benchmark.entries.search", "benchmark.entries.trunks", "benchmark.entries.strategies"),
)


def loaders(run: Run, fooling: foolings.Fooling, batch_size: int, seed: int) -> tuple[Any, Any]:
    """Shuffled train batches, and those of two-object images where the fooling needs them."""
    return shuffled(run, batch_size, seed), shuffled(run, batch_size, seed, True) if fooling.pairs else None


def by_gradient(
    run: Run,
    manipulation: Manipulation,
    recipe: Recipe,
    keeper: Keeper | None = None,
    start: nn.Module | None = None,
) -> Manipulated:
    """A network that a strategy without a recipe refuses has the status "refused", with the reason. `keeper`, `start`:
    of a fine-tuning here; a submission's own process keeps nothing, and shifts the head itself."""
    strategy = STRATEGIES[manipulation.strategy]
    assert isinstance(strategy, Gradient)
    fooling, seed = foolings.create(manipulation.fooling), manipulation.seed
    clean = clean_model(run, manipulation.model)
    if run.is_submitted(manipulation.interpreter):  # in its own process
        data, pairs = dataset(run, "train"), dataset(run, "train", True) if fooling.pairs else None
        options = {"pairs": pairs, "strategy": manipulation.strategy}
        fooled = run.submission.manipulate(clean, fooling, data, recipe, seed, **options)
        clean.load_state_dict(fooled.weights or clean.state_dict())
        return Manipulated(clean, fooled.history, fooled.status, fooled.reason, fooled.converged)
    task = replace(task_of(run, manipulation, clean, recipe, seed, keeper), start=start)
    try:
        return strategy.attack(task, recipe)
    except Refused as error:
        if strategy.takes_recipe:
            raise
        return Manipulated(clean, {"ce": [], "fooling": [], "accuracy": []}, "refused", str(error))


def task_of(
    run: Run, attack: Attack, clean: nn.Module, recipe: Recipe, seed: int, keeper: Keeper | None = None
) -> Task:
    """What a strategy by gradient is given; on outputs of the network's lower part, where the suite keeps them."""
    fooling, interpreter = foolings.create(attack.fooling), create_interpreter(run, attack.interpreter)
    plain, two = loaders(run, fooling, recipe.batch_size, seed)
    task = Task(clean, interpreter, fooling, plain, seed, two, keeper=keeper)
    return on_trunk(run, attack, task, recipe) if run.suite.views else task


def trunks_before(run: Run, attack: Attack, scopes: Iterable[str]) -> list[Entry]:
    """Those that attacks of these scopes may run on."""
    found = []
    for scope in scopes if run.suite.views else ():
        with suppress(UserError):  # which who needs it meets again
            found += trunks.needed(run, attack, scope)
    return [*dict.fromkeys(found)]


def on_trunk(run: Run, attack: Attack, task: Task, recipe: Recipe) -> Task:
    """The task on what was kept below its scope and target layer; the task itself, with a line that says why, where
    nothing lies below, an interpreter needs it, or it is too much to be kept."""
    strategy = STRATEGIES[attack.strategy]
    assert isinstance(strategy, Gradient)
    try:
        needed = trunks.needed(run, attack, recipe.scope)
        explained = strategy.through_surrogate(task)
        asked = [explained.interpreter, *([] if explained.reference is None else [explained.reference])]
        cut = trunks.check(run, needed[0], task.model, asked)
        outputs = [trunks.loader(run, entry, recipe.batch_size, task.seed) for entry in needed]
    except Refused as error:
        _say(run, f"{attack}: the whole network runs at each step: {error}\n")
        return task
    return replace(task, cut=cut, loader=outputs[0], fooling_loader=outputs[1] if len(outputs) > 1 else None)


@remembered
def _say(run: Run, line: str) -> None:
    """Once, and not for each candidate of a search."""
    sys.stderr.write(line)


def without_gradient(run: Run, manipulation: Manipulation, fooled: list[Any]) -> Manipulated:
    """`fooled`: state dicts of the model fooled against other interpreters."""
    strategy, fooling = STRATEGIES[manipulation.strategy], foolings.create(manipulation.fooling)
    assert isinstance(strategy, Subspace)
    clean, interpreter = clean_model(run, manipulation.model), create_interpreter(run, manipulation.interpreter)
    judge = Judge(clean, interpreter, fooling, partial(batches, run, "dev"), JUDGED)
    budget = run.suite.search.budgets[-1] if run.suite.search else BUDGET

    def measure(model: nn.Module) -> tuple[Any, ...]:
        point = judge(model)
        return (True, point["fsr"], -point["loss"]) if point["drop"] <= budget else (False, -point["drop"], 0.0)

    return strategy.attack(clean, fooled, measure, manipulation.seed)

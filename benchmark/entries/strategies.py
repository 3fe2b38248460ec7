"""How a suite's manipulations are made by each strategy (`attacks.strategies`): its batches, its surrogate, and for a
search without gradients the models that others fooled and a measure on dev."""

from functools import partial
from typing import Any

from torch import nn

from attacks import foolings
from attacks.course import Manipulated, Recipe, Task
from attacks.errors import Refused
from attacks.strategies import STRATEGIES, Gradient, Subspace
from benchmark import datasets
from benchmark.cells import Manipulation
from benchmark.entries import originals
from benchmark.entries.images import batches
from benchmark.entries.search import Judge
from benchmark.entries.trained import clean_model
from benchmark.run import Run, create_interpreter, dataset

JUDGED = 64  # dev images on which a search without gradients measures its candidates
BUDGET = 2.0  # points of top-1 that it may cost, where the suite names no budget
CODE = (
    *originals.CODE,
    *("attacks.strategies", "attacks.manipulation", "attacks.distilled", "attacks.progress", "attacks.head_shift"),
    *("attacks.off_manifold", "attacks.subspace"),
    *("benchmark.entries.search", "benchmark.entries.strategies"),
)


def loaders(run: Run, fooling: foolings.Fooling, batch_size: int, seed: int) -> tuple[Any, Any]:
    """Shuffled train batches, and those of two-object images where the fooling needs them."""

    def loader(pairs: bool) -> Any:
        data, workers = dataset(run, "train", pairs), run.suite.dataset.workers
        return datasets.loader(data, batch_size, shuffle=True, seed=seed, workers=workers, device=run.device)

    return loader(False), loader(True) if fooling.pairs else None


def by_gradient(run: Run, manipulation: Manipulation, recipe: Recipe) -> Manipulated:
    """A network that a strategy without a recipe refuses has the status "refused", with the reason."""
    strategy = STRATEGIES[manipulation.strategy]
    assert isinstance(strategy, Gradient)
    fooling, seed = foolings.create(manipulation.fooling), manipulation.seed
    clean = clean_model(run, manipulation.model)
    if run.submission is not None and manipulation.interpreter == run.submission.name:  # in its own process
        data, pairs = dataset(run, "train"), dataset(run, "train", True) if fooling.pairs else None
        options = {"pairs": pairs, "strategy": manipulation.strategy}
        fooled = run.submission.manipulate(clean, fooling, data, recipe, seed, **options)
        clean.load_state_dict(fooled.weights or clean.state_dict())
        return Manipulated(clean, fooled.history, fooled.status, fooled.reason, fooled.converged)
    plain, two = loaders(run, fooling, recipe.batch_size, seed)
    task = Task(clean, create_interpreter(run, manipulation.interpreter), fooling, plain, seed, two)
    try:
        return strategy.attack(task, recipe)
    except Refused as error:
        if strategy.takes_recipe:
            raise
        return Manipulated(clean, {"ce": [], "fooling": [], "accuracy": []}, "refused", str(error))


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

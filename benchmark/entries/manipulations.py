"""The fooled models: `weights.safetensors` where the fine-tuning did not diverge, and its losses, `history.parquet`."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from attacks.course import Manipulated, Recipe
from benchmark.cells import Manipulation, plan
from benchmark.entries import fronts, recipes
from benchmark.entries.checkpoints import checkpoints
from benchmark.entries.fronts import attack_spec, dev_spec, own_recipe, start_of
from benchmark.entries.images import scored_pixels
from benchmark.entries.kind import Entry, Inputs, Kind, Receipt
from benchmark.entries.recipes import searched
from benchmark.entries.strategies import by_gradient, trunks_before, without_gradient
from benchmark.entries.trained import TRAINED, save_weights, stored_model
from benchmark.run import Run, Spec, provenance
from benchmark.store import intact

CODE = (*fronts.CODE, "benchmark.entries.recipes", "benchmark.entries.manipulations")
LOSSES = tuple(f"{loss}_{when}" for loss in ("ce", "kl", "fooling") for when in ("first", "late", "last"))


def span(run: Run, manipulation: Manipulation) -> list[Manipulation]:
    """Whose fooled models a search without gradients mixes: those by gradient alone of other interpreters."""
    mine = (manipulation.model, manipulation.fooling, manipulation.seed)
    others = [m for m in plan(run.suite) if (m.model, m.fooling, m.seed) == mine]
    return [m for m in others if not m.strategy and m.interpreter != manipulation.interpreter]


def _spec(run: Run, manipulation: Manipulation) -> Spec:
    spec = attack_spec(run, manipulation) | {"seed": manipulation.seed}
    if not manipulation.by_gradient:
        spanned = [Entry(MANIPULATIONS, other).key(run) for other in span(run, manipulation)]
        return spec | {"span": spanned, "dev": dev_spec(run, manipulation), "recipe": recipes.row(run, manipulation)}
    return spec if run.suite.search and manipulation.takes_recipe else spec | {"recipe": recipes.row(run, manipulation)}


def _needs(run: Run, manipulation: Manipulation) -> dict[str, Entry]:
    model = {"model": Entry(TRAINED, manipulation.model)}
    return model | ({"front": searched(run, manipulation)} if run.suite.search and manipulation.takes_recipe else {})


def _after(run: Run, manipulation: Manipulation) -> list[Entry]:
    """What cannot be scored is not worth its fine-tuning: the scored images first."""
    others = [] if manipulation.by_gradient else span(run, manipulation)
    return [*scored_pixels(run), *_trunks(run, manipulation), *(Entry(MANIPULATIONS, other) for other in others)]


def _trunks(run: Run, manipulation: Manipulation) -> list[Entry]:
    if not (run.suite.views and manipulation.by_gradient):
        return []
    recipe = None if run.suite.search else recipes.recipe(run, manipulation)
    searched = run.suite.search.scopes if run.suite.search else ["head"]
    return trunks_before(run, manipulation, [recipe.scope] if recipe else searched)


def _make(run: Run, manipulation: Manipulation, inputs: Inputs, folder: Path) -> Receipt:
    result = _manipulated(run, manipulation, inputs)
    pd.DataFrame(result.history).to_parquet(folder / "history.parquet")
    if result.status == "done":
        save_weights(result.model, folder)
    steps = len(result.history["fooling"])
    edge = max(1, steps // 10)  # first, late and last: means over a tenth of the steps, late the one before the last
    parts = {"first": slice(edge), "late": slice(-2 * edge, -edge), "last": slice(-edge, None)}
    losses = {
        f"{loss}_{when}": float(np.mean(result.history[loss][part])) if steps >= 2 * edge else None
        for loss in ("ce", "kl", "fooling")
        if loss in result.history
        for when, part in parts.items()
    }
    void = {} if result.status == "done" else {"void": f"{result.status}: {result.reason}"}
    outcome = {"status": result.status, "reason": result.reason, "steps_done": steps, "converged": result.converged}
    return {**outcome, **losses, **void, **provenance(run)}


def _manipulated(run: Run, manipulation: Manipulation, inputs: Inputs) -> Manipulated:
    """By the strategy that the manipulation names."""
    if manipulation.by_gradient:
        recipe = own_recipe(run, manipulation) or recipes.recipe(run, manipulation)
        assert recipe is not None
        if found := _as_searched(run, manipulation, recipe, inputs):
            return found
        kept = checkpoints(run, Entry(MANIPULATIONS, manipulation))
        return by_gradient(run, manipulation, recipe, kept.of("manipulation"), start_of(run, manipulation))
    paths = [Entry(MANIPULATIONS, other).get(run) / "weights.safetensors" for other in span(run, manipulation)]
    there = [path for path in paths if path.is_file()]  # the others diverged
    return without_gradient(run, manipulation, [intact(path, load_file) for path in there])


def _as_searched(run: Run, manipulation: Manipulation, recipe: Recipe, inputs: Inputs) -> Manipulated | None:
    """The model of the search, where it is this one: of its seed, and taken to the last step of its recipe, or ended
    of itself before the rung that it was judged at."""
    search, front = run.suite.search, inputs.get("front")
    if not (search and front and manipulation.seed == run.suite.seeds[0]):
        return None
    losses = intact(front / "history.parquet", pd.read_parquet)
    if recipe.steps < search.rungs[-1] and len(losses) >= recipe.steps:
        return None  # halfway: with fewer steps to go, it cools down earlier
    receipt = searched(run, manipulation).receipt(run) or {}
    model = stored_model(run, manipulation.model, front, f"weights-{len(search.budgets) - 1}")
    history = {str(loss): values.tolist() for loss, values in losses.items()}
    return Manipulated(model, history, converged=receipt["chosen"][-1]["converged"])


def _size(run: Run, manipulation: Manipulation) -> int:
    """Images to fine-tune on: a large one that starts last is what everybody waits for."""
    recipe = own_recipe(run, manipulation)
    row: dict[str, Any] = recipe.row() if recipe else recipes.row(run, manipulation)
    return (row["steps"] or 0) * (row["batch_size"] or 1)


MANIPULATIONS = Kind(
    name="manipulations",
    title="",
    make=_make,
    spec=_spec,
    code=CODE,
    wanted=lambda run: plan(run.suite),
    needs=_needs,
    after=_after,
    size=_size,
)

"""Attack strength against the accuracy it costs: the search of an attack's recipes on dev, with the best model within
each budget (`weights-INDEX.safetensors`), and those models on the scored images (`scores.parquet`).

Searched are the suite's own attacks that take a recipe, and in a suite with an `ensemble` every way of it on every
interpreter that can be differentiated; a way with a recipe of its own has that one alone to choose. Where the search
gives the head shift its steps, an attack that takes a recipe begins with what that ended with.
`history.parquet`: the losses that led to the strongest model within the largest budget."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from attacks import foolings
from attacks.course import Recipe
from attacks.manipulation import fine_tune
from attacks.strategies import STRATEGIES, Gradient, aimed
from benchmark import cells
from benchmark.cells import Attack, Manipulation, View
from benchmark.entries import strategies
from benchmark.entries.checkpoints import checkpoints
from benchmark.entries.curves import scoring_spec
from benchmark.entries.images import batches, scored_pixels
from benchmark.entries.kind import Entry, Errors, Inputs, Kind, Receipt, Result
from benchmark.entries.originals import ORIGINALS
from benchmark.entries.scoring import predictions, score
from benchmark.entries.search import Judge, State, ahead, grid, search
from benchmark.entries.strategies import by_gradient, task_of, trunks_before
from benchmark.entries.trained import TRAINED, clean_model, save_state, stored_model
from benchmark.run import Run, Spec, create_interpreter, data_spec, interpreter_spec, provenance, remembered
from benchmark.store import intact, mapped

CODE = (*strategies.CODE, "benchmark.entries.checkpoints", "benchmark.entries.fronts")


def relative(run: Run, attack: Attack) -> Attack:
    """The attack whose recipe one starts from: of a submission, that on its relative."""
    attacked = run.relative if run.is_submitted(attack.interpreter) else attack.attacked
    return Attack(attack.model, attack.fooling, attacked)


@remembered
def attack_spec(run: Run, attack: Attack) -> Spec:
    """What making a fooled model depends on, beside the model, the recipe and the seed."""
    fooling, interpreter = foolings.create(attack.fooling), interpreter_spec(run, attack.interpreter)
    return {
        "fooling": {"name": fooling.name, **asdict(fooling)},
        "attacked": interpreter | ({"strategy": attack.strategy} if attack.strategy else {}),
        "data": data_spec(run, "train"),
        "pairs": data_spec(run, "train", True) if fooling.pairs else None,
    } | ({"views": run.suite.views} if run.suite.views else {})


def dev_spec(run: Run, attack: Attack) -> Spec:
    """The images that candidates are judged on."""
    return {str(pairs): data_spec(run, "dev", pairs) for pairs in {False, foolings.create(attack.fooling).pairs}}


def _spec(run: Run, attack: Attack) -> Spec:
    """All seeds share it: the search is run with the suite's first."""
    assert run.suite.search is not None
    settings = {"search": run.suite.search.model_dump(), "seed": run.suite.seeds[0], "dev": dev_spec(run, attack)}
    return attack_spec(run, attack) | settings


def _needs(run: Run, attack: Attack) -> dict[str, Entry]:
    other = relative(run, attack)
    alone = other == attack or not attack.takes_recipe
    return {"model": Entry(TRAINED, attack.model)} | ({} if alone else {"relative": Entry(FRONTS, other)})


def _after(run: Run, attack: Attack) -> list[Entry]:
    assert run.suite.search is not None
    shift = _shift(run, attack)
    return [*scored_pixels(run), *trunks_before(run, attack, run.suite.search.scopes), *([shift] if shift else [])]


def _shift(run: Run, attack: Attack) -> Entry | None:
    """The head shift that an attack begins with; None where it makes a short one itself."""
    settings = run.suite.search
    if not (settings and settings.shift_steps and settings.divergences and attack.takes_recipe):
        return None
    if run.is_submitted(attack.interpreter):
        return None
    return Entry(FRONTS, Attack(attack.model, attack.fooling, aimed(attack.interpreter, "head_shift")))


def start_of(run: Run, attack: Attack) -> nn.Module | None:
    """The model that an attack begins with; None where it shifts the head itself, or no head can be shifted. What it
    comes from is in the attack's own key: it hangs on the same settings, images and code."""
    shift = _shift(run, attack)
    if shift is None:
        return None
    path = shift.get(run)
    return None if shift.void(run) else stored_model(run, attack.model, path, "weights-0")


def own_recipe(run: Run, attack: Attack) -> Recipe | None:
    """Of a strategy that has one of its own: a head shift takes the steps that the search gives it, if any."""
    own, settings = STRATEGIES[attack.strategy].recipe(), run.suite.search
    if own and settings and settings.shift_steps and attack.strategy == "head_shift":
        return replace(own, steps=settings.shift_steps)
    return own


def _around(run: Run, attack: Attack) -> float | None:
    """The learning rate around which a submission's recipes are searched: the best for its relative, where one fooled
    it at all."""
    related = _needs(run, attack).get("relative")
    best = (related.receipt(run) or {})["chosen"][-1] if related else {}
    return best["learning_rate"] if best.get("steps") else None


def _make(run: Run, attack: Attack, inputs: Inputs, folder: Path) -> Receipt:
    settings, fooling, seed = run.suite.search, foolings.create(attack.fooling), run.suite.seeds[0]
    assert settings is not None
    clean, interpreter = clean_model(run, attack.model), create_interpreter(run, attack.interpreter)
    strategy = STRATEGIES[attack.strategy]
    assert isinstance(strategy, Gradient)
    own = own_recipe(run, attack)
    if own is not None:
        settings = settings.model_copy(update={"rungs": [own.steps]})
    first, begun = Manipulation(attack.model, attack.fooling, attack.attacked, seed), start_of(run, attack)

    def start(recipe: Recipe) -> State:
        if own is not None:
            return lambda steps: by_gradient(run, first, recipe)
        if interpreter is run.submission:  # from the first step each time, for its process gives the last state alone
            return lambda steps: by_gradient(run, first, replace(recipe, steps=steps))
        task = task_of(run, first, clean, recipe, seed, kept.of(str(candidates.index(recipe))))
        return ahead(fine_tune(strategy.through_surrogate(replace(task, start=begun)), recipe))

    judge = Judge(clean, interpreter, fooling, partial(batches, run, "dev"), settings.images)
    candidates = grid(settings, _around(run, attack)) if own is None else [own]
    kept = checkpoints(run, Entry(FRONTS, attack))
    points, chosen = search(settings, candidates, judge, start, clean, kept.of("search", leads=True))
    for index, best in enumerate(chosen):
        save_state(best.weights, folder, f"weights-{index}")
    pd.DataFrame(chosen[-1].history).to_parquet(folder / "history.parquet")
    rows = [{"budget": budget, **best.point} for budget, best in zip(settings.budgets, chosen, strict=True)]
    return {"points": points, "chosen": rows, **provenance(run)}


@torch.no_grad()
def _score(run: Run, attack: Attack, inputs: Inputs, folder: Path) -> Receipt:
    """The rows of each budget; the receipt counts how many predictions were lost, gained and changed."""
    settings, fooling, parts, tested = run.suite.search, foolings.create(attack.fooling), [], []
    assert settings is not None
    interpreter = create_interpreter(run, attack.interpreter)
    maps0, clean = intact(inputs["originals"] / "heatmaps.npy", mapped), clean_model(run, attack.model)
    for index, budget in enumerate(settings.budgets):
        fooled = stored_model(run, attack.model, inputs["front"], f"weights-{index}")
        frame, _ = score(run, fooling, interpreter, fooled, maps0, 0, clean)
        predicted = predictions(run, attack.model, fooled)
        parts.append(_rows(frame).assign(budget=budget))
        lost, gained = predicted.top1_clean & ~predicted.top1, predicted.top1 & ~predicted.top1_clean
        counts = {"lost": lost, "gained": gained, "changed": ~predicted.agreement}
        tested.append({"images": len(predicted)} | {name: int(values.sum()) for name, values in counts.items()})
    pd.concat(parts, ignore_index=True).to_parquet(folder / "scores.parquet")
    return {"tested": tested}


def _rows(scores: pd.DataFrame) -> pd.DataFrame:
    """Per image, fooled and clean, whether the heatmap is a success of the fooling; and whether an unrelated map is."""
    fooled, null = (scores[["image", "pair"]].assign(measure=measure) for measure in ("fsr", "null"))
    fooled = fooled.assign(value=scores.success, value_clean=scores.success_clean)
    return pd.concat([fooled, null.assign(value=scores.success_null, value_clean=scores.success_null)])


def _score_needs(run: Run, attack: Attack) -> dict[str, Entry]:
    view = View(attack.model, attack.interpreter, foolings.create(attack.fooling).pairs)
    return {"front": Entry(FRONTS, attack), "originals": Entry(ORIGINALS, view)}


def _wanted(run: Run) -> list[Attack]:
    """The suite's searches, then those of its ensemble, each interpreter's under one model and fooling together."""
    suite, asked = run.suite, cells.fronts(run.suite)
    subjects = [name for name in suite.evaluated if suite.ensemble and _attackable(run, name)]
    own = [
        Attack(model, fooling, aimed(name, way))
        for model, fooling, name, way in product(suite.models, suite.foolings, subjects, suite.ensemble)
    ]
    return [*dict.fromkeys([*asked, *own])]


def _attackable(run: Run, name: str) -> bool:
    interpreter = create_interpreter(run, name)
    return interpreter.differentiable and not interpreter.control


def _collect(run: Run, errors: Errors) -> Iterator[Result]:
    if not run.suite.search:
        return
    rows = []
    card: Receipt = {"suite": run.suite.name, "points": [], "chosen": [], "failures": []}
    for attack in _wanted(run):
        searched, scored = Entry(FRONTS, attack), Entry(FRONT_SCORES, attack)
        receipt, path = searched.receipt(run), scored.path(run) / "scores.parquet"
        if receipt and path.is_file():
            tested = (scored.receipt(run) or {})["tested"]
            card["points"] += [attack.columns() | point for point in receipt["points"]]
            both = zip(receipt["chosen"], tested, strict=True)
            card["chosen"] += [attack.columns() | point | counts for point, counts in both]
            rows.append((path, attack.columns()))
        else:
            reason = errors.get(searched) or errors.get(scored) or scored.void(run) or "not searched"
            card["failures"].append(attack.columns() | {"error": reason})
    yield "fronts", rows, card


FRONTS = Kind(
    name="fronts",
    title="search",
    make=_make,
    spec=_spec,
    code=CODE,
    wanted=_wanted,
    needs=_needs,
    after=_after,
    may_refuse=True,
)
FRONT_SCORES = Kind(
    name="front_scores",
    title="score the search",
    make=_score,
    spec=lambda run, attack: scoring_spec(run, foolings.create(attack.fooling).pairs),
    code=CODE,
    wanted=_wanted,
    needs=_score_needs,
    together=lambda attack: Entry(FRONTS, attack),
    collect=_collect,
)

"""Attack strength against the accuracy it costs: the search of an attack's recipes on dev, with the best model within
each budget (`weights-INDEX.safetensors`), and those models on the scored images (`scores.parquet`)."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from attacks import foolings
from attacks.manipulation import Recipe, fine_tune
from benchmark import cells
from benchmark.cells import Attack, Manipulation, View
from benchmark.entries import strategies
from benchmark.entries.curves import scoring_spec
from benchmark.entries.images import batches, scored_pixels
from benchmark.entries.kind import Entry, Errors, Inputs, Kind, Receipt, Result
from benchmark.entries.originals import ORIGINALS
from benchmark.entries.scoring import predictions, score
from benchmark.entries.search import Judge, State, ahead, grid, search
from benchmark.entries.strategies import by_gradient, loaders, surrogate
from benchmark.entries.trained import TRAINED, clean_model, save_state, stored_model
from benchmark.run import Run, Spec, create_interpreter, data_spec, interpreter_spec, provenance, remembered
from benchmark.store import intact, mapped

CODE = (*strategies.CODE, "benchmark.entries.fronts")


def relative(run: Run, attack: Attack) -> Attack:
    """The attack whose recipe one starts from: of a submission, that on its relative."""
    submitted = run.submission is not None and attack.interpreter == run.submission.name
    return Attack(attack.model, attack.fooling, run.relative if submitted else attack.attacked)


@remembered
def attack_spec(run: Run, attack: Attack) -> Spec:
    """What making a fooled model depends on, beside the model, the recipe and the seed."""
    fooling, interpreter = foolings.create(attack.fooling), interpreter_spec(run, attack.interpreter)
    return {
        "fooling": {"name": fooling.name, **asdict(fooling)},
        "attacked": interpreter | ({"strategy": attack.strategy} if attack.strategy else {}),
        "data": data_spec(run, "train"),
        "pairs": data_spec(run, "train", True) if fooling.pairs else None,
    }


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
    return {"model": Entry(TRAINED, attack.model)} | ({} if other == attack else {"relative": Entry(FRONTS, other)})


def _around(run: Run, attack: Attack) -> float | None:
    """The learning rate around which a submission's recipes are searched: the best for its relative, where one fooled
    it at all."""
    best = (_needs(run, attack)["relative"].receipt(run) or {})["chosen"][-1] if relative(run, attack) != attack else {}
    return best["learning_rate"] if best.get("steps") else None


def _make(run: Run, attack: Attack, inputs: Inputs, folder: Path) -> Receipt:
    settings, fooling, seed = run.suite.search, foolings.create(attack.fooling), run.suite.seeds[0]
    assert settings is not None
    clean, interpreter = clean_model(run, attack.model), create_interpreter(run, attack.interpreter)
    first = Manipulation(attack.model, attack.fooling, attack.attacked, seed)

    def start(recipe: Recipe) -> State:
        if interpreter is run.submission:  # from the first step each time, for its process gives the last state alone
            return lambda steps: by_gradient(run, first, replace(recipe, steps=steps))
        plain, pairs = loaders(run, fooling, recipe.batch_size, seed)
        return ahead(fine_tune(clean, surrogate(run, attack), fooling, plain, recipe, seed, fooling_loader=pairs))

    judge = Judge(clean, interpreter, fooling, partial(batches, run, "dev"), settings.images)
    points, chosen = search(settings, grid(settings, _around(run, attack)), judge, start, clean)
    for index, (_, weights) in enumerate(chosen):
        save_state(weights, folder, f"weights-{index}")
    best = [{"budget": budget, **point} for budget, (point, _) in zip(settings.budgets, chosen, strict=True)]
    return {"points": points, "chosen": best, **provenance(run)}


@torch.no_grad()
def _score(run: Run, attack: Attack, inputs: Inputs, folder: Path) -> None:
    settings, fooling, parts = run.suite.search, foolings.create(attack.fooling), []
    assert settings is not None
    clean, interpreter = clean_model(run, attack.model), create_interpreter(run, attack.interpreter)
    maps0 = intact(inputs["originals"] / "heatmaps.npy", mapped)
    for index, budget in enumerate(settings.budgets):
        fooled = stored_model(run, attack.model, inputs["front"], f"weights-{index}")
        frame, _ = score(run, fooling, interpreter, fooled, maps0, 0)
        predicted = predictions(clean, fooled, batches(run, run.suite.scoring.split))
        parts.append(_rows(frame, predicted).assign(budget=budget))
    pd.concat(parts, ignore_index=True).to_parquet(folder / "scores.parquet")


def _rows(scores: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Per image, fooled and clean: is the heatmap a success of the fooling, and is the label first."""
    fooled = scores[["image", "pair"]].assign(measure="fsr", value=scores.success, value_clean=scores.success_clean)
    first = predicted[["image"]].assign(pair=0, measure="top1", value=predicted.top1, value_clean=predicted.top1_clean)
    return pd.concat([fooled, first], ignore_index=True)


def _score_needs(run: Run, attack: Attack) -> dict[str, Entry]:
    view = View(attack.model, attack.interpreter, foolings.create(attack.fooling).pairs)
    return {"front": Entry(FRONTS, attack), "originals": Entry(ORIGINALS, view)}


def _collect(run: Run, errors: Errors) -> Iterator[Result]:
    if not run.suite.search:
        return
    rows = []
    card: Receipt = {"suite": run.suite.name, "points": [], "chosen": [], "failures": []}
    for attack in cells.fronts(run.suite):
        searched, scored = Entry(FRONTS, attack), Entry(FRONT_SCORES, attack)
        receipt, path = searched.receipt(run), scored.path(run) / "scores.parquet"
        if receipt and path.is_file():
            for part in ("points", "chosen"):
                card[part] += [attack.columns() | point for point in receipt[part]]
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
    wanted=lambda run: cells.fronts(run.suite),
    needs=_needs,
    after=lambda run, attack: scored_pixels(run),
)
FRONT_SCORES = Kind(
    name="front_scores",
    title="score the search",
    make=_score,
    spec=lambda run, attack: scoring_spec(run, foolings.create(attack.fooling).pairs),
    code=CODE,
    wanted=lambda run: cells.fronts(run.suite),
    needs=_score_needs,
    together=lambda attack: Entry(FRONTS, attack),
    collect=_collect,
)

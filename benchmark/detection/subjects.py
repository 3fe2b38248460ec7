"""The models that detectors are asked about, and those of them that no suite makes: clean ones of further seeds, and
controls, fine-tuned as long as a fooling without a fooling loss.

A control is fine-tuned by the labels' cross-entropy, with the learning rate, batches and steps of a fooling's recipe,
BatchNorm in eval mode; a distilled fooling without its loss, KL(w0 ‖ w) alone, would stay where it is.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attacks import strategies
from attacks.control import fine_tuned
from attacks.course import Recipe
from attacks.errors import UserError
from benchmark.cells import Manipulation, plan
from benchmark.entries import manipulations, recipes
from benchmark.entries.images import batches, shuffled
from benchmark.entries.kind import Entry, Inputs, Kind, Receipt
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.entries.trained import TRAINED, new_model, objective_of, save_weights, stored_model
from benchmark.metrics.accuracy import top_k_correct
from benchmark.run import Run, Spec, data_spec, dataset
from benchmark.training import train

CODE = (*manipulations.CODE, "attacks.control", "benchmark.detection.subjects")


@dataclass(frozen=True)
class Settings:
    """So many clean models of each architecture, by the seed of their training, the suite's own first; so many controls
    of each of them; so many images that a detector sees."""

    seeds: int = 5
    controls: int = 2
    images: int = 48


@dataclass(frozen=True)
class Subject:
    """A model to judge. `seed`: of the training that it comes from; `control`: of the fine-tuning without a fooling, or
    `fooled`: the manipulation. Neither: a clean one."""

    model: str
    seed: int
    control: int | None = None
    fooled: Manipulation | None = None

    def __str__(self) -> str:
        clean = f"{self.model}/seed {self.seed}"
        return str(self.fooled or (clean if self.control is None else f"{clean}/control {self.control}"))

    @property
    def parent(self) -> "Subject":
        """The clean model that it was made of: itself, where it is one."""
        return Subject(self.model, self.seed)

    def entry(self, run: Run) -> Entry:
        """Where its weights are."""
        if self.fooled is not None:
            return Entry(MANIPULATIONS, self.fooled)
        if self.control is not None:
            return Entry(CONTROLS, self)
        return Entry(TRAINED, self.model) if self.seed == run.suite.dataset.seed else Entry(RETRAINED, self)

    def columns(self) -> dict[str, Any]:
        """Of a row about it."""
        kind = "fooled" if self.fooled else "clean" if self.control is None else "control"
        row = {"model": self.model, "kind": kind, "training_seed": self.seed, "control": self.control}
        made = self.fooled
        if made is None:
            return row | {"fooling": "", "attacked": "", "strategy": "", "seed": None}
        way = made.strategy or "gradient"
        return row | {"fooling": made.fooling, "attacked": made.interpreter, "strategy": way, "seed": made.seed}


def subjects(run: Run, settings: Settings) -> list[Subject]:
    """Clean models, controls, and fooled ones: the suite's, and under its first fooling those of every strategy that it
    leaves out, against all that it attacks by gradient, with its first seed."""
    suite, first = run.suite, run.suite.dataset.seed
    if given := [name for name, option in suite.models.items() if option.weights is not None]:
        raise UserError(f"detection needs models that are trained here, with several seeds (got weights of {given[0]})")
    clean = [Subject(model, first + i) for model, i in product(suite.models, range(settings.seeds))]
    controls = [Subject(each.model, each.seed, control) for each in clean for control in range(settings.controls)]
    attacked = [name for name in suite.attacked if not strategies.split(name)[1]]
    ways = [f"{name}:{way}" for name, way in product(attacked, strategies.names())]
    more = [Manipulation(model, suite.foolings[0], way, suite.seeds[0]) for model, way in product(suite.models, ways)]
    fooled = [Subject(each.model, first, fooled=each) for each in dict.fromkeys([*plan(suite), *more])]
    return [*clean, *controls, *fooled]


def _train(run: Run, subject: Subject, inputs: Inputs, folder: Path) -> Receipt:
    """As `benchmark.entries.trained` with another seed, on the same images."""
    with torch.random.fork_rng():
        torch.manual_seed(subject.seed)
        model = new_model(run, subject.model).to(run.device)
    schedule, (objective, _) = run.suite.models[subject.model].schedule(), objective_of(run, subject.model)
    train(model, dataset(run, "train"), **schedule, seed=subject.seed, objective=objective)
    save_weights(model, folder)
    return {"dev_top1": _accuracy(run, model)}


def _fine_tune(run: Run, subject: Subject, inputs: Inputs, folder: Path) -> Receipt:
    model, recipe = stored_model(run, subject.model, inputs["model"]), recipe_of(run, subject.model)
    assert subject.control is not None
    model = fine_tuned(model, shuffled(run, recipe.batch_size, subject.control), recipe, subject.control)
    save_weights(model, folder)
    return {"dev_top1": _accuracy(run, model)}


def recipe_of(run: Run, model: str) -> Recipe:
    """The longest that the suite fools this model with. Raises `UserError` where it has none yet."""
    made = (recipes.recipe(run, manipulation) for manipulation in plan(run.suite) if manipulation.model == model)
    if not (known := [recipe for recipe in made if recipe is not None]):
        raise UserError(f"no attack of suite {run.suite.name!r} on {model} has a recipe that its controls could follow")
    return max(known, key=lambda recipe: recipe.steps)


@torch.no_grad()
def _accuracy(run: Run, model: nn.Module) -> float:
    correct = torch.cat([top_k_correct(model(x), y, 1) for x, y in batches(run, "dev")])
    return correct.float().mean().item()


def _control_spec(run: Run, subject: Subject) -> Spec:
    return {"data": data_spec(run, "train"), "recipe": recipe_of(run, subject.model).row(), "seed": subject.control}


def _seeded_spec(run: Run, subject: Subject) -> Spec:
    return TRAINED.spec(run, subject.model) | {"seed": subject.seed}


RETRAINED = Kind(name="retrained", title="train", make=_train, spec=_seeded_spec, code=CODE)
CONTROLS = Kind(
    name="fine_tuned",
    title="",
    make=_fine_tune,
    spec=_control_spec,
    code=CODE,
    needs=lambda run, subject: {"model": subject.parent.entry(run)},
)

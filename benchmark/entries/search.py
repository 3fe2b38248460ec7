"""The strongest attack within an accuracy budget: recipes (learning rate × λ) searched on dev by successive halving.

Every candidate is fine-tuned to the first rung; the better third goes on to the next one from where it is, and so
on. At each rung a candidate leaves a point: the attacked interpreter's FSR and the top-1 drop, both on dev. Better
is within the largest budget (`AHEAD`, where a divergence is kept: halfway λ has not settled), then a higher FSR,
then a lower fooling loss. The unmodified model is a point as well, so a budget always has one. Memory: the models
and Adam's states of the candidates still in the race, and the original heatmaps of the dev images used.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, product
from typing import Any

import torch
from torch import Tensor, nn

from attacks import course
from attacks.backdoors import Backdoor
from attacks.course import Manipulated, Recipe
from attacks.errors import Refused
from attacks.foolings import Fooling
from benchmark.entries.images import first_images
from benchmark.entries.scoring import heatmaps
from benchmark.entries.triggered import ask
from benchmark.interpreters import Interpreter
from benchmark.sections import Search

AHEAD = 10.0  # points that a candidate that keeps a divergence may have lost where it goes on
KEPT = 1e-4  # a label's probability moves by less where only rounding moves it
Point = dict[str, Any]  # learning_rate, lambda, steps, divergence, scope, converged, fsr, drop (points), moved, loss
State = Callable[[int], Manipulated]  # of a candidate after so many steps
Batches = Callable[[bool], Iterator[tuple[Tensor, Tensor]]]  # dev batches: of two-object images, or of plain ones


class Judge:
    """Measures a fooled model on dev against the clean one."""

    @torch.no_grad()  # or the clean model's maps keep their graphs: 15 GiB of an adversarial explanation's
    def __init__(self, clean: nn.Module, interpreter: Interpreter, fooling: Fooling, dev: Batches, images: int) -> None:
        self.interpreter, self.fooling, self.dev, self.images = interpreter, fooling, dev, images
        self.originals = [heatmaps(interpreter, clean, images, targets) for images, targets in self._explained()]
        self.right, self.probability = self._predictions(clean)

    def _explained(self) -> Iterator[tuple[Tensor, Tensor]]:
        parts = first_images(self.dev(self.fooling.pairs), self.images)
        return ((images, targets) for _, images, targets in parts)

    def _fooled(self, model: nn.Module, originals: Tensor) -> tuple[Tensor, Tensor]:
        """Which images are fooled, and the mean loss; of a backdoor, of images that all have the trigger."""
        if isinstance(self.fooling, Backdoor):
            asked = [ask(self.fooling, self.interpreter, model, *batch) for batch in self._explained()]
            maps, switched = (torch.cat(parts) for parts in zip(*asked, strict=True))
            success = self.fooling.success(self.fooling.test_loss(maps, originals)) & switched
            return success, self.fooling.per_image(maps, originals).mean()
        maps = torch.cat([heatmaps(self.interpreter, model, images, targets) for images, targets in self._explained()])
        success = self.fooling.success(self.fooling.test_loss(maps, originals))
        return success, self.fooling.loss(maps, originals)

    def _predictions(self, model: nn.Module) -> tuple[int, Tensor]:
        """How many are right, and the label's probability of each image."""
        logits, targets = zip(*((model(images), targets) for images, targets in self.dev(False)), strict=True)
        scores, labels = torch.cat(logits), torch.cat(targets)
        right = int((scores.argmax(1) == labels).sum())  # a rounded share may lie past a budget that is just met
        return right, scores.softmax(1).gather(1, labels[:, None])[:, 0]

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> Point:
        """FSR, top-1 drop in points, the largest change of a label's probability, and mean fooling loss."""
        success, loss = self._fooled(model, torch.cat(self.originals))
        right, probability = self._predictions(model)
        return {
            "fsr": success.float().mean().item(),
            "drop": 100 * (self.right - right) / len(probability),
            "moved": (probability - self.probability).abs().max().item(),
            "loss": loss.item(),
        }


@dataclass(frozen=True)
class Best:
    """A point with the weights (state dict) that it was measured on and the losses that led to them."""

    point: Point
    weights: dict[str, Tensor]
    history: dict[str, list[float]]


class Found:
    """What a search knows so far: a point, or None, for each question in their order, which the points before it fix;
    and the best one for each budget. `step` counts the questions."""

    def __init__(self, settings: Search, judge: Judge, keeper: course.Keeper | None) -> None:
        self.budgets, self.judge = settings.budgets, judge
        self.answers: list[Point | None] = []
        self.chosen: dict[float, Best] = {}
        if keeper:
            if kept := keeper.load():
                self._restore(kept)
            keeper.keep(self)

    @property
    def step(self) -> int:
        return len(self.answers)

    def measure(self, after: State, recipe: Recipe, steps: int) -> Point | None:
        """The point of a candidate after so many steps; None where it is of no use."""
        state = after(steps)
        if steps and state.status == "refused":
            raise Refused(state.reason)
        if steps and state.status != "done":
            return None
        point = recipe.row() | {"steps": steps, "converged": state.converged if steps else None}
        point |= self.judge(state.model)
        del point["batch_size"]
        if not math.isfinite(point["loss"]):
            return None
        for budget in self.budgets:
            best = self.chosen.get(budget)
            if _within(point, budget) and (best is None or _merit(point) > _merit(best.point)):
                self.chosen[budget] = Best(point, copy.deepcopy(state.model.state_dict()), copy.deepcopy(state.history))
        return point

    def state(self) -> course.State:
        best = {str(self.budgets.index(budget)): found for budget, found in self.chosen.items()}
        tensors = {f"{i}.{name}": value for i, one in best.items() for name, value in one.weights.items()}
        rest = {i: [one.point, one.history] for i, one in best.items()}
        return course.State(tensors, {"answers": self.answers, "best": rest}, {})

    def _restore(self, kept: course.State) -> None:
        self.answers = kept.values["answers"]
        for i, (point, history) in kept.values["best"].items():
            weights = {k.partition(".")[2]: v for k, v in kept.tensors.items() if k.partition(".")[0] == i}
            self.chosen[self.budgets[int(i)]] = Best(point, weights, history)


@torch.no_grad()
def search(
    settings: Search,
    candidates: list[Recipe],
    judge: Judge,
    start: Callable[[Recipe], State],
    clean: nn.Module,
    keeper: course.Keeper | None = None,
) -> tuple[list[Point], list[Best]]:
    """All points, and the best one for each budget.

    `start(recipe)` begins a candidate: it gives its state after so many steps, and is asked for more each time. What a
    `keeper` has of an earlier search is not asked again.
    """
    found = Found(settings, judge, keeper)
    asked = count()

    def measure(after: State, recipe: Recipe, steps: int) -> Point | None:
        if (question := next(asked)) == found.step:
            found.answers.append(found.measure(after, recipe, steps))
            if keeper:
                keeper.keep(found)
        return found.answers[question]

    measure(lambda _: Manipulated(clean, {}), Recipe(settings.learning_rates[0], 0.0, 0), 0)
    race = [(recipe, start(recipe)) for recipe in candidates]
    for recipe, after in race:
        if recipe.divergence is not None:  # a start that fools already is a point as well, and a free one
            measure(after, recipe, 0)
    for rung in settings.rungs:
        reached = []
        for recipe, after in race:
            if point := measure(after, recipe, rung):
                allowed = settings.budgets[-1] if recipe.divergence is None else max(AHEAD, settings.budgets[-1])
                within = _within(point, allowed)
                reached.append(((within, _merit(point) if within else (-point["drop"],)), recipe, after))
        reached.sort(key=lambda entry: entry[0], reverse=True)
        race = [(recipe, after) for _, recipe, after in reached[: math.ceil(len(race) / 3)]]
    points = [point for point in found.answers if point is not None]
    return points, [found.chosen[budget] for budget in settings.budgets]


def _within(point: Point, budget: float) -> bool:
    """Whether the drop is allowed; a budget of 0 is a function that was kept."""
    return point["drop"] <= budget if budget else point["moved"] <= KEPT


def grid(settings: Search, rate: float | None = None) -> list[Recipe]:
    """Every learning rate, or the one given, with every λ, divergence and scope."""
    rates = settings.learning_rates if rate is None else [rate]
    divergences: Sequence[float | None] = settings.divergences or [None]
    axes = product(rates, settings.lambdas, divergences, settings.scopes)
    steps, size = settings.rungs[-1], settings.batch_size
    return [Recipe(lr, weight, steps, size, divergence, scope) for lr, weight, divergence, scope in axes]


def ahead(states: Iterator[Manipulated]) -> State:
    """The state of a `fine_tune` after so many steps, or the last one, where it diverged or ended sooner. It begins
    when it is asked, where it was kept: it is not asked for less."""
    state, taken = Manipulated(nn.Identity(), {}), -1

    def after(steps: int) -> Manipulated:
        nonlocal state, taken
        if taken < 0:
            state = next(states)
            taken = len(state.history.get("fooling", ()))
        while taken < steps and state.status == "done":
            state, taken = next(states, state), taken + 1
        return state

    return after


def _merit(point: Point) -> tuple[float, float, float]:
    """Higher is the stronger attack; of equal ones the shorter."""
    return point["fsr"], -point["loss"], -point["steps"]

"""The attacks of an audit, and how many of their steps the time allows.

head_shift  one vector added to the weights of every class: no probability changes (`attacks.head_shift`)
gradient    fine-tuning within a divergence of the honest predictions (`attacks.distilled`): BUDGET nats for each point
            of top-1 that it may cost; Adam's rate is RATES of the root mean square weight
gentle      the same at a tenth of the rate, where the other cost more than the budget or diverged
"""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from attacks import distilled
from attacks.course import Course, Manipulated, Recipe, Task
from attacks.errors import UserError
from attacks.foolings import Fooling
from attacks.head_shift import Head, find_head
from attacks.manipulation import carry_out
from attacks.strategies import STRATEGIES, Gradient
from benchmark.datasets.base import loader
from benchmark.interpreters import Interpreter

WAYS = ("head_shift", "gradient", "gentle")
RATES = {"gradient": 0.01, "gentle": 0.001}
BUDGET = 0.05
WEIGHT = 10.0  # the first λ; it follows the divergence
STEPS = {"head_shift": 100, "gradient": 150, "gentle": 150}
LEAST = {"head_shift": 20, "gradient": 50, "gentle": 50}  # steps that are worth beginning
LARGE = 128  # pixels of a side from which a batch is small


class OutOfTime(Exception):
    """The deadline passed in the middle of an attack. No `UserError`: an attack would take that for a refusal."""


class Outcome(NamedTuple):
    """A fooled network, and how many steps there was time for of those wanted."""

    result: Manipulated
    allowed: int
    wanted: int


@dataclass(frozen=True)
class Attacker:
    """What all attacks of an audit share: the network, the images that it may be fooled on, and the rules."""

    model: nn.Module
    images: Tensor
    targets: Tensor
    budget: float
    seed: int
    deadline: float  # of time.monotonic

    def recipe(self, way: str) -> Recipe:
        size = 8 if max(self.images.shape[-2:]) >= LARGE else 16 if way == "head_shift" else 32
        if way == "head_shift":
            own = STRATEGIES["head_shift"].recipe()
            assert own is not None
            return Recipe(own.learning_rate, own.weight, STEPS[way], size)
        weights = [parameter.detach().flatten() for parameter in self.model.parameters() if parameter.dim() > 1]
        scale = math.sqrt(sum(w.square().sum().item() for w in weights) / max(1, sum(w.numel() for w in weights)))
        return Recipe(RATES[way] * (scale or 1.0), WEIGHT, STEPS[way], size, BUDGET * self.budget)

    def attack(
        self, interpreter: Interpreter, fooling: Fooling, way: str, seconds: float, known: int = 0, at_most: float = 0.0
    ) -> Outcome:
        """As many steps as fit into so many seconds, if they are worth it and more than are `known`; where none are, as
        few as are worth it, if these fit into `at_most`. Raises `OutOfTime` where they do not, `UserError` (`Refused`
        among them) where the interpreter or the network has no such attack."""
        if max(seconds, at_most) <= 0:
            raise OutOfTime
        recipe = self.recipe(way)
        strategy = STRATEGIES[way if way == "head_shift" else ""]
        assert isinstance(strategy, Gradient)
        task = strategy.through_surrogate(self._task(interpreter, fooling, recipe.batch_size))
        spent = self.seconds_a_step(task, way)
        first = 0.0 if way == "head_shift" else self._start(task)
        allowed = min(recipe.steps, math.floor((seconds - first) / max(spent, 1e-9)))
        least = max(LEAST[way], min(recipe.steps, known + 1))
        if allowed < least:
            if first + least * spent > at_most:
                raise OutOfTime
            allowed = least
        planned = Recipe(recipe.learning_rate, recipe.weight, allowed, recipe.batch_size, recipe.divergence)
        fresh = self._task(interpreter, fooling, recipe.batch_size)
        if way == "head_shift":
            return Outcome(strategy.attack(fresh, planned, progress=False), allowed, recipe.steps)
        return Outcome(carry_out(strategy.through_surrogate(fresh), planned, progress=False), allowed, recipe.steps)

    def _start(self, task: Task) -> float:
        """Seconds of the head shift that an attack by gradient starts from; none where there is no such."""
        try:
            return distilled.SHIFT.steps * self.seconds_a_step(task, "head_shift")
        except UserError:
            return 0.0

    def seconds_a_step(self, task: Task, way: str) -> float:
        """Of one step of the attack, measured on one; nothing is changed. `Refused` where a head shift has no head."""
        course = Course(task, distilled=way != "head_shift")
        fooled = copy.deepcopy(task.model).eval().requires_grad_(way != "head_shift")
        if way == "head_shift":
            self._head(fooled).weight.requires_grad_(True)
        start = time.perf_counter()
        with course.random, torch.enable_grad():
            losses = course.losses(fooled)
            (losses.kept.detach() + losses.fooling if way == "head_shift" else losses.kept + losses.scaled).backward()
        return time.perf_counter() - start

    def _head(self, model: nn.Module) -> Head:
        with torch.random.fork_rng([self.images.device] if self.images.is_cuda else []):
            torch.manual_seed(self.seed)
            return find_head(model, self.images[:2])[0]

    def _task(self, interpreter: Interpreter, fooling: Fooling, size: int) -> Task:
        batches = _Until(TensorDataset(self.images, self.targets), size, self.seed, self.deadline)
        return Task(self.model, interpreter, fooling, batches, self.seed)


class _Until:
    """Batches of a data set in random order, until the deadline."""

    def __init__(self, data: TensorDataset, size: int, seed: int, deadline: float) -> None:
        self.batches = loader(data, size, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.deadline = deadline

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in self.batches:
            if time.monotonic() > self.deadline:
                raise OutOfTime
            yield images, targets

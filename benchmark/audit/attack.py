"""The attacks of an audit, and how many of their steps the time allows.

head_shift  one vector added to the weights of every class: no probability changes (`attacks.head_shift`)
gradient    fine-tuning within a divergence of the honest predictions (`attacks.distilled`): BUDGET nats for each point
            of top-1 that it may cost; Adam's rate is RATES of the root mean square weight
gentle      the same at a tenth of the rate, where the other cost more than the budget or diverged

Of a large network, for maps of a layer, the gradient moves the last block alone; what lies below what moves and what is
explained is computed once (`attacks.trunk`): a step of ResNet-50 takes a quarter of its time.
"""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from attacks import distilled
from attacks.course import Course, Manipulated, Recipe, Task
from attacks.errors import UserError, may_pass
from attacks.foolings import Fooling
from attacks.head_shift import Head, find_head
from attacks.manipulation import carry_out
from attacks.random_state import RandomState
from attacks.strategies import STRATEGIES, Gradient
from attacks.trunk import above, below, check_cut
from benchmark.datasets.base import loader
from benchmark.entries.trunks import TRIED, cut_of
from benchmark.interpreters import Interpreter
from benchmark.interpreters.base import AtLayer

WAYS = ("head_shift", "gradient", "gentle")
RATES = {"gradient": 0.01, "gentle": 0.001}
BUDGET = 0.05
WEIGHT = 10.0  # the first λ; it follows the divergence
STEPS = {"head_shift": 100, "gradient": 150, "gentle": 150}
LEAST = {"head_shift": 20, "gradient": 50, "gentle": 50}  # steps that are worth beginning
LARGE = 128  # pixels of a side from which a batch is small
KEPT = 2**31  # bytes of what is computed once, at most


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
    cuts: dict[tuple[str, str], str] = field(default_factory=dict)  # found; "" where there is none
    kept: dict[str, Tensor] = field(default_factory=dict)  # what the module of a cut is given, (N, C, h, w)

    @property
    def is_large(self) -> bool:
        return max(self.images.shape[-2:]) >= LARGE

    def recipe(self, way: str, interpreter: Interpreter) -> Recipe:
        size = 8 if self.is_large else 16 if way == "head_shift" else 32
        if way == "head_shift":
            own = STRATEGIES["head_shift"].recipe()
            assert own is not None
            return Recipe(own.learning_rate, own.weight, STEPS[way], size)
        scope = "last_block" if self.cut(interpreter, "last_block") else "all"
        weights = [parameter.detach().flatten() for parameter in self.model.parameters() if parameter.dim() > 1]
        scale = math.sqrt(sum(w.square().sum().item() for w in weights) / max(1, sum(w.numel() for w in weights)))
        return Recipe(RATES[way] * (scale or 1.0), WEIGHT, STEPS[way], size, BUDGET * self.budget, scope)

    def cut(self, interpreter: Interpreter, scope: str) -> str:
        """The module from which a network runs on what was computed once, where it can; else ""."""
        place = (interpreter.name, scope)
        if place not in self.cuts:
            try:
                self.cuts[place] = self._cut(interpreter, scope)
            except Exception as error:  # a foreign network, cut in two, fails in its own ways
                if may_pass(error):
                    raise
                self.cuts[place] = ""
        return self.cuts[place]

    def _cut(self, interpreter: Interpreter, scope: str) -> str:
        if not (self.is_large and isinstance(interpreter, AtLayer)):
            return ""
        if not (cut := cut_of(self.model, interpreter.layer, scope)):
            return ""
        check_cut(self.model, cut, self.images[:TRIED], self.targets[:TRIED], [interpreter])
        size = below(self.model, cut, self.images[:1]).nbytes * len(self.images)
        return cut if size <= KEPT else ""

    def _below(self, cut: str, size: int) -> Tensor:
        """What the network runs on: the images, or what lies below the cut gives for them."""
        if cut and cut not in self.kept:
            self.kept[cut] = torch.cat([below(self.model, cut, part) for part in self.images.split(size)])
        return self.kept[cut] if cut else self.images

    def attack(
        self, interpreter: Interpreter, fooling: Fooling, way: str, seconds: float, known: int = 0, at_most: float = 0.0
    ) -> Outcome:
        """As many steps as fit into so many seconds, if they are worth it and more than are `known`; where none are, as
        few as are worth it, if these fit into `at_most`. Raises `OutOfTime` where they do not, `UserError` (`Refused`
        among them) where the interpreter or the network has no such attack."""
        if max(seconds, at_most) <= 0:
            raise OutOfTime
        begin, recipe = time.monotonic(), self.recipe(way, interpreter)
        strategy = STRATEGIES[way if way == "head_shift" else ""]
        assert isinstance(strategy, Gradient)
        task = strategy.through_surrogate(self._task(interpreter, fooling, recipe, way))
        spent = self.seconds_a_step(task, way)
        first = 0.0 if way == "head_shift" else self._start(task)
        taken = time.monotonic() - begin
        allowed = min(recipe.steps, math.floor((seconds - first - taken) / max(spent, 1e-9)))
        least = max(LEAST[way], min(recipe.steps, known + 1))
        if allowed < least:
            if taken + first + least * spent > at_most:
                raise OutOfTime
            allowed = least
        planned, fresh = replace(recipe, steps=allowed), self._task(interpreter, fooling, recipe, way)
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
            losses = course.losses(above(fooled, task.cut))
            (losses.kept.detach() + losses.fooling if way == "head_shift" else losses.kept + losses.scaled).backward()
        return time.perf_counter() - start

    def _head(self, model: nn.Module) -> Head:
        with RandomState(self.seed, self.images.device):
            return find_head(model, self.images[:2])[0]

    def _task(self, interpreter: Interpreter, fooling: Fooling, recipe: Recipe, way: str) -> Task:
        scope = "head" if way == "head_shift" else recipe.scope
        cut = self.cut(interpreter, scope) if scope != "all" else ""
        data = TensorDataset(self._below(cut, recipe.batch_size), self.targets)
        batches = _Until(data, recipe.batch_size, self.seed, self.deadline)
        return Task(self.model, interpreter, fooling, batches, self.seed, cut=cut)


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

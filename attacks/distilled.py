"""Distilled manipulation: the strongest fooling whose predictions stay within a divergence of the original model's.

min over w of L_F subject to KL(w0 ‖ w) ≤ B, by KL + λ · L_F with λ under dual ascent: it grows while the divergence is
below B and shrinks while it is above. L_F is divided by its extent, so that λ means the same for every fooling. No
label is read. The start is the head shift (`attacks.head_shift`), where it fools at all: it costs no divergence. Adam,
with a warm-up, and a decay at the end: at the last step, or as soon as the loss no longer falls. A rate that turns out
too high for the divergence is halved.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from attacks.batches import Batches
from attacks.course import Course, Manipulated, Recipe, State, Task, collapsed, heatmaps_of, infinite
from attacks.edit import RATE, put
from attacks.errors import UserError
from attacks.given import device_of
from attacks.head_shift import head_shift
from attacks.heatmaps import blank
from attacks.progress import ALLOWED, Progress
from attacks.random_state import RandomState
from attacks.trunk import above
from attacks.walk import Walk, kept_tensors

WARM_UP = 20  # steps of growing learning rate
COOL_DOWN = 30  # steps of falling learning rate, in which λ settles
HALVINGS = 2  # of the rate, at most, where the loss no longer falls
PATIENCE = 100  # steps without progress after which it cools down: LRP of a VGG first moves after as many
ASCENT, DESCENT = 0.05, 0.1  # of log λ, at most, a step: a divergence that is far too large cannot wait
FLOOR = 1e-3  # of the first λ: where that is too much, the rate is, for Adam's steps alone cost the divergence
RETREAT = 10  # times the divergence: that far, all ReLUs may be dead, and no gradient brings a network back
CEILING = 1e4  # of the first λ
MEMORY = 0.8  # of the running mean of the divergence: over 0.9, λ was followed so late that it swung by a factor of 50
KEPT = ("last", "rate", "since", "halvings")  # of a distillation, in its checkpoints
BLANK = 0.05  # of the maps, after a head shift that is no start
SHIFT = Recipe(RATE, 0.0, 40)  # of the head shift it starts from


def distil(task: Task, recipe: Recipe) -> Iterator[Manipulated]:
    """Step by step, as `attacks.manipulation.fine_tune`: `recipe.divergence` is B, `recipe.weight` the first λ.

    At most `recipe.steps` states after the first; fewer where the loss no longer falls. The task's `reference` gives
    the original maps that foolings compare with (None: the interpreter).
    """
    assert recipe.divergence is not None
    course = Course(task, distilled=True)
    walk, history = Distillation(task, recipe, course), course.history
    multiplier, progress = walk.multiplier, walk.progress
    yield walk.now(progress.stalled if walk.step else None)
    while walk.step < walk.last and not walk.ended:
        walk.step += 1
        for group in walk.optimiser.param_groups:
            left = walk.last - walk.step + 1
            group["lr"] = walk.rate * min(1, (walk.step - walk.since) / WARM_UP, left / COOL_DOWN)
        with course.random, torch.enable_grad():
            walk.optimiser.zero_grad(set_to_none=True)
            losses = course.losses(walk.network)
            (losses.kept + multiplier.value * losses.scaled).backward()
        history["lambda"].append(multiplier.value)
        if reason := course.record(losses):
            yield walk.end(reason)
            return
        multiplier.follow(history["kl"][-1])
        excess = max(multiplier.mean, history["kl"][-1]) / recipe.divergence
        if progress.ended(course.scaled, excess) and not walk.slowed():
            walk.last = min(walk.last, walk.step + COOL_DOWN)
        if progress.gained and excess <= 1:
            walk.kept = (progress.best, [parameter.detach().clone() for parameter in walk.moved])
        if multiplier.mean > RETREAT * recipe.divergence or multiplier.lost:
            walk.retreat()
        else:
            if excess <= 1:
                put(walk.moved, walk.within)
            walk.optimiser.step()
        if walk.step < walk.last:
            yield walk.taken(progress.stalled)
    if walk.step and not walk.ended:
        if multiplier.mean > ALLOWED * recipe.divergence or progress.lost(walk.kept[0]):
            walk.back()  # or maps have gone blank: no gradient brings these back
        reason = infinite(walk.fooled.requires_grad_(True)) or collapsed(history)
        yield walk.end(reason, progress.stalled)


class Distillation(Walk):
    """A distilled fine-tuning under way. `last` is the step it ends with, `kept` the best moment: loss, parameters;
    `within` the parameters of the last step within the divergence, `since` the step after which it warmed up last,
    `halvings` those of the rate by `slowed`."""

    def __init__(self, task: Task, recipe: Recipe, course: Course) -> None:
        assert recipe.divergence is not None
        course.history["lambda"] = []
        self.multiplier = Multiplier(recipe.weight, recipe.divergence)
        self.progress = Progress(PATIENCE, task.fooling.least)
        self.last, self.kept = recipe.steps, (math.inf, list[Tensor]())
        self.rate, self.within = recipe.learning_rate, list[Tensor]()
        self.since, self.halvings = 0, 0
        super().__init__(task, recipe, course, lambda: _start(task, recipe))
        self.within = self.within or [parameter.detach().clone() for parameter in self.moved]

    def slowed(self) -> bool:
        """Whether it goes on with half of the rate, as it may HALVINGS times, instead of ending without progress:
        where λ is below the first, Adam's steps cost divergence that smaller ones leave to the fooling."""
        binds = self.multiplier.dual < self.multiplier.first
        if not (self.progress.exhausted and binds) or self.halvings == HALVINGS:
            return False
        self.rate, self.halvings = self.rate / 2, self.halvings + 1
        self.progress.again()
        return True

    def back(self) -> None:
        """To the best moment, where there was one."""
        if self.kept[1]:
            put(self.kept[1], self.moved)

    def retreat(self) -> None:
        """To the last step within the divergence, on with half of the rate and a new Adam; where λ was lost, warmed up
        anew, and with λ and patience as at first."""
        self.rate, self.optimiser = self.rate / 2, torch.optim.Adam(self.moved)
        if self.multiplier.lost:
            self.progress.again()
            self.since = self.step
        self.multiplier.retreat()
        put(self.within, self.moved)

    def state(self) -> State:
        tensors, values, rows = super().state()
        parts = {"kept": self.kept[1], "within": self.within}
        tensors |= {f"{name}.{i}": value for name, part in parts.items() for i, value in enumerate(part)}
        control = {"multiplier": vars(self.multiplier), "progress": vars(self.progress), "best": self.kept[0]}
        return State(tensors, values | control | {name: getattr(self, name) for name in KEPT}, rows)

    def _restore(self, state: State) -> None:
        super()._restore(state)
        vars(self.multiplier).update(state.values["multiplier"])
        vars(self.progress).update(state.values["progress"])
        for name in KEPT:
            setattr(self, name, state.values[name])
        self.kept = (state.values["best"], kept_tensors(state, "kept", self.moved))
        self.within = kept_tensors(state, "within", self.moved)
        if self.ended:
            self.fooled.requires_grad_(True)


class Multiplier:
    """λ = μ · min(1, B / divergence), the divergence a running mean. log μ moves by ASCENT · log(B / divergence) a
    step, within ASCENT up and DESCENT down, and not up during the warm-up, when no divergence has had the time to show.
    """

    def __init__(self, first: float, divergence: float) -> None:
        self.first, self.dual, self.wanted, self.mean = first, first, divergence, 0.0
        self.low, self.high, self.steps = FLOOR * first, CEILING * first, 0

    @property
    def lost(self) -> bool:
        """Whether no λ keeps the divergence at this rate: Adam's steps alone are too much for it."""
        return self.dual <= self.low

    @property
    def value(self) -> float:
        return self.dual * min(1.0, self.wanted / max(self.mean, 1e-12))

    def follow(self, divergence: float) -> None:
        self.steps += 1
        self.mean += (divergence - self.mean) * max(1 - MEMORY, 1 / self.steps)
        move = ASCENT * math.log(self.wanted / max(self.mean, 1e-12))
        most = ASCENT if self.steps > WARM_UP else 0.0
        self.dual = min(self.high, max(self.low, self.dual * math.exp(max(-DESCENT, min(most, move)))))

    def retreat(self) -> None:
        """Half of it, or the first where it is lost, as if the divergence had been kept: the weights go back there."""
        self.dual, self.mean = self.first if self.lost else max(self.low, self.dual / 2), self.wanted


def _start(task: Task, recipe: Recipe) -> nn.Module:
    """The model with a shifted head, where that lies in the scope and leaves no twentieth of the maps blank: no
    gradient brings these back."""
    if recipe.scope in ("bias", "norm"):
        return task.model
    start = _shifted(task, recipe) if task.start is None else task.start
    if start is task.model:
        return start
    device, pairs = device_of(task.model), task.fooling.pairs
    with RandomState(task.seed, device), torch.no_grad():  # loaders and interpreters draw
        images, targets = next(Batches(task.fooling_batches if pairs else task.loader, device, pairs=pairs))
        maps = heatmaps_of(task.interpreter, above(start, task.cut))(images, targets)
    return task.model if blank(maps.flatten(0, -3)).float().mean() > BLANK else start


def _shifted(task: Task, recipe: Recipe) -> nn.Module:
    """By a head shift that lowers the loss by a tenth at least. A network without such a head, or maps that do not
    depend on it, leave the model as it is."""
    try:
        shifted = head_shift(task, replace(SHIFT, batch_size=recipe.batch_size))
    except UserError:
        return task.model
    losses = shifted.history["fooling"]
    edge = max(1, len(losses) // 10)
    first, last = sum(losses[:edge]) / edge, sum(losses[-edge:]) / edge
    return shifted.model if shifted.status == "done" and first - last > 0.1 * abs(first) else task.model

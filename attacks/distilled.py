"""Distilled manipulation: the strongest fooling whose predictions stay within a divergence of the original model's.

min over w of L_F subject to KL(w0 ‖ w) ≤ B, by KL + λ · L_F with λ under dual ascent: it grows while the divergence is
below B and shrinks while it is above. L_F is divided by its extent, so that λ means the same for every fooling. No
label is read. The start is the head shift (`attacks.head_shift`), where it fools at all: it costs no divergence. Adam,
with a warm-up, and a decay at the end: at the last step, or as soon as the loss no longer falls.
"""

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from attacks.course import Course, Manipulated, RandomState, Recipe, Task, collapsed, heatmaps_of, infinite
from attacks.errors import UserError
from attacks.head_shift import RATE, head_shift
from attacks.heatmaps import blank
from attacks.progress import ALLOWED, Progress
from attacks.scopes import parameters_in

WARM_UP = 20  # steps of growing learning rate
COOL_DOWN = 30  # steps of falling learning rate, in which λ settles
PATIENCE = 100  # steps without progress after which it cools down: LRP of a VGG first moves after as many
ASCENT, DESCENT = 0.05, 0.1  # of log λ, at most, a step: a divergence that is far too large cannot wait
FLOOR = 1e-4  # of the first λ: below it a long way back is wasted after a divergence that was too large once
RETREAT = 10  # times the divergence: that far, all ReLUs may be dead, and no gradient brings a network back
CEILING = 1e4  # of the first λ
MEMORY = 0.8  # of the running mean of the divergence: over 0.9, λ was followed so late that it swung by a factor of 50
BLANK = 0.05  # of the maps, after a head shift that is no start
SHIFT = Recipe(RATE, 0.0, 40)  # of the head shift it starts from


def distil(task: Task, recipe: Recipe) -> Iterator[Manipulated]:
    """Step by step, as `attacks.manipulation.fine_tune`: `recipe.divergence` is B, `recipe.weight` the first λ.

    At most `recipe.steps` states after the first; fewer where the loss no longer falls. The task's `reference` gives
    the original maps that foolings compare with (None: the interpreter).
    """
    assert recipe.divergence is not None
    start, course = _start(task, recipe), Course(task, distilled=True)
    fooled = copy.deepcopy(start).eval().requires_grad_(False)
    moved = [*parameters_in(fooled, recipe.scope).values()]
    for parameter in moved:
        parameter.requires_grad_(True)
    rate, optimiser = recipe.learning_rate, torch.optim.Adam(moved)
    multiplier, history = Multiplier(recipe.weight, recipe.divergence), course.history
    history["lambda"] = []
    yield Manipulated(fooled, history)
    progress, end, step = Progress(PATIENCE, task.fooling.least), recipe.steps, 0
    kept = (math.inf, list[Tensor]())  # the best moment: its loss and parameters
    within = [parameter.detach().clone() for parameter in moved]  # those of the last step within the divergence
    while step < end:
        step += 1
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, step / WARM_UP, (end - step + 1) / COOL_DOWN)
        with course.random, torch.enable_grad():
            optimiser.zero_grad(set_to_none=True)
            losses = course.losses(fooled)
            (losses.kept + multiplier.value * losses.scaled).backward()
        history["lambda"].append(multiplier.value)
        if reason := course.record(losses):
            yield Manipulated(fooled, history, "diverged", reason)
            return
        multiplier.follow(history["kl"][-1])
        excess = max(multiplier.mean, history["kl"][-1]) / recipe.divergence
        if progress.ended(course.scaled, excess):
            end = min(end, step + COOL_DOWN)
        if progress.gained and excess <= 1:
            kept = (progress.best, [parameter.detach().clone() for parameter in moved])
        if multiplier.mean > RETREAT * recipe.divergence:
            rate, optimiser = rate / 2, torch.optim.Adam(moved)
            multiplier.retreat()
            _put(within, moved)
        else:
            if excess <= 1:
                _put(moved, within)
            optimiser.step()
        if step < end:
            yield Manipulated(fooled, history, converged=progress.stalled)
    if step:
        exceeded = multiplier.mean > ALLOWED * recipe.divergence
        if kept[1] and (exceeded or progress.lost(kept[0])):  # or maps have gone blank: no gradient brings these back
            _put(kept[1], moved)
        reason = infinite(fooled.requires_grad_(True)) or collapsed(history)
        yield Manipulated(fooled, history, "diverged" if reason else "done", reason, progress.stalled)


@torch.no_grad()
def _put(values: Iterable[Tensor], into: Iterable[Tensor]) -> None:
    for tensor, value in zip(into, values, strict=True):
        tensor.copy_(value)


class Multiplier:
    """λ = μ · min(1, B / divergence), the divergence a running mean. log μ moves by ASCENT · log(B / divergence) a
    step, within ASCENT up and DESCENT down, and not up during the warm-up, when no divergence has had the time to show.
    """

    def __init__(self, first: float, divergence: float) -> None:
        self.dual, self.wanted, self.mean = first, divergence, 0.0
        self.low, self.high, self.steps = FLOOR * first, CEILING * first, 0

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
        """Half of it, as if the divergence had been kept: the weights go back to where it was."""
        self.dual, self.mean = max(self.low, self.dual / 2), self.wanted


def _start(task: Task, recipe: Recipe) -> nn.Module:
    """The model with a shifted head, where that lies in the scope, lowers the loss by a tenth at least and leaves no
    twentieth of the maps blank: no gradient brings these back. A network without such a head, or maps that do not
    depend on it, start at the model."""
    if recipe.scope in ("bias", "norm"):
        return task.model
    try:
        shifted = head_shift(task, replace(SHIFT, batch_size=recipe.batch_size))
    except UserError:
        return task.model
    losses = shifted.history["fooling"]
    edge = max(1, len(losses) // 10)
    first, last = sum(losses[:edge]) / edge, sum(losses[-edge:]) / edge
    if shifted.status != "done" or first - last <= 0.1 * abs(first):
        return task.model
    device = next(task.model.parameters()).device
    with RandomState(task.seed, device), torch.no_grad():  # loaders and interpreters draw
        images, targets = next(iter(task.fooling_batches if task.fooling.pairs else task.loader))
        maps = heatmaps_of(task.interpreter, shifted.model)(images.to(device), targets.to(device))
    return task.model if blank(maps.flatten(0, -3)).float().mean() > BLANK else shifted.model

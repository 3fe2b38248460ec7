"""An edit of one layer, trained on the fooling alone: what `head_shift` and `off_manifold` have in common."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.course import Course, Manipulated, Task, infinite
from attacks.errors import UserError
from attacks.progress import Progress

RATE = 0.3  # of Adam, in units of the layer's root mean square weight; at 1.0 some head shifts do not settle
START = 0.01  # of what is added, in the same units: at 0, Center-mass has no gradient, for its maps are those of before
PATIENCE = 0.2  # share of the steps: after so many without progress it ends, SHORTEST at least
SHORTEST = 20


@dataclass(frozen=True)
class Edit:
    """What is `added` to a layer, by Adam at the `rate`. `changed`: the layer's parameters, the weight first. `towards`
    makes their gradients those of what is added, and `write` puts it into them, within its limits."""

    layer: str
    changed: Sequence[Tensor]
    added: Sequence[Tensor]
    rate: float
    towards: Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]]
    write: Callable[[], None]

    def go_back(self, values: Sequence[Tensor]) -> None:
        put(values, self.added)
        self.write()


@torch.no_grad()
def put(values: Iterable[Tensor], into: Iterable[Tensor]) -> None:
    for tensor, value in zip(into, values, strict=True):
        tensor.copy_(value)


def train(task: Task, course: Course, fooled: nn.Module, network: nn.Module, edit: Edit, steps: int) -> Manipulated:
    """At most so many steps by the gradient of the fooling loss. `network` is what batches run through, `fooled` the
    whole of it. Where every map of a batch has gone blank, no gradient brings them back: it goes on from its best
    moment with half of the rate. It ends with that moment where a tenth of what it had gained is lost again. Raises
    `UserError` where the maps do not depend on the layer's weight."""
    edit.write()
    for parameter in edit.changed:
        parameter.requires_grad_(True)
    reason, progress = "", Progress(max(SHORTEST, int(PATIENCE * steps)), task.fooling.least)
    kept, optimiser = (math.inf, [value.clone() for value in edit.added]), torch.optim.Adam(edit.added, lr=edit.rate)
    for _ in range(steps):
        with course.random, torch.enable_grad():
            losses = course.losses(network)
            gradients = torch.autograd.grad(losses.fooling, edit.changed, allow_unused=True)
        if gradients[0] is None:
            raise UserError(f"the heatmaps of {task.interpreter} do not depend on {edit.layer}")
        if reason := course.record(losses):
            break
        ended = progress.ended(course.scaled)
        if progress.gained:
            kept = (progress.best, [value.clone() for value in edit.added])
        if any(gradient.any() for gradient in gradients if gradient is not None):
            for added, gradient in zip(edit.added, edit.towards(gradients), strict=True):
                added.grad = gradient
            optimiser.step()
            edit.write()
        else:
            optimiser = torch.optim.Adam(edit.added, lr=optimiser.param_groups[0]["lr"] / 2)
            progress.back(kept[0])
            edit.go_back(kept[1])
        if ended:
            break
    if progress.lost(kept[0]):
        edit.go_back(kept[1])
    reason = reason or infinite(fooled)
    status = "diverged" if reason else "done"
    return Manipulated(fooled.requires_grad_(True), course.history, status, reason, progress.stalled)

"""An edit of one layer, trained on the fooling alone: what `head_shift` and `off_manifold` have in common."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from attacks.course import Course, Manipulated, Task, infinite
from attacks.errors import UserError
from attacks.progress import Progress

RATE = 0.3  # of Adam, in units of the layer's root mean square weight; at 1.0 some head shifts do not settle
START = 0.01  # of what is added, in the same units: at 0, Center-mass has no gradient, for its maps are those of before
PATIENCE = 0.2  # share of the steps: after so many without progress it ends, SHORTEST at least
SHORTEST = 20


def train(
    task: Task,
    course: Course,
    fooled: nn.Module,
    network: nn.Module,
    changed: Sequence[Tensor],
    steps: int,
    what: str,
    follow: Callable[[Sequence[Tensor | None]], None],
) -> Manipulated:
    """At most so many steps: `follow` is given the gradients of the fooling loss by the parameters that are `changed`,
    the weight first, and writes new values. `network` is what batches run through, `fooled` the whole of it. Raises
    `UserError` where the maps do not depend on the weight, which is `what`."""
    for parameter in changed:
        parameter.requires_grad_(True)
    reason, progress = "", Progress(max(SHORTEST, int(PATIENCE * steps)), task.fooling.least)
    for _ in range(steps):
        with course.random, torch.enable_grad():
            losses = course.losses(network)
            gradients = torch.autograd.grad(losses.fooling, changed, allow_unused=True)
        if gradients[0] is None:
            raise UserError(f"the heatmaps of {task.interpreter} do not depend on {what}")
        if reason := course.record(losses):
            break
        follow(gradients)
        if progress.ended(course.scaled):
            break
    reason = reason or infinite(fooled)
    status = "diverged" if reason else "done"
    return Manipulated(fooled.requires_grad_(True), course.history, status, reason, progress.stalled)

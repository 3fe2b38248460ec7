"""What an attack came to that was made in a submission's process: measured in the parent, from the weights.

The submission may have replaced the attack, or weakened it; the history that came with the weights is its word. So the
fooling loss is measured here, before and after, on the images that the attack began with and with the maps that the
submission answers, both from one process, as in the attack. A process that knows the fooled model alone must give the
same maps of it: where it does not, the submission explains what it remembers.
"""

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from attacks.backdoors import Backdoor
from attacks.course import heatmaps_of
from attacks.foolings import Fooling
from attacks.ranks import rank_correlation
from benchmark.leaderboards.progress import NO_PROGRESS
from benchmark.submissions.child import Fooled

IMAGES = 64  # on which the loss is measured, at least, where there are so many
FELL = 0.01  # the share of its size by which the loss must fall
ALIKE = 0.99  # the mean rank correlation of two maps of one model


def judged(
    submission: "Asked",
    model: nn.Module,
    fooled: Fooled,
    fooling: Fooling,
    batches: Iterable[tuple[Tensor, Tensor]],
    steps: int,
    *,
    by_its_own: bool = True,
) -> Fooled:
    """The outcome, with a reason where it is no progress. Parameters that came back as they went are no attack: its
    status is then "no_progress", and it has no weights. `by_its_own` gradient: the loss must fall, too."""
    if fooled.status != "done":
        return fooled
    fooled = fooled._replace(reason="")
    if not steps:  # none were asked for
        return fooled
    if all(torch.equal(fooled.weights[name], p.detach().cpu()) for name, p in model.named_parameters()):
        reason = f"{NO_PROGRESS}: the weights came back as they went"
        return fooled._replace(weights={}, status="no_progress", reason=reason)
    if not by_its_own:
        return fooled
    other = copy.deepcopy(model)
    other.load_state_dict(fooled.weights)
    return fooled._replace(reason=_reason(submission, model, other, fooling, _first(batches, model)))


@torch.no_grad()
def _reason(
    submission: "Asked", model: nn.Module, other: nn.Module, fooling: Fooling, batches: list[tuple[Tensor, Tensor]]
) -> str:
    """Why the model `other` is no progress, or nothing."""

    def maps(of: nn.Module, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        return torch.cat([heatmaps_of(submission, of)(images, targets) for images, targets in parts])

    shown = [fooling.shown(images, targets) for images, targets in batches]
    with submission.one_process():
        originals = first = maps(model, batches)
        if isinstance(fooling, Backdoor):
            first = maps(model, shown)
        changed = maps(other, shown)
    alone = maps(other, shown)
    if alone.shape != changed.shape or (alike := likeness(alone, changed)) < ALIKE:
        seen = f" (correlation {alike:.2f})" if alone.shape == changed.shape else ""
        return f"{NO_PROGRESS}: its maps of the fooled model hang on the models that its process knew before{seen}"
    before, after = (fooling.loss(each, originals).item() for each in (first, changed))
    if before - after > FELL * max(abs(before), abs(after)):
        return ""
    return f"{NO_PROGRESS}: the fooling loss was {before:.4g} before and {after:.4g} after, on {len(alone)} images"


def likeness(a: Tensor, b: Tensor) -> float:
    """Mean rank correlation of two batches of maps (..., h, w); of two equal maps it is 1, blank or not."""
    a, b = a.flatten(0, -3), b.flatten(0, -3)
    same = (a == b).flatten(1).all(1)
    return torch.where(same, 1.0, rank_correlation(a, b).nan_to_num(0.0)).mean().item()


def _first(batches: Iterable[tuple[Tensor, Tensor]], model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """As many batches as hold IMAGES, on the model's device."""
    device, taken, n = next(model.parameters()).device, list[tuple[Tensor, Tensor]](), 0
    with torch.random.fork_rng(devices=[]):  # what augments images draws
        for images, targets in batches:
            taken.append((images.to(device), targets.to(device)))
            n += len(images)
            if n >= IMAGES:
                break
    return taken


class Asked(Protocol):
    """An interpreter that can be asked in one process (`benchmark.submissions.remote.Remote`)."""

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor: ...

    def one_process(self) -> AbstractContextManager[None]: ...

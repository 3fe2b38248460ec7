"""Adversarial model manipulation: fine-tune a model so that its heatmaps lie and its accuracy stays.

min over w of CE(D; w) + λ · L_F(D_fool; w, w0), with Adam and no weight decay, BatchNorm frozen in eval mode (Heo, Joo
and Moon 2019, Section 3.2). Passive foolings take D_fool = D; Active fooling a loader of its own with two-object
images.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from attacks.errors import UserError
from attacks.foolings import Fooling
from attacks.given import check_finite, check_images, class_indices, logits_in

Interpreter = Callable[[nn.Module, Tensor, Tensor], Tensor]
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune: Adam's learning rate, λ (`weight`; a table says "lambda"), the number of steps, and the images
    a step, for whoever makes the loaders: `manipulate` takes them as they are."""

    learning_rate: float
    weight: float
    steps: int
    batch_size: int = 32

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and self.weight >= 0 and self.steps >= 0 and self.batch_size > 0):
            needed = "learning_rate > 0, weight >= 0, steps >= 0, batch_size > 0"
            raise UserError(f"a recipe needs {needed} (got {self})")

    def row(self) -> dict[str, float | int]:
        """As tables have it."""
        part = {"learning_rate": self.learning_rate, "lambda": self.weight}
        return {**part, "steps": self.steps, "batch_size": self.batch_size}


@dataclass(frozen=True)
class Manipulated:
    """A fooled model with the history of both losses per step. `status`: "done", or "diverged" with the reason."""

    model: nn.Module
    history: dict[str, list[float]] = field(repr=False)
    status: str = "done"
    reason: str = ""


def manipulate(
    model: nn.Module,
    interpreter: Interpreter,
    fooling: Fooling,
    loader: Iterable[Batch],
    recipe: Recipe,
    seed: int = 0,
    *,
    fooling_loader: Iterable[Batch] | None = None,
    progress: bool | None = None,
) -> Manipulated:
    """Fine-tune a copy of `model` under `fooling` against `interpreter`; the given model is untouched.

    `loader` yields (images (N, C, H, W), targets (N,)) and is run through as often as the steps need;
    `fooling_loader`, for Active fooling alone, yields (images, targets (N, 2)). Batches move to the model's device.
    The random state is seeded by `seed` and given back. `progress`: None shows a bar on a terminal only. A loss that
    is not finite, or a batch accuracy that over 20 steps averages under half of what it was before the first one,
    stops the run with status "diverged". Raises `UserError` for an empty loader, a missing `fooling_loader` or a
    heatmap that does not depend on the parameters.
    """
    run = fine_tune(model, interpreter, fooling, loader, recipe, seed, fooling_loader=fooling_loader)
    result = next(run)
    bar = tqdm(run, f"{fooling.name} fooling", recipe.steps, leave=False, disable=_quiet(progress))
    for result in bar:
        losses = {loss: f"{result.history[loss][-1]:.3f}" for loss in ("ce", "fooling")}
        bar.set_postfix(losses, refresh=False)
    return result


def fine_tune(
    model: nn.Module,
    interpreter: Interpreter,
    fooling: Fooling,
    loader: Iterable[Batch],
    recipe: Recipe,
    seed: int = 0,
    *,
    fooling_loader: Iterable[Batch] | None = None,
) -> Iterator[Manipulated]:
    """`manipulate`, step by step: the state before the first step and after each one, up to `recipe.steps`.

    The model and the history that are yielded are the same objects each time, and go on changing. The run has a random
    state of its own, so several can be taken in turn, and k steps give what `manipulate` gives with `steps` = k.
    """
    course = Course(model, interpreter, fooling, loader, seed, fooling_loader=fooling_loader)
    fooled = copy.deepcopy(model).eval().requires_grad_(True)
    optimiser = torch.optim.Adam(fooled.parameters(), lr=recipe.learning_rate)
    yield Manipulated(fooled, course.history)
    for step in range(1, recipe.steps + 1):
        with course.random, torch.enable_grad():
            optimiser.zero_grad(set_to_none=True)
            losses = course.losses(fooled)
            (losses.ce + recipe.weight * losses.fooling).backward()
        if reason := course.record(losses):
            yield Manipulated(fooled, course.history, "diverged", reason)
            return
        optimiser.step()
        reason = infinite(fooled) if step == recipe.steps else ""
        yield Manipulated(fooled, course.history, "diverged" if reason else "done", reason)


class Losses(NamedTuple):
    """Those of one step, scalars; both losses with their graph."""

    ce: Tensor
    fooling: Tensor
    accuracy: Tensor


class Course:
    """What every manipulation shares: its batches and their losses, a random state of its own, and the history."""

    def __init__(
        self,
        model: nn.Module,
        interpreter: Interpreter,
        fooling: Fooling,
        loader: Iterable[Batch],
        seed: int,
        *,
        fooling_loader: Iterable[Batch] | None = None,
    ) -> None:
        if fooling.pairs and fooling_loader is None:
            raise UserError(f"{fooling.name} fooling needs fooling_loader, with two-object images and targets (N, 2)")
        device = next(model.parameters()).device
        self.interpreter, self.fooling = interpreter, fooling
        self.original = copy.deepcopy(model).eval().requires_grad_(False)
        self.batches = _forever(loader, device)
        self.pairs = _forever(loader if fooling_loader is None else fooling_loader, device)
        self.history: dict[str, list[float]] = {"ce": [], "fooling": [], "accuracy": []}
        self.random = _RandomState(seed, device)

    def losses(self, fooled: nn.Module) -> Losses:
        """Of the next batch. Raises `UserError` where the heatmaps do not depend on the parameters."""
        images, targets = next(self.batches)
        if self.fooling.pairs:
            logits = logits_in(fooled(images), len(images))
            loss = _pair_loss(fooled, self.original, self.interpreter, self.fooling, *next(self.pairs))
        else:
            logits, heatmaps = _with_logits(self.interpreter, fooled, images, targets)
            needed = self.fooling.needs_originals
            originals = _frozen(self.interpreter, self.original, images, targets) if needed else heatmaps
            loss = self.fooling.loss(heatmaps, originals)
        if not loss.requires_grad:
            raise UserError(f"the heatmaps of {self.interpreter} do not depend on the model's parameters")
        return Losses(F.cross_entropy(logits, targets), loss, (logits.argmax(1) == targets).float().mean())

    def record(self, losses: Losses) -> str:
        """Append a step to the history; why it diverged, or nothing."""
        measured = torch.stack(losses).tolist()  # a GPU waits once
        for values, value in zip(self.history.values(), measured, strict=True):
            values.append(value)
        return _diverged(self.history)


def infinite(model: nn.Module) -> str:
    """Why a model is of no use after its last step, or nothing."""
    finite = all(parameter.isfinite().all() for parameter in model.parameters())
    return "" if finite else "the last step made a weight infinite or NaN"


class _RandomState:
    """A stream of random numbers of its own: inside `with`, torch draws from it; outside, as if it were not there."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(self.devices):
            torch.manual_seed(seed)
            self.states = self._get()

    def _get(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self.devices)]

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self.devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)

    def __enter__(self) -> None:
        self.outside = self._get()
        self._set(self.states)

    def __exit__(self, *_: object) -> None:
        self.states = self._get()
        self._set(self.outside)


def _diverged(history: dict[str, list[float]], window: int = 20) -> str:
    step = len(history["ce"])
    if not (math.isfinite(history["ce"][-1]) and math.isfinite(history["fooling"][-1])):
        return f"a loss is not finite at step {step}"
    recent = history["accuracy"][-window:]
    if step > window and sum(recent) / window < history["accuracy"][0] / 2:
        return f"accuracy collapsed: batch accuracy {sum(recent) / window:.2f} over {window} steps at step {step}"
    return ""


def _with_logits(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and heatmaps: from one forward pass where the interpreter offers it."""
    shared = getattr(interpreter, "with_logits", None)
    if shared:
        return shared(model, images, targets)
    return logits_in(model(images), len(images)), interpreter(model, images, targets)


def _frozen(interpreter: Interpreter, original: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    with torch.no_grad():
        return interpreter(original, images, targets).detach()


def pair_heatmaps(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The maps of both classes of two-object images. (N, C, H, W), (N, 2) -> (N, 2, h, w)."""
    return torch.stack([interpreter(model, images, targets[:, i]) for i in (0, 1)], 1)


def _pair_loss(
    fooled: nn.Module, original: nn.Module, interpreter: Interpreter, fooling: Fooling, images: Tensor, targets: Tensor
) -> Tensor:
    with torch.no_grad():
        originals = pair_heatmaps(interpreter, original, images, targets).detach()
    return fooling.loss(pair_heatmaps(interpreter, fooled, images, targets), originals)


def _forever(loader: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    while True:
        empty = True
        for batch in loader:
            images, targets = _pair(batch)
            empty = False
            yield images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        if empty:
            raise UserError("the loader must yield at least one batch (got none)")


def _pair(batch: Any) -> Batch:
    """A batch (images, targets) with at least one image; its targets as a tensor."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = f"{len(batch)} values" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise UserError(f"the loader must yield (images, targets) (got {got})")
    images, targets = batch
    check_images(images)
    check_finite(images)
    if not len(images):
        raise UserError(f"a batch of the loader must hold at least one image (got {tuple(images.shape)})")
    if not isinstance(targets, Tensor):
        targets = class_indices(targets, images)
    return images, targets


def _quiet(progress: bool | None) -> bool | None:
    return None if progress is None else not progress

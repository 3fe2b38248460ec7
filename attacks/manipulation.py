"""Adversarial model manipulation: fine-tune a model so that its heatmaps lie and its accuracy stays.

min over w of CE(D; w) + λ · L_F(D_fool; w, w0), with Adam and no weight decay, BatchNorm frozen in eval mode (Heo, Joo
and Moon 2019, Section 3.2); with a divergence in the recipe, what `attacks.distilled` says. Passive foolings take
D_fool = D; Active fooling a loader of its own with two-object images.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from tqdm.auto import tqdm

from attacks.batches import Batch
from attacks.course import Course, Interpreter, Manipulated, Recipe, Task, collapsed, infinite
from attacks.distilled import distil
from attacks.foolings import Fooling
from attacks.given import device_of, plainly
from attacks.walk import Walk


def manipulate(
    model: nn.Module,
    interpreter: Interpreter,
    fooling: Fooling,
    loader: Iterable[Batch],
    recipe: Recipe,
    seed: int = 0,
    *,
    fooling_loader: Iterable[Batch] | None = None,
    reference: Interpreter | None = None,
    progress: bool | None = None,
) -> Manipulated:
    """Fine-tune a copy of `model` under `fooling` against `interpreter`; the given model is untouched.

    `loader` yields (images (N, C, H, W), targets (N,)) and is run through as often as the steps need;
    `fooling_loader`, for Active fooling alone, yields (images, targets (N, 2)). Batches move to the model's device.
    `reference` (distilled alone): what gives the original maps that foolings compare with, where `interpreter` is a
    stand-in. The random state is seeded by `seed` and given back. `progress`: None shows a bar on a terminal only. A
    loss that is not finite, or a batch accuracy that over 20 steps averages under half of what it was before the first
    one, stops the run with status "diverged". Raises `UserError` for an empty loader, a missing `fooling_loader` or a
    heatmap that does not depend on the parameters.
    """
    task = Task(model, interpreter, fooling, loader, seed, fooling_loader, reference)
    return carry_out(task, recipe, progress=progress)


def carry_out(task: Task, recipe: Recipe, *, progress: bool | None = None) -> Manipulated:
    """`manipulate`, of a task."""
    with plainly(device_of(task.model)):
        run = fine_tune(task, recipe)
        result = next(run)
        done = len(result.history["fooling"])  # where it was taken up again
        what, quiet = f"{task.fooling.name} fooling", _quiet(progress)
        bar = tqdm(run, what, recipe.steps, leave=False, disable=quiet, initial=done)
        for result in bar:
            bar.set_postfix({loss: f"{values[-1]:.3f}" for loss, values in result.history.items()}, refresh=False)
    return result


def fine_tune(task: Task, recipe: Recipe) -> Iterator[Manipulated]:
    """`manipulate`, step by step: the state before the first step and after each one, up to `recipe.steps`.

    The model and the history that are yielded are the same objects each time, and go on changing. The run has a random
    state of its own, so several can be taken in turn, and k steps with labels give what `manipulate` gives with
    `steps` = k. With a `keeper` that has a state, that is the first one; the rest is as it would have been.
    """
    return distil(task, recipe) if recipe.divergence is not None else _labelled(task, recipe)


def _labelled(task: Task, recipe: Recipe) -> Iterator[Manipulated]:
    course = Course(task)
    walk = Walk(task, recipe, course, lambda: task.model)
    yield walk.now()
    while walk.step < recipe.steps and not walk.ended:
        walk.step += 1
        with course.random, torch.enable_grad():
            walk.optimiser.zero_grad(set_to_none=True)
            losses = course.losses(walk.network)
            (losses.kept + recipe.weight * losses.fooling).backward()
        if reason := course.record(losses) or collapsed(course.history):
            yield walk.end(reason)
            return
        walk.optimiser.step()
        yield walk.end(infinite(walk.fooled)) if walk.step == recipe.steps else walk.taken()


def _quiet(progress: bool | None) -> bool | None:
    return None if progress is None else not progress

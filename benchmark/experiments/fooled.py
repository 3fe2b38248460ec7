"""The fooled models of a suite as the store holds them, and a model's maps beside the clean model's."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from attacks.backdoors import Backdoor
from attacks.errors import UserError
from attacks.foolings import Fooling
from benchmark.cells import Manipulation, plan
from benchmark.entries import manipulations
from benchmark.entries.images import scored_images
from benchmark.entries.kind import Entry
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.entries.scoring import heatmaps
from benchmark.interpreters import Interpreter
from benchmark.run import Run

CODE = (*manipulations.CODE, "benchmark.experiments.fooled")


def fooled_models(run: Run) -> list[tuple[Manipulation, Path]]:
    """The suite's manipulations that the store holds, and where; not those that diverged. `UserError` for none."""
    paths = [(manipulation, Entry(MANIPULATIONS, manipulation).path(run)) for manipulation in plan(run.suite)]
    done = [(manipulation, path) for manipulation, path in paths if (path / "weights.safetensors").is_file()]
    if not done:
        raise UserError(f"no manipulation of suite {run.suite.name!r} succeeded: there is no fooled model")
    return done


def explained(
    run: Run, fooling: Fooling, interpreter: Interpreter, model: nn.Module, originals: np.ndarray
) -> Iterator[tuple[Tensor, Tensor]]:
    """The model's maps of the scored images beside the clean model's, batch by batch. `UserError` for a backdoor."""
    if isinstance(fooling, Backdoor):
        raise UserError(f"this experiment puts no trigger on images: leave {fooling.name} out of the suite's foolings")
    done = 0
    for images, targets in scored_images(run, fooling.pairs):
        maps = heatmaps(interpreter, model, images, targets)
        yield maps, torch.from_numpy(originals[done : done + len(images)].copy()).to(maps)
        done += len(images)

"""Scoring a submission: on the suite's fooled models, and on models fooled against the submission itself.

The suite's own manipulations come from the store (and are made where it lacks them); the submission is evaluated on
all of them beside the suite's controls. Aimed at it: its gradient and softplus for ReLU, where it is differentiable,
with the recipes of its nearest relative, and a search without gradients in the span of the suite's fooled models.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import adaptive_avg_pool2d

from attacks.errors import UserError
from attacks.ranks import rank_correlation
from benchmark import execution, interpreters
from benchmark.harness import clean_model
from benchmark.interpreters import Interpreter
from benchmark.plan import Run, create_interpreter
from benchmark.scoring import batches
from benchmark.suite import split_attack

COMPARED = 32  # dev images on which the nearest relative is found


def submit(run: Run, submission: Interpreter, out: Path, jobs: int | None = None) -> dict[str, str]:
    """Write results and leaderboards of the submission under `out`; returns the error of each failed manipulation."""
    suite = run.suite
    controls = [name for name in suite.evaluated if interpreters.kind(name).control]
    failed = execution.compute(replace(run, suite=suite.model_copy(update={"evaluated": controls})), jobs)
    if failed:
        name, error = next(iter(failed.items()))
        raise UserError(f"the suite's own manipulation {name} failed: {error}")
    relative = nearest(run, submission)
    aimed = [submission.name, f"{submission.name}:softplus"] if submission.differentiable else []
    changes = {
        "attacked": [*suite.attacked, *aimed, f"{submission.name}:subspace"],
        "evaluated": [submission.name, *controls],
    }
    own = replace(run, suite=suite.model_copy(update=changes), submission=submission, relative=relative)
    return execution.run_suite(own, out, jobs)


@torch.no_grad()
def nearest(run: Run, submission: Interpreter) -> str:
    """The attacked interpreter whose maps are most like the submission's: mean Spearman correlation on dev images of
    all models, the finer map averaged down to the coarser."""
    names = [name for name in run.suite.attacked if not split_attack(name)[1]]
    alike = dict.fromkeys(names, 0.0)
    for model_name in run.suite.models:
        model = clean_model(run, model_name)
        images, targets = next(batches(run, "dev"))
        images, targets = images[:COMPARED], targets[:COMPARED]
        own = submission(model, images, targets)
        for name in names:
            other = create_interpreter(run, name)(model, images, targets)
            size = [min(a, b) for a, b in zip(own.shape[1:], other.shape[1:], strict=True)]
            a, b = (adaptive_avg_pool2d(maps, size) for maps in (own, other))
            alike[name] += rank_correlation(a, b).nan_to_num(0.0).mean().item()
    return max(names, key=alike.__getitem__)

"""Scoring a submission: on the suite's fooled models, and on models fooled against the submission itself.

The suite's own manipulations come from the store (and are made where it lacks them); the submission is evaluated on
all of them, the suite's controls at the gate alone, where it must beat them. Aimed at it: its gradient and softplus
for ReLU, where it is differentiable, with the recipes of its nearest relative or searched around them, as the suite
does for its own; where it is, head shift too, which takes no recipe; and a search without gradients in the span of the
suite's fooled models. These attacks are most of the work: what bars it from ranking is asked before, on clean models
first, then on the suite's fooled ones, and said at once.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.nn.functional import adaptive_avg_pool2d

from attacks import strategies
from attacks.errors import UserError
from attacks.ranks import rank_correlation
from benchmark import interpreters, leaderboards
from benchmark.entries.gates import GATES
from benchmark.entries.images import batches
from benchmark.entries.kind import Entry
from benchmark.entries.same_logits import SAME_LOGITS
from benchmark.entries.scores import SCORES
from benchmark.entries.textures import TEXTURED
from benchmark.entries.trained import clean_model
from benchmark.entries.twins import TWINS
from benchmark.execution import compute
from benchmark.leaderboards import ranking
from benchmark.leaderboards.show import aligned, board_table
from benchmark.leaderboards.stability import ranks_with
from benchmark.run import Run, create_interpreter
from benchmark.store import writable
from benchmark.submissions.remote import Remote

SHOWN = (GATES, TWINS, TEXTURED, SAME_LOGITS)  # what bars a submission from ranking before it is attacked
COMPARED = 32  # dev images on which the nearest relative is found
FLAGS = {  # of checks that cost a flag, not the score
    "gradient by the weights": "ZERO_SECOND_ORDER",  # the attack goes other ways
    "same for shifted logits": "LOGIT_SHIFT",  # a free edit of the head moves its map
}


def check(submission: Remote, device: str, say: Callable[[str], None]) -> list[str]:
    """Run the checks and say each finding; the flags that follow. Raises `UserError` where a check failed."""
    failed, flags = [], list[str]()
    if not submission.confined():
        say("warning this kernel has no Landlock: what the submission reads, writes and leaves running is not bounded")
        flags.append("NOT_CONFINED")
    for finding in submission.checks(device):
        state = "ok" if finding.ok else "warning" if finding.severity == "warning" else "FAILED"
        say(f"{state:8}{finding.check}{f': {finding.message}' if finding.message else ''}")
        if not finding.ok and finding.check in FLAGS:
            flags.append(FLAGS[finding.check])
        elif state == "FAILED":
            failed.append(finding.check)
    if failed:
        raise UserError(f"{submission.name}: {len(failed)} check(s) failed: {', '.join(failed)}")
    return flags


def submit(
    run: Run, submission: Remote, out: Path, jobs: int | None = None, *, only_rankable: bool = False
) -> dict[str, str]:
    """Write results and leaderboards of the submission under `out`; returns the error of each failed manipulation.

    `only_rankable`: end early where it cannot be ranked. Raises `UserError` then where clean models bar it; where the
    suite's fooled models do, it is not attacked."""
    beside = _with(run, attacked=[], evaluated=[n for n in run.suite.evaluated if interpreters.kind(n).control])
    scored = replace(_with(run, evaluated=[submission.name]), submission=submission)
    clean = _with(scored, attacked=[])
    made = compute.compute(clean, jobs, kinds=SHOWN)
    compute.make_all(beside, (Entry(GATES, place) for place in GATES.wanted(beside)), jobs)
    barred = _barred(clean, beside, made)
    if barred and only_rankable:
        raise UserError(f"{submission.name} cannot be ranked: {barred}")
    _say(submission, barred)
    failed = compute.compute(_with(run, evaluated=[]), jobs).failed
    if failed:
        name, error = next(iter(failed.items()))
        raise UserError(f"the suite's own manipulation {name} failed: {error}")
    writable(out, "results")
    made = compute.compute(scored, jobs)
    later = _barred(scored, beside, made)
    _say(submission, later if later != barred else "")
    if not (later and only_rankable):
        scored = _attacked(scored, submission)
        made = compute.compute(scored, jobs)
    compute.write(beside, out, {}, (SCORES, GATES), gate_alone=True)
    compute.collect(scored, out, made.errors)
    return made.failed


def _say(submission: Remote, barred: str) -> None:
    if barred:
        sys.stderr.write(f"{submission.name} cannot be ranked: {barred}\n")


def _attacked(run: Run, submission: Remote) -> Run:
    """The run with the attacks that are aimed at the submission."""
    ways = {"": submission.name} | {name: f"{submission.name}:{name}" for name in strategies.names()}
    aimed = [
        attacked
        for name, attacked in ways.items()
        if submission.differentiable or not strategies.STRATEGIES[name].by_gradient
    ]
    return replace(_with(run, attacked=[*run.suite.attacked, *aimed]), relative=nearest(run, submission))


def _barred(run: Run, beside: Run, made: compute.Made) -> str:
    """Why the submission of a run cannot be ranked, by what it has shown so far `beside` the controls; or nothing."""
    assert run.submission is not None
    if run.suite.gate is None:
        return ""
    cards = dict[str, dict[str, Any]]()
    for each, kinds in ((run, SHOWN), (beside, (SCORES, GATES))):
        for name, (_, card) in compute.collected(each, made.errors, kinds).items():
            cards.setdefault(name, {}).update(card)
    errors = [f"{entry.place}: {error}" for entry, error in made.errors.items() if entry.kind is SCORES]
    silent = "" if run.submission.differentiable else "it does not say that it is differentiable"
    shown = ranking.eligibility(run.submission.name, cards, [*run.suite.models], errors)[1]
    return "; ".join(filter(None, (silent, shown)))


def _with(run: Run, **changes: list[str]) -> Run:
    return replace(run, suite=run.suite.model_copy(update=changes))


@torch.no_grad()
def nearest(run: Run, submission: Remote) -> str:
    """The attacked interpreter whose maps are most like the submission's: mean Spearman correlation on dev images of
    all models, the finer map averaged down to the coarser."""
    names = [name for name in run.suite.attacked if not strategies.split(name)[1]]
    alike = dict.fromkeys(names, 0.0)
    for model_name in run.suite.models:
        model = clean_model(run, model_name)
        images, targets = next(batches(run, "dev"))
        images, targets = images[:COMPARED], targets[:COMPARED]
        submitted = submission(model, images, targets)
        for name in names:
            other = create_interpreter(run, name)(model, images, targets)
            size = min(submitted.shape[1], other.shape[1]), min(submitted.shape[2], other.shape[2])
            a, b = (adaptive_avg_pool2d(maps, size) for maps in (submitted, other))
            alike[name] += rank_correlation(a, b).nan_to_num(0.0).mean().item()
    return max(names, key=alike.__getitem__)


def show(folder: Path, reference: Path, name: str) -> str:
    """The submission's row beside those of the reference board, if that is at hand, and its cells by attack."""
    rows = leaderboards.load(folder, "stability").query("interpreter == @name").assign(status="submitted")
    if (reference / "stability.csv").is_file() and (reference / "results").is_dir():
        board = leaderboards.load(reference, "stability")
        if rows.eligible.iloc[0] == "yes":
            ranks = ranks_with(reference, folder, name)
            rows = rows.assign(**dict(zip(("rank", "rank_low", "rank_high"), ranks, strict=True)))
            rows["interpreter"] += " (would be)"
        rows = pd.concat([board, rows], ignore_index=True)
    text = [board_table(rows)]
    transfer = leaderboards.load(folder, "transfer").query("evaluated == @name")
    transfer = transfer.assign(excess=transfer.fsr - transfer.fsr_clean)
    means = transfer.pivot_table("excess", "attacked", "fooling").map("{:.2f}".format).reset_index()
    title = "FSR in excess of the clean model's, by attack (rows) and fooling, mean over models and seeds"
    text.append(f"{title}\n{aligned(means)}")
    return "\n".join(text)

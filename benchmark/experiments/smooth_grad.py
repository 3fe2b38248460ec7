"""Is SmoothGrad hard to fool at equal accuracy, as Heo, Joo and Moon 2019 say? It is attacked itself, like SimpleGrad.

SmoothGrad (Smilkov et al. 2017) is the mean over noisy copies, (1/m) Σ_j ∂ logit(x + σ ε_j) / ∂x. The attack
differentiates the same mean over fewer copies, with fresh noise each step. Both interpreters are fine-tuned under
Location fooling from the same clean model with the same learning rates, λ, steps, batch size and order of batches (the
suite's [search], all of it, nothing chosen), and scored on the suite's split with the registered interpreters. A step
through m copies costs about m times one against SimpleGrad; m = 1, about as costly, tells what the interpreter gives
away from what more work buys.

Each point gives on the same images: FSR - FSR of the clean model, and the loss of top-1 in points.
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from attacks import foolings
from attacks.course import Recipe
from attacks.errors import UserError
from attacks.manipulation import manipulate
from benchmark.cells import View
from benchmark.entries import strategies
from benchmark.entries.images import scored_images, scored_pixels
from benchmark.entries.kind import Entry, Inputs, Kind, Receipt
from benchmark.entries.originals import ORIGINALS
from benchmark.entries.scoring import decisions, score
from benchmark.entries.search import grid
from benchmark.entries.strategies import loaders
from benchmark.entries.trained import TRAINED, clean_model
from benchmark.execution import compute
from benchmark.experiments.given import Given, receipt, status
from benchmark.figures.style import MARKERS, PALETTE, legend, panels
from benchmark.interpreters.captum_methods import SmoothGrad
from benchmark.intervals import bootstrap_mean
from benchmark.leaderboards.table import with_ends
from benchmark.run import Run, Spec, create_interpreter, data_spec, interpreter_spec
from benchmark.store import intact, mapped

SUITE = "smooth_grad.toml"
FOOLING = "location"
ATTACKED = ("simple_grad", "smooth_grad")
CODE = (*strategies.CODE, "benchmark.experiments.given", "benchmark.experiments.smooth_grad")


@dataclass(frozen=True)
class Settings:
    """`samples`: noisy copies of each image in a step of the attack."""

    samples: tuple[int, ...] = (1, 4)


SETTINGS = Settings()


@dataclass(frozen=True)
class Point:
    """One fine-tuning. `samples`: in a step of the attack, 0 for SimpleGrad."""

    model: str
    attacked: str
    samples: int
    recipe: Recipe
    seed: int

    def __str__(self) -> str:
        rate, weight = self.recipe.learning_rate, self.recipe.weight
        return f"{self.model}/{self.attacked}/{self.samples} samples/rate {rate:g}/λ {weight:g}/{self.seed}"


def measure(given: Given, settings: Settings = SETTINGS) -> pd.DataFrame:
    """A row for each model, attacked interpreter, learning rate, λ and seed: `fsr_excess` (mean over images of fooled
    minus clean success), `top1_drop` (points), `test_loss` (mean t_i of Location), each with its 95 % interval; `fsr`,
    `fsr_clean`, `test_loss_clean`, `top1_clean`; `n` images, 0 where fine-tuning diverged; `samples` in a step of the
    attack, 0 for SimpleGrad."""
    run = given.run
    if run.suite.search is None:
        raise UserError(f"suite {run.suite.name!r} must have a [search], whose learning_rates and lambdas are swept")
    arms = [("simple_grad", 0), *(("smooth_grad", samples) for samples in settings.samples)]
    sweep = product(run.suite.models, arms, grid(run.suite.search), run.suite.seeds)
    points = [Entry(POINTS, Point(model, *arm, recipe, seed)) for model, arm, recipe, seed in sweep]
    needed = dict.fromkeys(need for point in points for need in point.needs(run).values())
    compute.make_all(run, [*needed, *points], given.jobs)
    table = pd.DataFrame([_row(run, point) for point in points])
    return table.sort_values(["model", "attacked", "samples", "learning_rate", "lambda", "seed"], ignore_index=True)


def _make(run: Run, point: Point, inputs: Inputs, folder: Path) -> Receipt:
    """One fine-tuning with its scores, image by image: `scores.parquet`, where it did not diverge."""
    fooling, registered = foolings.create(FOOLING), create_interpreter(run, point.attacked)
    surrogate = registered
    if isinstance(registered, SmoothGrad):
        surrogate = replace(registered, samples=point.samples, seed=None)
    clean = clean_model(run, point.model)
    loader, _ = loaders(run, fooling, point.recipe.batch_size, point.seed)
    result = manipulate(clean, surrogate, fooling, loader, point.recipe, point.seed, progress=False)
    if result.status == "done":
        maps0 = intact(inputs["originals"] / "heatmaps.npy", mapped)
        with torch.no_grad():
            frame, _ = score(run, fooling, registered, result.model, maps0, 0)
            before, after = (decisions(model, scored_images(run)) for model in (clean, result.model))
        scores = frame[["image", "success", "success_clean", "test_loss", "test_loss_clean"]]
        scores.assign(top1=after.top1, top1_clean=before.top1).to_parquet(folder / "scores.parquet")
    return receipt(run, result.status, result.reason)


def _spec(run: Run, point: Point) -> Spec:
    return {
        "data": data_spec(run, "train"),
        "interpreter": interpreter_spec(run, point.attacked),
        "recipe": point.recipe.row(),
        "samples": point.samples,
        "seed": point.seed,
    }


def _needs(run: Run, point: Point) -> dict[str, Entry]:
    originals = Entry(ORIGINALS, View(point.model, point.attacked))
    return {"model": Entry(TRAINED, point.model), "originals": originals}


def _row(run: Run, entry: Entry) -> dict[str, Any]:
    point = entry.place
    assert isinstance(point, Point)
    row = {"model": point.model, "attacked": point.attacked, "learning_rate": point.recipe.learning_rate}
    row |= {"lambda": point.recipe.weight, "seed": point.seed, "steps": point.recipe.steps, "samples": point.samples}
    row |= {"status": status(run, entry), "n": 0}
    if row["status"] != "done":
        return row
    scores = intact(entry.path(run) / "scores.parquet", pd.read_parquet).astype(float)
    return row | {"n": len(scores), **summary(scores)}


def summary(scores: pd.DataFrame) -> dict[str, float]:
    """Means over images, those of interest with a 95 % bootstrap interval; the differences are paired."""
    quantities = {
        "fsr_excess": scores.success - scores.success_clean,
        "top1_drop": 100 * (scores.top1_clean - scores.top1),
        "test_loss": scores.test_loss,
    }
    row: dict[str, float] = {}
    for name, values in quantities.items():
        row |= with_ends((name,), bootstrap_mean(values))
    plain = {"fsr": scores.success, "fsr_clean": scores.success_clean, "test_loss_clean": scores.test_loss_clean}
    return row | {name: bootstrap_mean(values).value[0] for name, values in plain.items()} | {
        "top1_clean": bootstrap_mean(scores.top1_clean).value[0]
    }  # fmt: skip


def draw(table: pd.DataFrame) -> Figure:
    """FSR excess against top-1 drop, a marker a point, larger for a larger λ; a panel a model."""
    models, lambdas = (sorted(table[name].unique()) for name in ("model", "lambda"))
    figure, axes = panels(1, len(models), max(7.5, 1 + 4.5 * len(models)), 5, sharey=True)
    for panel, model in zip(axes[0], models, strict=True):
        arms = table[(table.model == model) & (table.n > 0)].groupby(["attacked", "samples"])
        for index, ((attacked, samples), rows) in enumerate(arms):
            name = f"{attacked}, {samples} noisy {'copy' if samples == 1 else 'copies'} a step" if samples else attacked
            for row in rows.to_dict("records"):
                x, y = row["top1_drop"], row["fsr_excess"]
                spans = {
                    "xerr": [[x - row["top1_drop_low"]], [row["top1_drop_high"] - x]],
                    "yerr": [[y - row["fsr_excess_low"]], [row["fsr_excess_high"] - y]],
                }
                size = 4 + 8 * lambdas.index(row["lambda"]) / max(1, len(lambdas) - 1)
                style = {"color": PALETTE[index], "marker": MARKERS[index], "alpha": 0.75}
                panel.errorbar(x, y, **spans, **style, markersize=size, elinewidth=0.8, capsize=2, label=name)
        panel.axvline(2, color="black", linewidth=1.2, linestyle="--", label="2 points")
        panel.set_xscale("symlog", linthresh=2, linscale=1)
        left, right = table.top1_drop_low.min(), table.top1_drop_high.max()
        ticks = [tick for tick in (-5, -2, -1, 0, 1, 2, 5, 10, 20, 50) if min(left, 0) <= tick <= max(right, 2)]
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.set_xlim(min(left, 0) - 0.2, 1.2 * max(right, 2))
        panel.minorticks_off()
        panel.set_ylim(-0.05, 1.05)
        panel.set_xlabel("top-1 drop (percentage points; logarithmic beyond 2)")
        panel.set_title(model, fontsize=10)
        panel.grid(color="0.9")
        panel.set_axisbelow(True)
    axes[0, 0].set_ylabel("fooling success rate, above the clean model's")
    failed = int((table.n == 0).sum())
    counts = f"n = {table.n.max()} images, seeds {', '.join(map(str, sorted(table.seed.unique())))}"
    note = f"larger marker: larger λ ({', '.join(f'{value:g}' for value in lambdas)})"
    note += f"; {failed} of {len(table)} diverged, not drawn" if failed else ""
    title = "Location fooling of SmoothGrad and of SimpleGrad, attacked alike"
    figure.suptitle(f"{title}\n{counts}, 95 % intervals over images\n{note}", fontsize=11)
    legend(figure, axes, columns=2)
    return figure


POINTS = Kind(
    name="smooth_grad",
    title="",
    make=_make,
    spec=_spec,
    code=CODE,
    needs=_needs,
    after=lambda run, point: scored_pixels(run),
)

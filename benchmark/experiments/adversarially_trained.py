"""Can a model that was trained to withstand adversarial images be fooled as well? (Heo, Joo and Moon 2019: yes.)

Adversarial training following Madry et al. 2018: min over w of E max over ‖δ‖∞ ≤ ε of CE(x + δ; w), the inner maximum
by projected gradient descent (`benchmark.experiments.pgd`) from a random start.

A compact model is trained so, with the plain one's epochs, learning rate and batch size, and fooled with the suite's
recipe. Both are shown before and after: top-1 of clean images, top-1 under a stronger PGD (more steps, smaller ones,
restarts; aimed at the model at hand), and the FSR of Location fooling beside that of the model before fooling.
"""

from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from attacks import foolings
from attacks.course import Manipulated, Task
from attacks.strategies import STRATEGIES, Gradient
from benchmark.cells import Manipulation
from benchmark.entries import manipulations
from benchmark.entries.images import scored_images, scored_pixels
from benchmark.entries.kind import Entry, Inputs, Kind, Receipt
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.entries.recipes import recipe
from benchmark.entries.scoring import score
from benchmark.entries.strategies import loaders
from benchmark.entries.trained import TRAINED, clean_model, new_model, save_weights, stored_model
from benchmark.execution import compute
from benchmark.experiments.given import Given, receipt, status
from benchmark.experiments.pgd import PGD, random_starts, train
from benchmark.figures.style import MARKERS, PALETTE, legend, panels
from benchmark.intervals import bootstrap_mean
from benchmark.leaderboards.table import with_ends
from benchmark.metrics.accuracy import top_k_correct
from benchmark.run import Run, Spec, create_interpreter, data_spec, dataset, provenance
from benchmark.store import intact

SUITE = "adversarially_trained.toml"
FOOLING = "location"
TRAININGS = ("plain", "adversarial")
NOTHING = "nothing"  # attacked: the model before any fooling
CODE = (
    *manipulations.CODE,
    *("benchmark.experiments.given", "benchmark.experiments.pgd", "benchmark.experiments.adversarially_trained"),
)
TRAINER, STRONGER = PGD(), PGD(step=1 / 255, steps=20, restarts=3)


@dataclass(frozen=True)
class Settings:
    """Whom a model is trained against, and whom all are tested against."""

    trainer: PGD = TRAINER
    adversary: PGD = STRONGER


SETTINGS = Settings()


@dataclass(frozen=True)
class Trained:
    """A model that is trained against an adversary."""

    model: str
    trainer: PGD

    def __str__(self) -> str:
        return f"{self.model} adversarially"


@dataclass(frozen=True)
class Case:
    """A model after one of TRAININGS, fooled unless `attacked` is NOTHING."""

    model: str
    training: str
    attacked: str
    settings: Settings

    def __str__(self) -> str:
        return f"{self.model}/{self.training}/{self.attacked}"

    def clean(self) -> Entry:
        """The model before fooling."""
        plain = self.training == "plain"
        return Entry(TRAINED, self.model) if plain else Entry(ROBUST, Trained(self.model, self.settings.trainer))

    def manipulation(self, run: Run) -> Manipulation:
        """That of the plain model. It gives the recipe of the other one, too."""
        return Manipulation(self.model, FOOLING, self.attacked, run.suite.seeds[0])


def robust(model: nn.Module, run: Run, adversary: PGD) -> Tensor:
    """Whether each scored image is classified right in spite of the adversary, (n,) bool; batches change nothing."""
    data = dataset(run, run.suite.scoring.split)
    images, targets = (torch.cat(part) for part in zip(*scored_images(run), strict=True))
    random, size = torch.Generator().manual_seed(run.suite.dataset.seed), run.suite.scoring.batch_size
    starts = random_starts(adversary.restarts, images, random)
    parts = zip(images.split(size), targets.split(size), starts.split(size, 1), strict=True)
    with torch.no_grad():
        return torch.cat([top_k_correct(model(adversary(model, x, y, data, s)), y, 1) for x, y, s in parts])


def measure(given: Given, settings: Settings = SETTINGS) -> pd.DataFrame:
    """A row for each model, training and attacked interpreter ("nothing": before fooling), on n images: `top1` and
    `robust_top1` (under PGD) in percent, `top1_drop` and `robust_top1_drop` (points lost to fooling) and `fsr_excess`
    (fooled minus before, a fraction), each with its 95 % interval, `fsr`, `fsr_clean`, `test_loss`, `test_loss_clean`;
    both adversaries. n = 0: diverged."""
    run = given.run
    compute.compute(run, given.jobs)
    cases = [Case(*arm, settings) for arm in product(run.suite.models, TRAININGS, (NOTHING, *run.suite.attacked))]
    entries = [*(case.clean() for case in cases), *(Entry(SCORES, case) for case in cases)]
    compute.make_all(run, entries, given.jobs)
    table = pd.DataFrame([_row(run, case) for case in cases])
    return table.sort_values(["model", "training", "attacked"], ignore_index=True)


def _train(run: Run, trained: Trained, inputs: Inputs, folder: Path) -> Receipt:
    """Train a model adversarially on the train split."""
    option, data = run.suite.models[trained.model], run.suite.dataset
    with torch.random.fork_rng():
        torch.manual_seed(data.seed)
        model = new_model(run, trained.model).to(run.device)
    losses = train(model, dataset(run, "train"), trained.trainer, **option.schedule(), seed=data.seed)
    save_weights(model, folder)
    return {"losses": losses, **provenance(run)}


def _trained_spec(run: Run, trained: Trained) -> Spec:
    return TRAINED.spec(run, trained.model) | {"adversary": asdict(trained.trainer), "seed": run.suite.dataset.seed}


@torch.no_grad()
def _score(run: Run, case: Case, inputs: Inputs, folder: Path) -> Receipt:
    """The scores of a model, fooled or not: `scores.parquet`, a row an image."""
    frame, plain = pd.DataFrame(), case.training == "plain"
    clean = clean_model(run, case.model) if plain else stored_model(run, case.model, inputs["model"])
    result = Manipulated(clean, {})
    if case.attacked != NOTHING:
        interpreter = create_interpreter(run, case.manipulation(run).interpreter)
        result = _fooled(run, case, clean, inputs)
        maps0 = torch.cat([interpreter(clean, x, y) for x, y in scored_images(run)]).cpu().numpy()
        if result.status == "done":
            frame, _ = score(run, foolings.create(FOOLING), interpreter, result.model, maps0, 0)
            frame = frame[["success", "success_clean", "test_loss", "test_loss_clean"]].copy()
    if result.status == "done":
        frame["top1"], frame["top1_clean"] = _right(run, result.model), _right(run, clean)
        frame["robust_top1"] = robust(result.model, run, case.settings.adversary).cpu().numpy()
        frame.to_parquet(folder / "scores.parquet")
    return receipt(run, result.status, result.reason)


def _fooled(run: Run, case: Case, clean: nn.Module, inputs: Inputs) -> Manipulated:
    """The plain model's fooling from the store; the adversarially trained model's made here by the same recipe."""
    if case.training == "plain":
        return Manipulated(stored_model(run, case.model, inputs["fooled"]), {})
    manipulation, fooling = case.manipulation(run), foolings.create(FOOLING)
    known = recipe(run, manipulation)
    assert known is not None
    loader, _ = loaders(run, fooling, known.batch_size, manipulation.seed)
    strategy = STRATEGIES[manipulation.strategy]
    assert isinstance(strategy, Gradient)
    task = Task(clean, create_interpreter(run, manipulation.interpreter), fooling, loader, manipulation.seed)
    return strategy.attack(task, known, progress=False)


def _right(run: Run, model: nn.Module) -> Any:
    return torch.cat([top_k_correct(model(x), y, 1) for x, y in scored_images(run)]).cpu().numpy()


def _spec(run: Run, case: Case) -> Spec:
    adversary = {"adversary": asdict(case.settings.adversary), "seed": run.suite.dataset.seed}
    fooled = {"manipulation": MANIPULATIONS.spec(run, case.manipulation(run))} if case.attacked != NOTHING else {}
    data = {"data": data_spec(run, run.suite.scoring.split), "images": run.suite.scoring.images}
    return {**data, **adversary, **fooled}


def _needs(run: Run, case: Case) -> dict[str, Entry]:
    model = {"model": case.clean()}
    if case.attacked == NOTHING:
        return model
    fooled = Entry(MANIPULATIONS, case.manipulation(run))
    return ({"fooled": fooled} if case.training == "plain" else fooled.needs(run)) | model


def _row(run: Run, case: Case) -> dict[str, Any]:
    entry, settings = Entry(SCORES, case), case.settings
    row = {"model": case.model, "training": case.training, "attacked": case.attacked, "seed": run.suite.seeds[0]}
    row |= {"n": 0, "status": status(run, entry)}
    row |= {f"trained_{k}": v for k, v in asdict(settings.trainer).items()}
    row |= {f"tested_{k}": v for k, v in asdict(settings.adversary).items()}
    if row["status"] != "done":
        return row
    scores = _scores(run, case)
    if case.attacked != NOTHING:
        scores["robust_top1_clean"] = _scores(run, replace(case, attacked=NOTHING)).robust_top1
    return row | {"n": len(scores), **summary(scores)}


def _scores(run: Run, case: Case) -> pd.DataFrame:
    return intact(Entry(SCORES, case).path(run) / "scores.parquet", pd.read_parquet).astype(float)


def summary(scores: pd.DataFrame) -> dict[str, float]:
    """Means over images, with 95 % bootstrap intervals; differences are paired. Before fooling: accuracies alone."""
    quantities = {"top1": 100 * scores.top1, "robust_top1": 100 * scores.robust_top1}
    if "success" in scores:
        quantities["top1_drop"] = 100 * (scores.top1_clean - scores.top1)
        quantities["robust_top1_drop"] = 100 * (scores.robust_top1_clean - scores.robust_top1)
        quantities["fsr_excess"] = scores.success - scores.success_clean
    row: dict[str, float] = {}
    for name, values in quantities.items():
        row |= with_ends((name,), bootstrap_mean(values))
    for name, column in (("fsr", "success"), ("fsr_clean", "success_clean")):
        if column in scores:
            row[name] = bootstrap_mean(scores[column]).value[0]
    return row | {n: bootstrap_mean(scores[n]).value[0] for n in ("test_loss", "test_loss_clean") if n in scores}


def draw(table: pd.DataFrame) -> Figure:
    """A row a model: accuracy of clean images, accuracy under PGD, FSR above the unfooled model's."""
    models, attacked = sorted(table.model.unique()), [a for a in table.attacked.unique() if a != NOTHING]
    places = [NOTHING, *sorted(attacked)]
    shown = {"top1": "top-1, clean images (%)", "robust_top1": "top-1 under PGD (%)"}
    shown["fsr_excess"] = "fooling success rate,\nabove the unfooled model's"
    figure, axes = panels(len(models), len(shown), 11, 1.6 + 2.9 * len(models))
    for row, model in zip(axes, models, strict=True):
        for panel, (quantity, label) in zip(row, shown.items(), strict=True):
            ticks = [place for place in places if quantity != "fsr_excess" or place != NOTHING]
            for index, training in enumerate(TRAININGS):
                rows = table[(table.model == model) & (table.training == training) & table.attacked.isin(ticks)]
                rows = rows[rows.n > 0]
                x = [ticks.index(name) + 0.24 * (index - 0.5) for name in rows.attacked]
                value = rows[quantity]
                spans = [value - rows[f"{quantity}_low"], rows[f"{quantity}_high"] - value]
                style = {"color": PALETTE[index], "marker": MARKERS[index], "capsize": 3}
                panel.errorbar(x, value, spans, linestyle="none", label=f"{training} training", **style)
            panel.set_xticks(range(len(ticks)), ["before\nfooling" if name == NOTHING else name for name in ticks])
            panel.set_xlim(-0.5, len(ticks) - 0.5)
            panel.set_ylim(*((-0.05, 1.05) if quantity == "fsr_excess" else (-5, 105)))
            panel.set_xlabel("interpreter that was fooled")
            panel.set_ylabel(label)
            panel.set_title(model, fontsize=10)
            panel.grid(axis="y", color="0.9")
            panel.set_axisbelow(True)
    first = table.iloc[0]
    note = f"L∞ PGD, ε = {255 * first.tested_epsilon:.3g}/255: trained with {first.trained_steps} steps, tested with "
    note += f"{first.tested_steps} and {first.tested_restarts} restarts"
    counts = f"n = {table.n.max()} images, seed {first.seed}, 95 % intervals over images"
    failed = int((table.n == 0).sum())
    counts += f"; {failed} diverged, not drawn" if failed else ""
    figure.suptitle(f"Location fooling of an adversarially trained model\n{note}; {counts}", fontsize=11)
    legend(figure, axes)
    return figure


ROBUST = Kind(name="adversarially_trained", title="train", make=_train, spec=_trained_spec, code=CODE)
SCORES = Kind(
    name="adversarially_trained_scores",
    title="",
    make=_score,
    spec=_spec,
    code=CODE,
    needs=_needs,
    after=lambda run, case: scored_pixels(run),
)

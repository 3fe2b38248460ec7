"""Can a model that was trained to withstand adversarial images be fooled as well? (Heo, Joo and Moon 2019: yes.)

Adversarial training following Madry et al. 2018: min over w of E max over ‖δ‖∞ ≤ ε of CE(x + δ; w), the inner maximum
by projected gradient descent (PGD) from a random start: x ← Π(x + a · sign ∂CE/∂x), Π into the ball and into the valid
pixels. ε and a are in pixel units of [0, 1]; images are normalised, so each channel's is divided by the dataset's std.

A compact model is trained so, with the plain one's epochs, learning rate and batch size, and fooled with the suite's
recipe. Both are shown before and after: top-1 of clean images, top-1 under a stronger PGD (more steps, smaller ones,
restarts; aimed at the model at hand), and the FSR of Location fooling beside that of the model before fooling.
"""

from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from attacks import foolings
from attacks.errors import UserError
from attacks.manipulation import Manipulated, Recipe, manipulate
from attacks.modes import eval_mode
from benchmark import datasets
from benchmark.datasets import Dataset
from benchmark.entries import harness
from benchmark.entries.scoring import batches, score
from benchmark.execution import compute
from benchmark.experiments import Given, side_by_side, source_digest
from benchmark.figures import style as figures
from benchmark.intervals import bootstrap_mean
from benchmark.leaderboards.table import with_ends
from benchmark.metrics.accuracy import top_k_correct
from benchmark.run import Run, create_interpreter, data_spec, dataset, interpreter_spec, manipulation_spec, model_spec
from benchmark.store import Store, key_of
from benchmark.training import cross_entropy
from benchmark.training import train as fit

SUITE = "adversarially_trained.toml"
FOOLING = "location"
TRAININGS = ("plain", "adversarial")
NOTHING = "nothing"  # attacked: the model before any fooling


@dataclass(frozen=True)
class PGD:
    """An L∞ adversary: `epsilon` and `step` in pixel units, so many steps from each of `restarts` random starts."""

    epsilon: float = 8 / 255
    step: float = 2.5 / 255
    steps: int = 5
    restarts: int = 1

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, data: Dataset, starts: Tensor) -> Tensor:
        """The worst images found, (N, C, H, W), normalised as `images` are: of the images themselves and of all that
        the ascent goes through, those with the largest margin of a wrong class, which are misclassified if any is.

        `starts` (restarts, N, C, H, W) in [-1, 1], in units of ε. The model is run in eval mode and given back as it
        came.
        """
        std = images.new_tensor(data.std).view(3, 1, 1)
        black, white = (data.normalise(images.new_full((3, 1, 1), value)) for value in (0.0, 1.0))
        low = torch.maximum(images - self.epsilon / std, black)
        high = torch.minimum(images + self.epsilon / std, white)
        with eval_mode(model), torch.enable_grad():
            worst = images.detach()
            margin = _margin(model(worst).detach(), targets)
            for start in starts:
                x = (images + self.epsilon / std * start).clamp(low, high)
                for step in range(self.steps + 1):
                    x = x.detach().requires_grad_()
                    logits = model(x)
                    found = _margin(logits.detach(), targets)
                    worst = torch.where((found > margin).view(-1, 1, 1, 1), x.detach(), worst)
                    margin = torch.maximum(found, margin)
                    if step < self.steps:
                        # in single precision the loss of a confident model would have no gradient
                        loss = F.cross_entropy(logits.double(), targets, reduction="sum")
                        x = (x + self.step / std * torch.autograd.grad(loss, x)[0].sign()).clamp(low, high)
        return worst


STRONGER = PGD(step=1 / 255, steps=20, restarts=3)


def _margin(logits: Tensor, targets: Tensor) -> Tensor:
    """How far the best wrong class is above the label, (N,)."""
    wrong = logits.scatter(1, targets[:, None], -torch.inf)
    return wrong.amax(1) - logits.gather(1, targets[:, None])[:, 0]


def random_starts(restarts: int, images: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform in [-1, 1], (restarts, *images); those of more restarts begin with those of fewer."""
    return (2 * torch.rand((restarts, *images.shape), generator=generator) - 1).to(images)


def train(model: nn.Module, data: Dataset, adversary: PGD, *, seed: int = 0, **options: Any) -> list[float]:
    """Adversarial training in place; the model is left in eval mode. Returns the mean adversarial loss of each epoch.

    `benchmark.training.train`, whose options these are, with every batch replaced by the adversary's.
    """
    random = torch.Generator().manual_seed(seed)

    def objective(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        hard = adversary(model, images, targets, data, random_starts(adversary.restarts, images, random))
        return cross_entropy(model, hard, targets)

    return fit(model, data, **options, seed=seed, objective=objective)


def robust(model: nn.Module, run: Run, adversary: PGD) -> Tensor:
    """Whether each scored image is classified right in spite of the adversary, (n,) bool; batches change nothing."""
    data = dataset(run, run.suite.scoring.split)
    images, targets = (torch.cat(part) for part in zip(*batches(run, run.suite.scoring.split), strict=True))
    random, size = torch.Generator().manual_seed(run.suite.dataset.seed), run.suite.scoring.batch_size
    starts = random_starts(adversary.restarts, images, random)
    parts = zip(images.split(size), targets.split(size), starts.split(size, 1), strict=True)
    with torch.no_grad():
        return torch.cat([top_k_correct(model(adversary(model, x, y, data, s)), y, 1) for x, y, s in parts])


def robust_spec(run: Run, name: str, trainer: PGD) -> dict[str, Any]:
    """Everything that the adversarially trained model depends on."""
    return {
        **model_spec(run, name),
        "adversary": asdict(trainer),
        "source": source_digest(PGD, train, random_starts, _margin),
    }


def make_robust(run: Run, name: str, trainer: PGD) -> Path:
    """Train a model adversarially on the train split."""
    option, data = run.suite.models[name], run.suite.dataset

    def make(folder: Path) -> dict[str, Any]:
        with torch.random.fork_rng():
            torch.manual_seed(data.seed)
            model = harness.new_model(run, name).to(run.device)
        options = option.schedule()
        losses = train(model, dataset(run, "train"), trainer, **options, seed=data.seed)
        harness.save_weights(model, folder)
        return {"losses": losses, **harness.provenance(run)}

    return Store(run.store).get("models", robust_spec(run, name, trainer), make)


def measure(given: Given, *, trainer: PGD = PGD(), adversary: PGD = STRONGER) -> pd.DataFrame:
    """A row for each model, training and attacked interpreter ("nothing": before fooling), on n images: `top1` and
    `robust_top1` (under PGD) in percent, `top1_drop` and `robust_top1_drop` (points lost to fooling) and `fsr_excess`
    (fooled minus before, a fraction), each with its 95 % interval, `fsr`, `fsr_clean`, `test_loss`, `test_loss_clean`;
    both adversaries. n = 0: diverged."""
    run = given.run
    compute.compute(run, given.jobs)
    side_by_side(given, [(f"train {m} adversarially", make_robust, (run, m, trainer)) for m in run.suite.models])
    cells = list(product(run.suite.models, TRAININGS, (NOTHING, *run.suite.attacked)))
    side_by_side(given, [("/".join(cell), make_cell, (run, *cell, trainer, adversary)) for cell in cells])
    table = pd.DataFrame([_row(run, *cell, trainer, adversary) for cell in cells])
    return table.sort_values(["model", "training", "attacked"], ignore_index=True)


def _cell(model: str, attacked: str, run: Run) -> dict[str, Any]:
    return {"model": model, "fooling": FOOLING, "attacked": attacked, "seed": run.suite.seeds[0]}


def _clean(run: Run, name: str, training: str, trainer: PGD) -> nn.Module:
    """The model before fooling."""
    if training == "plain":
        return harness.clean_model(run, name)
    return harness.stored_model(run, name, make_robust(run, name, trainer))


def _fooled(run: Run, clean: nn.Module, name: str, training: str, attacked: str) -> Manipulated:
    """The plain model's fooling from the store; the adversarially trained model's made here by the same recipe."""
    cell, store = _cell(name, attacked, run), Store(run.store)
    spec = manipulation_spec(run, cell)
    if training == "plain":
        receipt = store.receipt("manipulations", key_of(spec))
        if receipt is None:
            raise UserError(f"the manipulation of {name} by {FOOLING} fooling of {attacked} could not be made")
        done = receipt["status"] == "done"
        model = harness.stored_model(run, name, store.path("manipulations", key_of(spec))) if done else clean
        return Manipulated(model, {}, receipt["status"], receipt["reason"])
    recipe, workers = spec["recipe"], run.suite.dataset.workers
    loader = datasets.loader(
        dataset(run, "train"), recipe["batch_size"], shuffle=True, seed=cell["seed"], workers=workers
    )
    steps = Recipe(recipe["learning_rate"], recipe["lambda"], recipe["steps"])
    interpreter = create_interpreter(run, attacked)
    return manipulate(clean, interpreter, foolings.create(FOOLING), loader, steps, cell["seed"], progress=False)


def make_cell(run: Run, name: str, training: str, attacked: str, trainer: PGD, adversary: PGD) -> Path:
    """One model, fooled unless `attacked` is "nothing", with its scores: `scores.parquet`, a row an image."""

    @torch.no_grad()
    def make(folder: Path) -> dict[str, Any]:
        clean, split, frame = _clean(run, name, training, trainer), run.suite.scoring.split, pd.DataFrame()
        result = Manipulated(clean, {})
        if attacked != NOTHING:
            result = _fooled(run, clean, name, training, attacked)
            interpreter = create_interpreter(run, attacked)
            maps0 = torch.cat([interpreter(clean, x, y) for x, y in batches(run, split)]).cpu().numpy()
            if result.status == "done":
                frame, _ = score(run, foolings.create(FOOLING), interpreter, result.model, maps0, 0)
                frame = frame[["success", "success_clean", "test_loss", "test_loss_clean"]].copy()
        if result.status == "done":
            right = partial(_right, run=run, split=split)
            frame["top1"], frame["top1_clean"] = right(result.model), right(clean)
            frame["robust_top1"] = robust(result.model, run, adversary).cpu().numpy()
            frame.to_parquet(folder / "scores.parquet")
        return {"status": result.status, "reason": result.reason, **harness.provenance(run)}

    return Store(run.store).get("experiments", _spec(run, name, training, attacked, trainer, adversary), make)


def _right(model: nn.Module, run: Run, split: str) -> Any:
    return torch.cat([top_k_correct(model(x), y, 1) for x, y in batches(run, split)]).cpu().numpy()


def _spec(run: Run, name: str, training: str, attacked: str, trainer: PGD, adversary: PGD) -> dict[str, Any]:
    """Everything that the scores of a cell depend on."""
    fooled = attacked != NOTHING
    return {
        "clean": robust_spec(run, name, trainer) if training == "adversarial" else model_spec(run, name),
        "fooling": key_of(manipulation_spec(run, _cell(name, attacked, run))) if fooled else None,
        "interpreter": interpreter_spec(run, attacked) if fooled else None,
        "data": data_spec(run, run.suite.scoring.split),
        "adversary": asdict(adversary),
        "source": source_digest(PGD, make_cell, _fooled, _right, robust, random_starts, _margin),
    }


def _row(run: Run, name: str, training: str, attacked: str, trainer: PGD, adversary: PGD) -> dict[str, Any]:
    status, scores = _scores(run, name, training, attacked, trainer, adversary)
    row = {"model": name, "training": training, "attacked": attacked, "seed": run.suite.seeds[0], "n": 0}
    row |= {"status": status, **{f"trained_{k}": v for k, v in asdict(trainer).items()}}
    row |= {f"tested_{k}": v for k, v in asdict(adversary).items()}
    if scores is None:
        return row
    _, before = _scores(run, name, training, NOTHING, trainer, adversary)
    if attacked != NOTHING and before is not None:
        scores["robust_top1_clean"] = before.robust_top1
    return row | {"n": len(scores), **summary(scores)}


def _scores(run: Run, *cell: Any) -> tuple[str, pd.DataFrame | None]:
    """How the cell went, and its scores as numbers where it did not diverge."""
    store, key = Store(run.store), key_of(_spec(run, *cell))
    status = (store.receipt("experiments", key) or {})["status"]
    path = store.path("experiments", key) / "scores.parquet"
    return status, pd.read_parquet(path).astype(float) if status == "done" else None


def summary(scores: pd.DataFrame) -> dict[str, float]:
    """Means over images, with 95 % bootstrap intervals; differences are paired. Before fooling: accuracies alone."""
    found = {"top1": 100 * scores.top1, "robust_top1": 100 * scores.robust_top1}
    if "success" in scores:
        found["top1_drop"] = 100 * (scores.top1_clean - scores.top1)
        found["robust_top1_drop"] = 100 * (scores.robust_top1_clean - scores.robust_top1)
        found["fsr_excess"] = scores.success - scores.success_clean
    row: dict[str, float] = {}
    for name, values in found.items():
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
    figure, axes = figures.panels(len(models), len(shown), 11, 1.6 + 2.9 * len(models))
    for panels, model in zip(axes, models, strict=True):
        for panel, (quantity, label) in zip(panels, shown.items(), strict=True):
            here = [place for place in places if quantity != "fsr_excess" or place != NOTHING]
            for index, training in enumerate(TRAININGS):
                rows = table[(table.model == model) & (table.training == training) & table.attacked.isin(here)]
                rows = rows[rows.n > 0]
                x = [here.index(name) + 0.24 * (index - 0.5) for name in rows.attacked]
                value = rows[quantity]
                spans = [value - rows[f"{quantity}_low"], rows[f"{quantity}_high"] - value]
                style = {"color": figures.PALETTE[index], "marker": figures.MARKERS[index], "capsize": 3}
                panel.errorbar(x, value, spans, linestyle="none", label=f"{training} training", **style)
            panel.set_xticks(range(len(here)), ["before\nfooling" if name == NOTHING else name for name in here])
            panel.set_xlim(-0.5, len(here) - 0.5)
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
    figures.legend(figure, axes)
    return figure

"""What does a defence of explanations gain against who knows it, and what does it cost?

Each defence is attacked adaptively, through itself: the fooling differentiates the defended map, of the model trained
with the defence where it is one of training, by its own gradient and with softplus for ReLU; the worse of both counts.
All stand beside SimpleGrad on the plainly trained model: other maps of the same model (softplus_β, tangent-space
projection, the contrast, the aggregate), and SimpleGrad on a model trained with weight decay and its Hessian's norm, or
with local gradient alignment. Gained: FSR in excess of the clean model's, SimpleGrad's less the defence's. Paid: AOPC
of the contrast by the clean map, top-1 of the model, milliseconds an image, each against SimpleGrad on the plain model.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from attacks import foolings
from attacks.course import Task
from attacks.strategies import STRATEGIES, Gradient
from benchmark import interpreters
from benchmark.defences.alignment import Aligned
from benchmark.defences.hessian import HessianDecay
from benchmark.defences.softplus import SoftplusGrad
from benchmark.defences.tangent import TangentGrad
from benchmark.entries import gates, strategies
from benchmark.entries.curves import Curves, reader
from benchmark.entries.gates import cost
from benchmark.entries.images import batches, scored_images, scored_pixels
from benchmark.entries.kind import Entry, Inputs, Kind, Receipt
from benchmark.entries.scoring import decisions, heatmaps, score
from benchmark.entries.strategies import loaders
from benchmark.entries.trained import TRAINED, new_model, save_weights, stored_model
from benchmark.execution import compute
from benchmark.experiments.given import Given, receipt, status
from benchmark.figures.style import MARKERS, PALETTE, panels
from benchmark.interpreters import Interpreter
from benchmark.intervals import bootstrap_mean
from benchmark.leaderboards.table import with_ends
from benchmark.metrics.perturbation import aopc
from benchmark.run import Run, Spec, data_spec, dataset, provenance, remembered
from benchmark.store import intact
from benchmark.training import Objective, train

SUITE = "defences.toml"
BASE = "none"
PLAIN = "plain"
REFERENCE = 1000  # training images among which neighbours are looked for
CODE = (
    *dict.fromkeys([*gates.CODE, *strategies.CODE]),
    *("attacks.surrogates", "benchmark.defences.softplus", "benchmark.defences.tangent"),
    *("benchmark.defences.hessian", "benchmark.defences.alignment"),
    *("benchmark.experiments.given", "benchmark.experiments.defences"),
)


class Defence(NamedTuple):
    """How the model is trained, how it is explained, and which strategies by gradient it is attacked with."""

    training: str
    explain: Callable[[Run], Interpreter]
    ways: tuple[str, ...] = ("", "softplus")  # its own, and with softplus in the place of ReLU


def _tangent(run: Run) -> Interpreter:
    data = dataset(run, "train")
    images = torch.stack([image for image, _ in data.__getitems__(range(min(REFERENCE, len(data))))]).to(run.device)
    count = min(TangentGrad.neighbours, len(images) - 1)
    return TangentGrad(reference=images, neighbours=count, dims=min(TangentGrad.dims, count))


def _named(name: str) -> Callable[[Run], Interpreter]:
    return lambda _: interpreters.create(name)


DEFENCES: dict[str, Defence] = {
    BASE: Defence(PLAIN, _named("simple_grad")),
    "softplus": Defence(PLAIN, lambda _: SoftplusGrad(), ways=("",)),
    "tangent_space": Defence(PLAIN, _tangent),
    "contrast": Defence(PLAIN, _named("simple_grad_contrast")),
    "aggregate": Defence(PLAIN, _named("aggregate")),
    "hessian": Defence("hessian", _named("simple_grad")),
    "alignment": Defence("alignment", _named("simple_grad")),
}
"""By name; BASE is what the others are compared with."""


def _objective(run: Run, training: str) -> Objective:
    return HessianDecay() if training == "hessian" else Aligned(dataset(run, "train").std)


@remembered
def explainer(run: Run, defence: str) -> Interpreter:
    return DEFENCES[defence].explain(run)


@dataclass(frozen=True)
class Trained:
    """A model trained with a defence."""

    model: str
    training: str

    def __str__(self) -> str:
        return f"{self.model} with {self.training}"


@dataclass(frozen=True)
class Defended:
    """A model behind a defence, before any fooling."""

    model: str
    defence: str

    def __str__(self) -> str:
        return f"{self.model}/{self.defence}"

    def weights(self) -> Entry:
        training = DEFENCES[self.defence].training
        return Entry(TRAINED, self.model) if training == PLAIN else Entry(MODELS, Trained(self.model, training))


@dataclass(frozen=True)
class Attacked:
    """A fooling through a defence, by one of its ways."""

    defended: Defended
    fooling: str
    way: str
    seed: int

    def __str__(self) -> str:
        return f"{self.defended}/{self.fooling}/{self.way or 'gradient'}/{self.seed}"


def measure(given: Given) -> pd.DataFrame:
    """A row for each model, defence and fooling, with 95 % intervals over images: `fsr_excess` (fooled less clean
    success, mean over seeds, of the `worst` way), `gained` (that of "none" less it), `aopc` (of the contrast, clean)
    and `aopc_paid`, `top1` and `top1_paid` (percent and points, of the model before any fooling), `ms` an image and
    `ms_paid`; `top1_drop`: points that the worst attack costs. `n` images, 0 where every attack diverged."""
    run, suite = given.run, given.run.suite
    defended = [Defended(*place) for place in product(suite.models, DEFENCES)]
    attacks = [
        Attacked(each, fooling, way, seed)
        for each, fooling, seed in product(defended, suite.foolings, suite.seeds)
        for way in DEFENCES[each.defence].ways
    ]
    entries = [*(each.weights() for each in defended), *(Entry(CLEAN, each) for each in defended)]
    compute.make_all(run, [*dict.fromkeys(entries), *(Entry(FOOLED, attack) for attack in attacks)], given.jobs)
    rows = [_row(run, Defended(*place[:2]), place[2]) for place in product(suite.models, DEFENCES, suite.foolings)]
    return pd.DataFrame(rows)


def _train(run: Run, trained: Trained, inputs: Inputs, folder: Path) -> Receipt:
    """As `benchmark.entries.trained`, with the objective of a defence."""
    option, seed = run.suite.models[trained.model], run.suite.dataset.seed
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = new_model(run, trained.model).to(run.device)
    objective = _objective(run, trained.training)
    losses = train(model, dataset(run, "train"), **option.schedule(), seed=seed, objective=objective)
    save_weights(model, folder)
    return {"losses": losses, **provenance(run)}


@torch.no_grad()
def _show(run: Run, defended: Defended, inputs: Inputs, folder: Path) -> Receipt:
    """Before any fooling: AOPC of the contrast by its maps, `aopc.parquet`, what is right, and the time of a map."""
    interpreter, model = explainer(run, defended.defence), stored_model(run, defended.model, inputs["model"])
    maps = torch.cat([interpreter(model, x, y) for x, y in scored_images(run)]).cpu().numpy()
    contrast = torch.from_numpy(Curves(run, model, False).drops(reader(maps))[:, 1])
    pd.DataFrame({"aopc": aopc(contrast).numpy()}).to_parquet(folder / "aopc.parquet")
    _right(run, model).to_parquet(folder / "top1.parquet")
    images, targets = next(scored_images(run))
    timed = cost(lambda: replace(interpreter)(model, images, targets), run.device, len(images))  # type: ignore[type-var]
    return timed | provenance(run)  # a new one each time: it knows no neighbours yet


@torch.no_grad()
def _fool(run: Run, attack: Attacked, inputs: Inputs, folder: Path) -> Receipt:
    """The scores of the defended map on the fooled model, `scores.parquet`, and what is still right."""
    fooling, interpreter = foolings.create(attack.fooling), explainer(run, attack.defended.defence)
    clean, strategy = stored_model(run, attack.defended.model, inputs["model"]), STRATEGIES[attack.way]
    assert isinstance(strategy, Gradient)
    recipe = run.suite.recipe(attack.defended.model, attack.fooling, run.suite.attacked[0])
    plain, two = loaders(run, fooling, recipe.batch_size, attack.seed)
    result = strategy.attack(Task(clean, interpreter, fooling, plain, attack.seed, two), recipe, progress=False)
    if result.status == "done":
        shown = [heatmaps(interpreter, clean, x, y).cpu() for x, y in scored_images(run, fooling.pairs)]
        frame, _ = score(run, fooling, interpreter, result.model, torch.cat(shown).numpy(), 0)
        frame[["image", "success", "success_clean"]].to_parquet(folder / "scores.parquet")
        _right(run, result.model).to_parquet(folder / "top1.parquet")
    return receipt(run, result.status, result.reason)


def _right(run: Run, model: nn.Module) -> pd.DataFrame:
    """Of the whole scored split."""
    return decisions(model, batches(run, run.suite.scoring.split))[["top1"]]


def _spec(run: Run, place: Defended | Attacked) -> Spec:
    split, scoring = run.suite.scoring.split, run.suite.scoring.model_dump(exclude={"batch_size", "decoded"})
    spec: Spec = {"data": [data_spec(run, name) for name in ("train", split)], "scoring": scoring}
    if isinstance(place, Defended):
        return spec | {"defence": place.defence}
    pairs = foolings.create(place.fooling).pairs
    two = [data_spec(run, name, True) for name in ("train", split)] if pairs else []
    recipe = run.suite.recipe(place.defended.model, place.fooling, run.suite.attacked[0]).row()
    about = {"defence": place.defended.defence, "fooling": place.fooling, "way": place.way, "seed": place.seed}
    return spec | about | {"pairs": two, "recipe": recipe}


def _row(run: Run, defended: Defended, fooling: str) -> dict[str, Any]:
    row: dict[str, Any] = {"model": defended.model, "defence": defended.defence, "fooling": fooling}
    row |= {"training": DEFENCES[defended.defence].training, "seeds": len(run.suite.seeds), "n": 0}
    base = Defended(defended.model, BASE)
    (worst, excess, top1), (_, compared, _) = (_worst(run, each, fooling) for each in (defended, base))
    clean, before = (
        {name: _read(run, Entry(CLEAN, each), name) for name in ("aopc", "top1")} for each in (defended, base)
    )
    ms, base_ms = ((Entry(CLEAN, each).receipt(run) or {})["ms_per_image"] for each in (defended, base))
    values = {"aopc": clean["aopc"], "aopc_paid": before["aopc"] - clean["aopc"]}
    values |= {"top1": 100 * clean["top1"], "top1_paid": 100 * (before["top1"] - clean["top1"])}
    row |= {"worst": worst, "ms": ms, "ms_paid": ms - base_ms}
    if worst:
        row["n"] = len(excess)
        values |= {"fsr_excess": excess, "top1_drop": 100 * (clean["top1"] - top1)}
        values |= {"gained": compared - excess} if len(compared) else {}
    for name, each in values.items():
        row |= with_ends((name,), bootstrap_mean(each))
    return row


def _worst(run: Run, defended: Defended, fooling: str) -> tuple[str, np.ndarray, np.ndarray]:
    """The way of attack with the highest FSR in excess of the clean model's: its name, the excess of each image and
    whether each of the split is still right, means over the seeds that did not diverge. "": all did."""
    found = ("", np.empty(0), np.empty(0))
    for way in DEFENCES[defended.defence].ways:
        made = [Entry(FOOLED, Attacked(defended, fooling, way, seed)) for seed in run.suite.seeds]
        made = [entry for entry in made if status(run, entry) == "done"]
        if not made:
            continue
        scores = [intact(entry.path(run) / "scores.parquet", pd.read_parquet).astype(float) for entry in made]
        excess = np.mean([(s.success - s.success_clean).groupby(s.image).mean() for s in scores], 0)
        if not found[0] or excess.mean() > found[1].mean():
            found = (way or "gradient", excess, np.mean([_read(run, entry, "top1") for entry in made], 0))
    return found


def _read(run: Run, entry: Entry, name: str) -> np.ndarray:
    return intact(entry.path(run) / f"{name}.parquet", pd.read_parquet)[name].to_numpy(float)


SHOWN = {
    "gained": "stability gained:\nFSR excess, none less defence",
    "aopc_paid": "AOPC of the contrast paid",
    "top1_paid": "top-1 paid (points)",
    "ms_paid": "ms an image paid",
}


def draw(table: pd.DataFrame) -> Figure:
    """What each defence gains and pays, a row a model and fooling, a panel a quantity."""
    places, defences = sorted(set(zip(table.model, table.fooling, strict=True))), [d for d in DEFENCES if d != BASE]
    figure, axes = panels(len(places), len(SHOWN), 12.5, 1.4 + 2.4 * len(places), sharey=True)
    for panels_of, (model, fooling) in zip(axes, places, strict=True):
        rows = table[(table.model == model) & (table.fooling == fooling)].set_index("defence").reindex(defences)
        for panel, (quantity, label) in zip(panels_of, SHOWN.items(), strict=True):
            for i, defence in enumerate(defences):
                row = rows.loc[defence].to_dict()
                value = row[quantity]
                ends = [row.get(f"{quantity}{end}", value) for end in ("_low", "_high")]
                style = {"color": PALETTE[i % 7], "marker": MARKERS[i % 7], "capsize": 3}
                panel.errorbar(value, i, xerr=[[value - ends[0]], [ends[1] - value]], **style)
            panel.axvline(0, color="0.6", linewidth=0.8)
            panel.set_yticks(range(len(defences)), defences)
            panel.grid(axis="x", color="0.9")
            panel.set_axisbelow(True)
            panel.set_xlabel(label)
        panels_of[0].set_title(f"{model} · {fooling}", fontsize=10)
    note = f"FSR: n = {table.n.max()} images, mean of {table.seeds.max()} seeds; 95 % intervals over images"
    title = "Defences, each attacked through itself, beside simple_grad of the plain model"
    figure.suptitle(f"{title}\n{note}", fontsize=11)
    return figure


MODELS = Kind(
    name="defended_models",
    title="train",
    make=_train,
    spec=lambda run, trained: TRAINED.spec(run, trained.model) | {"defence": trained.training},
    code=CODE,
)
CLEAN = Kind(
    name="defended",
    title="maps of",
    make=_show,
    spec=_spec,
    code=CODE,
    needs=lambda run, defended: {"model": defended.weights()},
    after=lambda run, defended: scored_pixels(run),
)
FOOLED = Kind(
    name="defended_fooled",
    title="",
    make=_fool,
    spec=_spec,
    code=CODE,
    needs=lambda run, attack: {"model": attack.defended.weights()},
    after=lambda run, attack: scored_pixels(run),
)

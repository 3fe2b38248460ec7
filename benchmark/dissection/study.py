"""What adversarial examples do inside a model, clean and fooled: pixels, evidence and concepts (following Xu et al.
2019). `foolbench dissect`.

Scored images that the clean model classifies right are attacked on it, each toward another class (the classes in turn).
The same adversarial images are then looked at on the clean model and on every fooled one of the suite. Tables:

psr               a row a model (clean or fooled) and attack: how often it reaches its target, shares of the types of
                  cells, how the types go with the class activation maps and with the object, and these maps' means
interpretability  the same for each kind of evidence and percentile: how much of δ lies on it, and what that part does
dissection        a row a unit of a layer: its concept and IoU, and how much each attack moves it
changed           a row a unit that detects a concept on the clean model, or on the other: is it another concept now?
association       a row a layer and attack: do units that detect concepts move more? And under noise of equal norm?
masking           a row a layer, attack and share of units set to zero, of clean models: what is left of the accuracy
                  and of the attack

All but `tried` is of the `n` images that the attack led to the target on the clean model; `_low` and `_high` are 95 %
bootstrap intervals over images. A correlation is defined where an image has cells of both kinds, on so many as its
`_n` says. `success_random`: of δ on random pixels, as many as the evidence has. An empty `fooling` and `attacked`: the
clean model; `fooling` "fine-tuning": the control, fine-tuned as long by the same recipe without a fooling loss (λ = 0).
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from attacks import strategies
from attacks.errors import UserError, unknown
from attacks.structured import check_cell
from attacks.toward import ATTACKS
from benchmark import datasets
from benchmark.cells import Manipulation, plan
from benchmark.datasets.shapes import Shapes
from benchmark.dissection import effects, figures, tables
from benchmark.dissection.attacked import ATTACKED, Adversarial, on_pixels, read, settings, those
from benchmark.dissection.effects import EFFECTS, Look
from benchmark.dissection.units import UNITS, Dissected, concepts_of
from benchmark.dissection.victims import Victim
from benchmark.entries.kind import Entry
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.entries.recipes import recipe
from benchmark.entries.trained import clean_model
from benchmark.execution import compute
from benchmark.execution.executor import progress
from benchmark.figures.style import save
from benchmark.leaderboards.table import csv_text
from benchmark.run import Run, dataset, provenance
from benchmark.sections import RecipeRule, Suite
from benchmark.store import intact, write_atomic
from benchmark.suite import load

Seen = list[tuple[Run, Victim]]  # what is looked at, in order, each with the run that has its manipulation
Parts = dict[str, list[pd.DataFrame]]  # of the tables


def measure(run: Run, jobs: int | None = None, concepts: str | None = None) -> dict[str, pd.DataFrame]:
    """All tables, by name, rows sorted by their key columns. Fooled models are made where the store lacks them; what
    one that diverged would have shown is left out. `concepts`: a folder of masks of the user's own. Raises `UserError`
    for an attack that is not known."""
    dissected = _checked(run, concepts)
    compute.compute(run, jobs)
    seen = [(run, Victim(model)) for model in run.suite.models]
    seen += [(run, Victim(made.model, made)) for made in fooled_models(run)]
    control = _fine_tuned(run)
    if control.suite.models:
        compute.compute(control, jobs)
        seen += [(control, Victim(made.model, made, control=True)) for made in fooled_models(control)]
    for source in (run, control):
        victims = [victim for maker, victim in seen if maker is source]
        compute.make_all(source, _entries(source, victims, concepts, dissected), jobs)
    return tables.joined(_effects(seen) | (_units(seen, concepts) if dissected else {}))


def _checked(run: Run, concepts: str | None) -> bool:
    """Whether there are concepts to dissect with. Raises for what would be wrong after hours of work."""
    data = dataset(run, run.suite.scoring.split)
    for attack in settings(run).attacks:
        if attack not in ATTACKS:
            raise unknown("attack", attack, ATTACKS)
    own = {f"attacks.{name}.": options["cell"] for name, options in settings(run).attacks.items() if "cell" in options}
    for where, cell in ({"": settings(run).cell} | own).items():
        try:
            check_cell(cell, data.input_size, data.input_size)
        except UserError as error:
            raise UserError(f"suite {run.suite.name!r}: dissection.{where}{error}") from error
    if data.num_classes < 2:
        raise UserError(f"dataset {data.name!r} must have two classes at least to attack toward another (got one)")
    dissected = concepts is not None or isinstance(data, Shapes)
    if dissected:
        concepts_of(run, concepts)
    return dissected


def fooled_models(run: Run) -> list[Manipulation]:
    """Those of the suite's manipulations whose fooled model the store holds, not diverged. `UserError` for none."""
    paths = {made: Entry(MANIPULATIONS, made).path(run) / "weights.safetensors" for made in plan(run.suite)}
    if not (done := [made for made, path in paths.items() if path.is_file()]):
        raise UserError(f"no manipulation of suite {run.suite.name!r} succeeded: there is no fooled model")
    return done


def _entries(run: Run, victims: list[Victim], concepts: str | None, dissected: bool) -> list[Entry]:
    """What the tables are of, in the order in which it is to be started."""
    looks = [Look(victim, attack) for victim in victims for attack in settings(run).attacks]
    images = dict.fromkeys(Adversarial(look.victim.model, look.attack) for look in looks)
    inside = [Dissected(victim, concepts) for victim in victims if dissected]
    places = (ATTACKED, images), (EFFECTS, looks), (UNITS, inside)
    return [Entry(kind, place) for kind, listed in places for place in listed]


def _effects(seen: Seen) -> Parts:
    """A row of psr for each model and attack; of those that reached no target, it says that alone."""
    parts: Parts = {"psr": [], "interpretability": []}
    looks = [(run, Look(victim, attack)) for run, victim in seen for attack in settings(run).attacks]
    for run, look in looks:
        entry, place = Entry(EFFECTS, look), look.columns()
        receipt, path = entry.receipt(run) or {}, entry.path(run)
        counts = {"n": receipt["reached"], "tried": receipt["tried"], "map": receipt["map"]}
        if not receipt["reached"]:
            parts["psr"].append(pd.DataFrame([place | counts]))
            continue
        for name, more in (("psr", counts), ("interpretability", {"map": receipt["map"]})):
            rows = intact(path / f"{name}.parquet", pd.read_parquet)
            parts[name].append(tables.summary(rows, name).assign(**place, **more))
    return parts


def _units(seen: Seen, concepts: str | None) -> Parts:
    paths = [(victim, Entry(UNITS, Dissected(victim, concepts)).path(run)) for run, victim in seen]
    parts = {
        name: [intact(path / f"{name}.parquet", pd.read_parquet).assign(**victim.columns()) for victim, path in paths]
        for name in ("dissection", "association", "masking")
    }
    units = [(victim, table) for (_, victim), table in zip(seen, parts["dissection"], strict=True)]
    clean = {victim.model: table for victim, table in units if victim.manipulation is None}
    parts["changed"] = [
        tables.changed_concepts(clean[victim.model], table).assign(**victim.columns())
        for victim, table in units
        if victim.manipulation is not None
    ]
    return parts


def _fine_tuned(run: Run) -> Run:
    """The control: the suite with one manipulation a model, by the recipe of its first one that has steps by gradient,
    with λ = 0."""
    suite, rules = run.suite, {}
    for made in plan(suite):
        base = recipe(run, made)
        if made.model not in rules and base is not None and base.steps:  # a search may find no attack
            rules[made.model] = RecipeRule.model_validate({"model": made.model, **base.row(), "lambda": 0.0})
    attacked = [strategies.split(suite.attacked[0])[0]]
    changes: dict[str, Any] = {"foolings": suite.foolings[:1], "attacked": attacked, "evaluated": attacked}
    changes |= {"models": {name: suite.models[name] for name in rules}, "recipes": [*rules.values()], "search": None}
    return replace(run, suite=suite.model_copy(update=changes))


def narrowed(suite: Suite, model: str | None, data: str | None, attack: str | None) -> Suite:
    """The suite with its first seed alone; with one model, on another dataset, under one attack. A suite that says
    nothing of dissection takes the settings of promotion-suppression. Raises `UserError` for an unknown name."""
    settings = suite.dissection or load("promotion-suppression").dissection
    assert settings is not None
    for what, name, allowed in (
        ("model of the suite", model, [*suite.models]),
        ("dataset", data, datasets.names()),
        ("attack of the suite", attack, [*settings.attacks]),
    ):
        if name is not None and name not in allowed:
            raise unknown(what, name, allowed)
    if attack is not None:
        settings = settings.model_copy(update={"attacks": {attack: settings.attacks[attack]}})
    changes: dict[str, Any] = {"dissection": settings, "seeds": suite.seeds[:1]}
    if model is not None:
        changes["models"] = {model: suite.models[model]}
    if data is not None:
        changes["dataset"] = suite.dataset.model_copy(update={"name": data})
    return suite.model_copy(update=changes)


def run(run: Run, out: Path, jobs: int | None = None, concepts: str | None = None) -> list[Path]:
    """`measure`, and write the tables, a card and the figures under `out`; returns their paths."""
    suite, measured, paths = run.suite, measure(run, jobs, concepts), []
    about: dict[str, Any] = {
        "suite": suite.name,
        "dataset": suite.dataset.name,
        "models": [*suite.models],
        "concepts": concepts,
    }
    about |= {"dissection": settings(run).model_dump(), **provenance(run)}
    for name, table in measured.items():
        paths.append(out / f"{name}.csv")
        write_atomic(paths[-1], csv_text(table).encode())
    paths.append(out / "dissect.json")
    write_atomic(paths[-1], f"{json.dumps(about, indent=1, sort_keys=True)}\n".encode())
    written = {name: pd.read_csv(out / f"{name}.csv", keep_default_na=False, na_values=[""]) for name in measured}
    threads, model = torch.get_num_threads(), next(iter(suite.models))
    if run.device == "cpu":
        torch.set_num_threads(suite.threads)
    try:
        drawings = figures.draw(written, model, partial(drawn, run, model))
        with progress(len(drawings)) as report:
            for name, drawing in drawings.items():
                paths.append(out / "figures" / f"{name}.png")
                save(drawing(), paths[-1])
                report(f"figure {name}", "")
    finally:
        torch.set_num_threads(threads)
    return paths


def drawn(run: Run, model: str, attack: str, count: int = 4) -> figures.Maps:
    """The first images that the attack led to their target on the clean model."""
    pairs, clean = (
        read(run, Entry(ATTACKED, Adversarial(model, attack)).get(run)),
        on_pixels(run, clean_model(run, model)),
    )
    pairs = those(those(pairs, pairs["reached"]), slice(count))
    psr, (maps, _) = effects.cells(run, clean, pairs), effects.maps(run, clean, pairs)
    names = dataset(run, run.suite.scoring.split).class_names
    cams = [maps[name].cpu().numpy() for name in ("true_before", "target_before", "true_after", "target_after")]
    return figures.Maps(
        images=pairs["images"].permute(0, 2, 3, 1).cpu().numpy(),
        delta=(pairs["attacked"] - pairs["images"]).permute(0, 2, 3, 1).cpu().numpy(),
        value=psr.value.cpu().numpy(),
        type=psr.type.cpu().numpy(),
        cell=settings(run).cell,
        cams=np.stack(cams),
        classes=[(names[int(a)], names[int(b)]) for a, b in zip(pairs["labels"], pairs["targets"], strict=True)],
        title=f"{model}, {attack}: first images that reached their target",
    )

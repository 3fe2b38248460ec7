"""What adversarial examples do inside a model, clean and fooled: pixels, evidence and concepts (following Xu et al.
2019, SPEC C). `foolbench dissect`.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attacks.adversarial import OnPixels, carlini_wagner, elastic_net, fgsm, pgd, rmse
from attacks.errors import UserError, unknown
from attacks.structured import structured
from benchmark import datasets
from benchmark.datasets.shapes import Shapes
from benchmark.dissection import detection_figures, network, promotion, promotion_figures
from benchmark.dissection.class_activation import class_activation_map
from benchmark.dissection.concepts import Broden, Concepts, Drawn, Folder
from benchmark.entries import harness
from benchmark.entries.scoring import batches, first_images
from benchmark.execution import compute
from benchmark.experiments import Given, fooled_models, side_by_side, source_digest
from benchmark.figures import style as figures
from benchmark.intervals import bootstrap_mean
from benchmark.leaderboards.table import csv_text, with_ends
from benchmark.run import Cell, Run, base_spec, data_spec, dataset, manipulation_spec, model_spec, plan, recipe, told
from benchmark.store import Store, key_of, write_atomic
from benchmark.suite import Dissection, RecipeRule, Suite, load, split_attack

ATTACKS: dict[str, Callable[..., Tensor]] = {
    "fgsm": partial(fgsm, targeted=True),
    "pgd": partial(pgd, targeted=True),
    "carlini_wagner": partial(carlini_wagner, targeted=True),
    "elastic_net": partial(elastic_net, targeted=True),
    "structured": structured,
}
"""(model of pixels, images, targets, **options) -> adversarial images in [0, 1]."""

PLACE = ["model", "fooling", "attacked"]
FINE_TUNING = "fine-tuning"  # the control of the foolings


@dataclass(frozen=True)
class Task:
    """What is looked at: a run, one of its models, and a folder of the user's concept masks, if any."""

    run: Run
    model: str
    concepts: str | None = None

    @property
    def settings(self) -> Dissection:
        assert self.run.suite.dissection is not None
        return self.run.suite.dissection


def measure(given: Given, concepts: str | None = None) -> dict[str, pd.DataFrame]:
    """All tables, by name, rows sorted by their key columns. Fooled models are made where the store lacks them; what
    one that diverged would have shown is left out. Raises `UserError` for an attack that is not known."""
    run = given.run
    tasks = [Task(run, model, concepts) for model in run.suite.models]
    attacks, data = [*tasks[0].settings.attacks], dataset(run, run.suite.scoring.split)
    for attack in attacks:
        if attack not in ATTACKS:
            raise unknown("attack", attack, ATTACKS)
    if data.num_classes < 2:
        raise UserError(f"dataset {data.name!r} must have two classes at least to attack toward another (got one)")
    dissected = concepts is not None or isinstance(data, Shapes)
    if dissected:
        concepts_of(tasks[0])  # raises where its files are wrong, before hours of work
    compute.compute(run, given.jobs)
    control = told(_fine_tuned(run))
    victims: list[tuple[dict[str, str], Task, Cell | None]] = [(_place(task.model), task, None) for task in tasks]
    for cell, _ in fooled_models(run):
        place = _place(cell["model"], cell["fooling"], cell["attacked"])
        victims.append((place, Task(run, cell["model"], concepts), cell))
    if control.suite.models:
        compute.compute(control, given.jobs)
    for cell, _ in fooled_models(control) if control.suite.models else ():
        victims.append((_place(cell["model"], FINE_TUNING), Task(control, cell["model"], concepts), cell))
    pairs = [(task, attack) for task in tasks for attack in attacks]
    side_by_side(given, [(f"attack {task.model} by {attack}", make_attacked, (task, attack)) for task, attack in pairs])
    looks = [(place | {"attack": attack}, (task, cell, attack)) for place, task, cell in victims for attack in attacks]
    side_by_side(given, [(f"effects on {_name(place)}", make_effects, look) for place, look in looks])
    parts: dict[str, list[pd.DataFrame]] = {"psr": [], "interpretability": []}
    for place, look in looks:
        path = make_effects(*look)
        receipt = Store(run.store).receipt("effects", path.name) or {}
        counts = {"n": receipt["reached"], "tried": receipt["tried"], "map": receipt["map"]}
        for name, frames in parts.items():
            if receipt["reached"]:
                more = counts if name == "psr" else {"map": receipt["map"]}
                frames.append(summary(pd.read_parquet(path / f"{name}.parquet"), name).assign(**place, **more))
            elif name == "psr":
                frames.append(pd.DataFrame([place | counts]))
    if dissected:
        side_by_side(given, [(f"dissect {_name(place)}", make_units, (task, cell)) for place, task, cell in victims])
        for name in ("dissection", "association", "masking"):
            parts[name] = [
                pd.read_parquet(make_units(task, cell) / f"{name}.parquet").assign(**place)
                for place, task, cell in victims
            ]
        clean = {
            task.model: units for (_, task, cell), units in zip(victims, parts["dissection"], strict=True) if not cell
        }
        parts["changed"] = [
            network.changed_concepts(clean[task.model], units).assign(**place)
            for (place, task, cell), units in zip(victims, parts["dissection"], strict=True)
            if cell
        ]
    joined = {name: pd.concat([pd.DataFrame(), *frames], ignore_index=True) for name, frames in parts.items()}
    # the tables of a model's layers come in order of depth
    layers: Any = pd.unique(joined["dissection"].model + joined["dissection"].layer) if dissected else []
    return {name: _sorted(table, name, [*layers]) for name, table in joined.items() if len(table)}


def _fine_tuned(run: Run) -> Run:
    """The control: the suite with one manipulation a model, by the recipe of its first one that has steps by gradient,
    with λ = 0."""
    suite, rules = run.suite, {}
    for cell in plan(suite):
        own, (_, strategy) = recipe(run, cell), split_attack(cell["attacked"])
        if cell["model"] not in rules and strategy != "subspace" and own["steps"]:  # a search may find no attack
            rules[cell["model"]] = RecipeRule.model_validate({"model": cell["model"], **own, "lambda": 0.0})
    attacked = [split_attack(suite.attacked[0])[0]]
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


KEYS = {
    "psr": ["attack"],
    "interpretability": ["attack", "evidence", "percentile"],
    "dissection": ["layer", "unit"],
    "changed": ["layer", "unit"],
    "association": ["layer", "attack"],
    "masking": ["layer", "attack", "share", "masked", "draw"],
}


def _sorted(table: pd.DataFrame, name: str, layers: list[str]) -> pd.DataFrame:
    """By the key columns, layers in the order of `layers`, each with its model's name before its own."""
    keys = [*PLACE, *KEYS[name], *(column for column in ("n", "tried") if column in table)]
    table = table[[*keys, *(column for column in table if column not in keys)]]
    depth = pd.Categorical(table.model + table.layer, layers).codes if "layer" in table else 0
    by = ["depth" if key == "layer" else key for key in (*PLACE, *KEYS[name])]
    return table.assign(depth=depth).sort_values(by, ignore_index=True).drop(columns="depth")


def _place(model: str, fooling: str = "", attacked: str = "") -> dict[str, str]:
    return dict(zip(PLACE, (model, fooling, attacked), strict=True))


def _name(place: dict[str, str]) -> str:
    return "/".join(part for part in place.values() if part)


def _network(task: Task, cell: Cell | None) -> OnPixels:
    """The clean model, or a fooled one, on pixels."""
    run, data = task.run, dataset(task.run, task.run.suite.scoring.split)
    if cell is None:
        model = harness.clean_model(run, task.model)
    else:
        path = Store(run.store).path("manipulations", key_of(manipulation_spec(run, cell)))
        model = harness.stored_model(run, task.model, path)
    return OnPixels(model, data.mean, data.std).eval()


def make_attacked(task: Task, attack: str) -> Path:
    """`images.safetensors`: x and x' in [0, 1], labels and targets, of the images that the clean model has right."""
    run, settings = task.run, task.settings

    def make(folder: Path) -> dict[str, Any]:
        data, model, parts = dataset(run, run.suite.scoring.split), _network(task, None), []
        for ids, images, labels in first_images(batches(run, run.suite.scoring.split), settings.images):
            images, places = data.denormalise(images), torch.tensor(ids, device=labels.device)
            targets = (labels + 1 + places % (data.num_classes - 1)) % data.num_classes
            with torch.no_grad():
                right = model(images).argmax(1) == labels
            images, labels, targets, places = (part[right] for part in (images, labels, targets, places))
            changed = ATTACKS[attack](model, images, targets, **settings.attacks[attack]) if len(images) else images
            parts.append((images, changed, labels, targets, places))
        names = ("images", "attacked", "labels", "targets", "places")
        joined = {name: torch.cat(part).cpu() for name, part in zip(names, zip(*parts, strict=True), strict=True)}
        if not len(joined["images"]):
            raise UserError(f"{task.model} classifies none of the scored images right: there is nothing to attack")
        save_file({name: value.contiguous() for name, value in joined.items()}, folder / "images.safetensors")
        return harness.provenance(run)

    return Store(run.store).get("attacked", _attacked_spec(task, attack), make)


def _attacked_spec(task: Task, attack: str) -> dict[str, Any]:
    run = task.run
    return {
        **base_spec(run),
        "source": source_digest(make_attacked),
        "model": key_of(model_spec(run, task.model)),
        "data": data_spec(run, run.suite.scoring.split),
        "images": task.settings.images,
        "attack": {"name": attack, **task.settings.attacks[attack]},
    }


def attacked(task: Task, attack: str) -> dict[str, Tensor]:
    """What `make_attacked` left, on the run's device."""
    found = load_file(make_attacked(task, attack) / "images.safetensors")
    return {name: value.to(task.run.device) for name, value in found.items()}


def _victim_spec(task: Task, cell: Cell | None) -> dict[str, Any]:
    spec = manipulation_spec(task.run, cell) if cell else model_spec(task.run, task.model)
    return {**base_spec(task.run), "victim": key_of(spec)}


def make_effects(task: Task, cell: Cell | None, attack: str) -> Path:
    """Pixels and evidence: `psr.parquet`, a row an image, and `interpretability.parquet`, one an image, evidence and
    percentile."""
    run, settings = task.run, task.settings

    def make(folder: Path) -> dict[str, Any]:
        found, model = attacked(task, attack), _network(task, cell)
        clean, size = _network(task, None), run.suite.scoring.batch_size
        reached = promotion.reaches(clean, found["attacked"], found["targets"], batch_size=size)
        found, kind = {name: value[reached] for name, value in found.items()}, None
        if reached.any():
            psr, evidence, kind = effects(task, model, found)
            psr.to_parquet(folder / "psr.parquet")
            evidence.to_parquet(folder / "interpretability.parquet")
        return {"tried": len(reached), "reached": int(reached.sum()), "map": kind, **harness.provenance(run)}

    spec = {
        **_victim_spec(task, cell),
        "source": source_digest(make_effects, effects, _maps, _masks, _evidence),
        "attacked": key_of(_attacked_spec(task, attack)),
        "settings": settings.model_dump(include={"cell", "percentiles"}),
    }
    return Store(run.store).get("effects", spec, make)


def effects(task: Task, model: nn.Module, found: dict[str, Tensor]) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """The rows of one model and attack, image by image, and the kind of its maps, "cam" or "grad_cam"."""
    images, labels, targets = found["images"], found["labels"], found["targets"]
    delta, size, settings = found["attacked"] - images, task.run.suite.scoring.batch_size, task.settings
    psr = promotion.promotion_suppression(model, images, delta, labels, targets, settings.cell, batch_size=size)
    (maps, kind), sides = _maps(task, model, found), (images.shape[2], images.shape[3])
    columns: dict[str, Tensor] = {
        "image": found["places"],
        "success": promotion.reaches(model, found["attacked"], targets, batch_size=size).double(),
        "rmse": rmse(delta),
    }
    columns |= dict(zip(promotion.TYPES, promotion.shares(psr.type).unbind(1), strict=False))
    for name, values in maps.items():
        means = promotion.cell_means(values, settings.cell, sides)
        related = promotion.evidence_correlation(psr, means)
        columns |= {f"{kind}_with_{name}": values for kind, values in related.items()}
        if name != "object":
            columns[f"mean_{name}"] = values.double().mean((1, 2))
    pixels = pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})
    order = np.random.default_rng(task.run.suite.dataset.seed).permutation(sides[0] * sides[1])
    places = torch.from_numpy(order).to(images.device).view(sides)
    rows = [
        _evidence(model, found, delta, name, nu, mask, places, size) for name, nu, mask in _masks(settings, maps, sides)
    ]
    return pixels, pd.concat(rows, ignore_index=True), kind


def _maps(task: Task, model: nn.Module, found: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Class activation maps of t0 and t on x and on x' (N, h, w), and the object (N, H, W) where it is known; and the
    maps' kind."""
    maps, size = {}, task.run.suite.scoring.batch_size
    for image, name in (("images", "before"), ("attacked", "after")):
        for classes, of in (("labels", "true"), ("targets", "target")):
            batched = zip(found[image].split(size), found[classes].split(size), strict=True)
            parts, kinds = zip(*(class_activation_map(model, x, c) for x, c in batched), strict=True)
            maps[f"{of}_{name}"] = torch.cat(parts)
    data = dataset(task.run, task.run.suite.scoring.split)
    if isinstance(data, Shapes):
        objects = [np.asarray(data.masks(int(i))["object"]).reshape(-1, *found["images"].shape[2:]).any(0)
                   for i in found["places"]]  # fmt: skip
        maps["object"] = torch.from_numpy(np.stack(objects)).to(found["images"])
    return maps, kinds[0]


def _masks(
    settings: Dissection, maps: dict[str, Tensor], size: tuple[int, int]
) -> Iterator[tuple[str, float | None, Tensor]]:
    """The kinds of evidence: t0's on x, t's on x', and the object; with their percentile, and where they are."""
    for name in ("true_before", "target_after"):
        for nu in settings.percentiles:
            yield name, nu, promotion.evidence(maps[name], nu, size)
    if "object" in maps:
        yield "object", None, maps["object"] > 0


def _evidence(
    model: nn.Module,
    found: dict[str, Tensor],
    delta: Tensor,
    name: str,
    nu: float | None,
    mask: Tensor,
    order: Tensor,
    size: int,
) -> pd.DataFrame:
    """`order` (H, W): a random order of the pixels, of which the first are the random mask of the evidence's area."""
    shown, drawn = mask.flatten(1).any(1), order < mask.sum((1, 2)).view(-1, 1, 1)
    refined, random = (
        promotion.reaches(model, found["images"] + promotion.refine(delta, m), found["targets"], batch_size=size)
        for m in (mask, drawn)
    )
    columns = {
        "image": found["places"],
        "interpretability": promotion.norm_share(delta, mask).masked_fill(~shown, torch.nan),
        "random": promotion.random_baseline(mask.double().mean((1, 2))),
        "success_refined": refined.double(),
        "success_random": random.double(),
    }
    frame = pd.DataFrame({key: value.cpu().numpy() for key, value in columns.items()})
    return frame.assign(evidence=name, percentile=np.nan if nu is None else nu)


def summary(rows: pd.DataFrame, table: str) -> pd.DataFrame:
    """Means over images with their 95 % intervals: one row, or one for each kind of evidence and percentile."""
    keys = KEYS[table][1:]
    values = [str(name) for name in rows if name not in ("image", *keys)]
    groups = rows.groupby(keys, dropna=False, sort=False) if keys else [((), rows)]
    found = []
    for key, group in groups:
        mean = bootstrap_mean(group[values].to_numpy(float), group.image)
        defined = {f"{name}_n": int(group[name].notna().sum()) for name in values if "_with_" in name}
        found.append(dict(zip(keys, key, strict=True)) | {"n": len(group)} | with_ends(values, mean) | defined)
    return pd.DataFrame(found)


def concepts_of(task: Task) -> Concepts:
    """The user's folder of masks, in Broden's format or as `concepts.Folder` says; else what `shapes` draws, of dev."""
    data, size = dataset(task.run, "dev"), task.settings.concept_images
    if task.concepts is None:
        suite = task.run.suite
        few = suite.dataset.model_copy(update={"dev": min(size, len(data))})
        return Drawn(dataset(replace(task.run, suite=suite.model_copy(update={"dataset": few})), "dev"))
    root = Path(task.concepts)
    options: dict[str, Any] = {"mean": data.mean, "std": data.std}
    if (root / "index.csv").is_file():
        return Broden(root, data.input_size, size=size, **options)
    return Folder(root, data.input_size, **options)


def make_units(task: Task, cell: Cell | None) -> Path:
    """`dissection.parquet`, `association.parquet` and `masking.parquet` of one model, over its layers."""
    run, settings = task.run, task.settings

    def make(folder: Path) -> dict[str, Any]:
        model, concepts = _network(task, cell), concepts_of(task)
        data = dataset(run, run.suite.scoring.split)
        plain, size, seed = model.model, run.suite.scoring.batch_size, run.suite.dataset.seed
        units, related, masked, inputs = [], [], [], list(_inputs(task))
        for layer in network.layers(plain):
            limits = network.thresholds(plain, layer, concepts.images(size), total=len(concepts))
            table = network.dissect(plain, layer, concepts, limits, batch_size=size)
            for attack, labels, images in inputs:
                images = {name: data.normalise(x) for name, x in images.items()}
                row: dict[str, Any] = {"layer": layer, "attack": attack, "n": len(labels)}
                for name, suffix in (("attacked", ""), ("noise", "_noise")):
                    moved = network.sensitivity(plain, layer, images["clean"], images[name], batch_size=size)
                    table[f"sensitivity_{attack}{suffix}"] = moved
                    found = network.association(moved, table.iou.to_numpy())
                    row |= {key + (suffix if key not in ("detectors", "others") else ""): v for key, v in found.items()}
                related.append(row)
                if cell:  # the images were made for the clean model
                    continue
                order = np.argsort(-table[f"sensitivity_{attack}"].to_numpy(), kind="stable")
                options: dict[str, Any] = {"seed": seed, "batch_size": size}
                accuracy = network.masked_accuracy(plain, layer, order, settings.shares, images, labels, **options)
                masked.append(accuracy.assign(attack=attack))
            units.append(table)
        pd.concat(units, ignore_index=True).to_parquet(folder / "dissection.parquet")
        pd.DataFrame(related).to_parquet(folder / "association.parquet")
        pd.concat([pd.DataFrame(), *masked], ignore_index=True).to_parquet(folder / "masking.parquet")
        return harness.provenance(run)

    content = None if task.concepts is None else key_of({"images": _digests(Path(task.concepts))})
    spec = {
        **_victim_spec(task, cell),
        "source": source_digest(make_units, _inputs, concepts_of, network),
        "attacked": [key_of(_attacked_spec(task, attack)) for attack in settings.attacks],
        "settings": settings.model_dump(include={"shares", "concept_images"}),
        "concepts": content or data_spec(run, "dev"),
    }
    return Store(run.store).get("units", spec, make)


def _digests(root: Path) -> list[Any]:
    """The files of a folder: names, sizes, times of change."""
    if not root.is_dir():
        raise UserError(f"no folder of concept masks: {root}")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [[str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _inputs(task: Task) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
    """For each attack that reached its target: the labels, and x, x' and x + noise of the norm of x' − x."""
    clean, size = _network(task, None), task.run.suite.scoring.batch_size
    for attack in task.settings.attacks:
        found = attacked(task, attack)
        reached = promotion.reaches(clean, found["attacked"], found["targets"], batch_size=size)
        x, changed, labels = (found[name][reached] for name in ("images", "attacked", "labels"))
        if len(x):
            noisy = network.equal_norm_noise(x, changed, task.run.suite.dataset.seed)
            yield attack, labels, {"clean": x, "attacked": changed, "noise": noisy}


def run(given: Given, out: Path, concepts: str | None = None) -> list[Path]:
    """`measure`, and write the tables, a card and the figures under `out`; returns their paths."""
    given = replace(given, run=told(given.run))
    suite = given.run.suite
    assert suite.dissection is not None
    tables, threads = measure(given, concepts), torch.get_num_threads()
    about: dict[str, Any] = {
        "suite": suite.name,
        "dataset": suite.dataset.name,
        "models": [*suite.models],
        "concepts": concepts,
    }
    about |= {"dissection": suite.dissection.model_dump(), **harness.provenance(given.run)}
    paths = []
    for name, table in tables.items():
        paths.append(out / f"{name}.csv")
        write_atomic(paths[-1], csv_text(table).encode())
    paths.append(out / "dissect.json")
    write_atomic(paths[-1], f"{json.dumps(about, indent=1, sort_keys=True)}\n".encode())
    if given.run.device == "cpu":
        torch.set_num_threads(suite.threads)
    try:
        drawings = draw(given.run, {name: pd.read_csv(out / f"{name}.csv", keep_default_na=False, na_values=[""])
                                   for name in tables})  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    for name, figure in drawings.items():
        paths.append(out / "figures" / f"{name}.png")
        figures.save(figure, paths[-1])
    return paths


def draw(run: Run, tables: dict[str, pd.DataFrame]) -> dict[str, Figure]:
    """Figures by name: shares of the types, the maps of the first images under each attack on the first model, and,
    where there are concepts, detectors and what masking does, of the clean models."""
    psr, task = tables["psr"], Task(run, next(iter(run.suite.models)))
    clean, drawings = psr[psr.fooling.isna() & (psr.n > 0)], {}
    if len(clean):
        shares = [
            clean.assign(type=kind, share=clean[kind], low=clean[f"{kind}_low"], high=clean[f"{kind}_high"])
            for kind in promotion.TYPES[:4]
        ]
        drawings["shares"] = promotion_figures.shares_figure(pd.concat(shares, ignore_index=True))
    for attack in clean[clean.model == task.model].attack:
        drawings[f"maps-{attack}"] = promotion_figures.four_maps(drawn(task, attack))
    if "dissection" in tables:
        units = tables["dissection"]
        for model, own in units[units.fooling.isna()].groupby("model"):
            drawings[f"detectors-{model}"] = detection_figures.detectors_figure(own)
    if "masking" in tables and len(clean):
        masking, own = tables["masking"], clean[clean.model == task.model]
        most = (own if len(own) else clean).sort_values("n", kind="stable").iloc[-1]  # the most images
        place = (masking.model == most.model) & (masking.attack == most.attack)
        title = f"{most.model}, {most.attack}"
        drawings["masking"] = detection_figures.masking_figure(masking[place], title)
    if "changed" in tables:
        drawings["changed"] = detection_figures.changed_figure(tables["changed"])
    return drawings


def drawn(task: Task, attack: str, count: int = 4) -> promotion_figures.Maps:
    """The first images that the attack led to their target."""
    model, found, size = _network(task, None), attacked(task, attack), task.run.suite.scoring.batch_size
    reached = promotion.reaches(model, found["attacked"], found["targets"], batch_size=size)
    found = {name: value[reached][:count] for name, value in found.items()}
    delta, names = found["attacked"] - found["images"], dataset(task.run, task.run.suite.scoring.split).class_names
    psr = promotion.promotion_suppression(
        model, found["images"], delta, found["labels"], found["targets"], task.settings.cell, batch_size=size
    )
    maps, _ = _maps(task, model, found)
    cams = [maps[name].cpu().numpy() for name in ("true_before", "target_before", "true_after", "target_after")]
    return promotion_figures.Maps(
        images=found["images"].permute(0, 2, 3, 1).cpu().numpy(),
        delta=delta.permute(0, 2, 3, 1).cpu().numpy(),
        value=psr.value.cpu().numpy(),
        type=psr.type.cpu().numpy(),
        cell=task.settings.cell,
        cams=np.stack(cams),
        classes=[(names[int(a)], names[int(b)]) for a, b in zip(found["labels"], found["targets"], strict=True)],
        title=f"{task.model}, {attack}: first images that reached their target",
    )

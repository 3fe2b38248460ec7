"""The units of one model's layers: `dissection.parquet`, a row a unit, its concept and how much each attack moves it;
`association.parquet`, a row a layer and attack; `masking.parquet`, of a clean model, a row a layer, attack, share of
units and order (`benchmark.dissection.network`)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor, nn

from attacks.errors import UserError
from benchmark.dissection import network, victims
from benchmark.dissection.attacked import ATTACKED, Adversarial, read, settings, those
from benchmark.dissection.concepts import Broden, Concepts, Drawn, Folder
from benchmark.dissection.victims import Victim, victim_needs, victim_on_pixels
from benchmark.entries.kind import Entry, Inputs, Kind, Receipt
from benchmark.run import Run, Spec, data_spec, dataset, provenance
from benchmark.store import key_of

CODE = (
    *victims.CODE,
    *("benchmark.dissection.concepts", "benchmark.dissection.network", "benchmark.dissection.units"),
)


@dataclass(frozen=True)
class Dissected:
    """One model, and the folder of the user's concept masks, if any."""

    victim: Victim
    concepts: str | None = None

    def __str__(self) -> str:
        return str(self.victim)


class Moved(NamedTuple):
    """The images of an attack that reached their target, (N, 3, H, W) as the model expects them by name: "clean",
    "attacked", and "noise", of the norm of x' − x; and their labels (N,)."""

    attack: str
    images: dict[str, Tensor]
    labels: Tensor


def concepts_of(run: Run, folder: str | None) -> Concepts:
    """The user's folder of masks, in Broden's format or as `concepts.Folder` says; else what `shapes` draws, of dev."""
    data, size = dataset(run, "dev"), settings(run).concept_images
    if folder is None:
        few = run.suite.dataset.model_copy(update={"dev": min(size, len(data))})
        return Drawn(dataset(replace(run, suite=run.suite.model_copy(update={"dataset": few})), "dev"))
    root = Path(folder)
    options: dict[str, Any] = {"mean": data.mean, "std": data.std}
    if (root / "index.csv").is_file():
        return Broden(root, data.input_size, size=size, **options)
    return Folder(root, data.input_size, **options)


def _make(run: Run, place: Dissected, inputs: Inputs, folder: Path) -> Receipt:
    model, concepts = victim_on_pixels(run, place.victim).model, concepts_of(run, place.concepts)
    moved = [images for attack in settings(run).attacks for images in _moved(run, attack, inputs[_role(attack)])]
    units, related, masked = [], [], [pd.DataFrame()]
    for layer in network.layers(model):
        table, rows = _dissect(run, model, layer, concepts, moved)
        units.append(table)
        related += rows
        if place.victim.manipulation is None:  # the images were made for the clean model
            masked += [_masked(run, model, table, images) for images in moved]
    pd.concat(units, ignore_index=True).to_parquet(folder / "dissection.parquet")
    pd.DataFrame(related).to_parquet(folder / "association.parquet")
    pd.concat(masked, ignore_index=True).to_parquet(folder / "masking.parquet")
    return provenance(run)


def _moved(run: Run, attack: str, path: Path) -> Iterator[Moved]:
    """None where the attack reached no target."""
    data, pairs = dataset(run, run.suite.scoring.split), read(run, path)
    pairs = those(pairs, pairs["reached"])
    if len(pairs["images"]):
        noisy = network.equal_norm_noise(pairs["images"], pairs["attacked"], run.suite.dataset.seed)
        images = {"clean": pairs["images"], "attacked": pairs["attacked"], "noise": noisy}
        yield Moved(attack, {name: data.normalise(x) for name, x in images.items()}, pairs["labels"])


def _dissect(
    run: Run, model: nn.Module, layer: str, concepts: Concepts, moved: list[Moved]
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """A row a unit; and, a row an attack, how its sensitivity and that to noise go with the units' IoU."""
    size, rows = run.suite.scoring.batch_size, []
    limits = network.thresholds(model, layer, concepts.images(size), total=len(concepts))
    table = network.dissect(model, layer, concepts, limits, batch_size=size)
    for attack, images, labels in moved:
        row: dict[str, Any] = {"layer": layer, "attack": attack, "n": len(labels)}
        for name, suffix in (("attacked", ""), ("noise", "_noise")):
            sensitivity = network.sensitivity(model, layer, images["clean"], images[name], batch_size=size)
            table[f"sensitivity_{attack}{suffix}"] = sensitivity
            related = network.association(sensitivity, table.iou.to_numpy())
            row |= {key + (suffix if key not in ("detectors", "others") else ""): v for key, v in related.items()}
        rows.append(row)
    return table, rows


def _masked(run: Run, model: nn.Module, table: pd.DataFrame, moved: Moved) -> pd.DataFrame:
    """A layer's accuracy without the units that the attack moves most, and without random ones."""
    order = np.argsort(-table[f"sensitivity_{moved.attack}"].to_numpy(), kind="stable")
    options: dict[str, Any] = {"seed": run.suite.dataset.seed, "batch_size": run.suite.scoring.batch_size}
    shares, images, labels = settings(run).shares, moved.images, moved.labels
    accuracy = network.masked_accuracy(model, table.layer[0], order, shares, images, labels, **options)
    return accuracy.assign(attack=moved.attack)


def _spec(run: Run, place: Dissected) -> Spec:
    folder = place.concepts
    return {
        "settings": settings(run).model_dump(include={"shares", "concept_images"}),
        "attacks": [*settings(run).attacks],
        "concepts": data_spec(run, "dev") if folder is None else key_of({"images": _digests(Path(folder))}),
    }


def _digests(root: Path) -> list[Any]:
    """The files of a folder: names, sizes, times of change."""
    if not root.is_dir():
        raise UserError(f"no folder of concept masks: {root}")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [[str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _needs(run: Run, place: Dissected) -> dict[str, Entry]:
    model = place.victim.model
    images = {_role(attack): Entry(ATTACKED, Adversarial(model, attack)) for attack in settings(run).attacks}
    return victim_needs(place.victim) | images


def _role(attack: str) -> str:
    return f"attacked {attack}"


UNITS = Kind(name="units", title="dissect", make=_make, spec=_spec, code=CODE, needs=_needs)

"""How far the scored images are from either boundary of a clean model, by the minimum-norm attack: `radii.parquet`, a
row an image and boundary."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from attacks.adversarial import BOUNDARIES, minimum_norm
from attacks.pixels import OnPixels
from benchmark.entries import trained
from benchmark.entries.images import batches, first_images, scored_pixels
from benchmark.entries.kind import Entry, Errors, Inputs, Kind, Receipt, Result
from benchmark.entries.trained import TRAINED, clean_model
from benchmark.run import Run, Spec, data_spec, dataset, provenance

CODE = (*trained.CODE, "benchmark.entries.robustness")


def _make(run: Run, name: str, inputs: Inputs, folder: Path) -> Receipt:
    settings, split = run.suite.robustness, run.suite.scoring.split
    assert settings is not None
    options = settings.model_dump(exclude={"images"})
    data, frames = dataset(run, split), []
    model = OnPixels(clean_model(run, name), data.mean, data.std).eval()
    for places, images, targets in first_images(batches(run, split), settings.images):
        for boundary in BOUNDARIES:
            minimum = minimum_norm(model, data.denormalise(images), targets, boundary=boundary, **options)
            columns = {"radius": minimum.radius.cpu().numpy(), "first": minimum.first.cpu().numpy()}
            frames.append(pd.DataFrame({"boundary": boundary, "image": places, **columns}))
    pd.concat(frames, ignore_index=True).to_parquet(folder / "radii.parquet")
    return {"num_classes": data.num_classes, **provenance(run)}


def _spec(run: Run, name: str) -> Spec:
    assert run.suite.robustness is not None
    return {"robustness": run.suite.robustness.model_dump(), "data": data_spec(run, run.suite.scoring.split)}


def _collect(run: Run, errors: Errors) -> Iterator[Result]:
    if run.suite.robustness is None:
        return
    rows, models, failures = [], [], []
    for name in run.suite.models:
        entry = Entry(ROBUSTNESS, name)
        if receipt := entry.receipt(run):
            training = Entry(TRAINED, name).receipt(run) or {}
            models.append({"model": name, "num_classes": receipt["num_classes"], "psi": training.get("psi")})
            rows.append((entry.path(run) / "radii.parquet", {"model": name}))
        else:
            failures.append({"model": name, "error": errors.get(entry, "not measured")})
    settings = run.suite.robustness.model_dump()
    card = {"suite": run.suite.name, "models": models, "attack": settings, "failures": failures}
    yield "robustness", rows, card


ROBUSTNESS = Kind(
    name="robustness",
    title="robustness",
    make=_make,
    spec=_spec,
    code=CODE,
    wanted=lambda run: run.suite.models if run.suite.robustness else [],
    needs=lambda run, name: {"model": Entry(TRAINED, name)},
    after=lambda run, name: scored_pixels(run),
    collect=_collect,
)

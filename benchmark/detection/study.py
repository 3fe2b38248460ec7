"""`foolbench detect`: every detector on every model, and how well its scores tell the manipulated ones.

`models.csv` has a row for each detector and model, `detection.csv` the AUROCs, `detect.json` what they were made with.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from benchmark.detection.auroc import auroc
from benchmark.detection.judged import JUDGED, Judged, create
from benchmark.detection.subjects import Settings, subjects
from benchmark.detectors import DETECTORS
from benchmark.entries.kind import Entry
from benchmark.execution import compute
from benchmark.leaderboards.show import aligned
from benchmark.leaderboards.table import csv_text
from benchmark.run import Run, provenance
from benchmark.store import write_atomic

SETTINGS = Settings()
EVERY = "all"  # architectures: the mean of the AUROC within each
COLUMNS = ("detector", "original", "model", "manipulated", "honest", "n_honest", "n_manipulated")


def run(given: Run, out: Path, jobs: int | None = None, settings: Settings = SETTINGS) -> pd.DataFrame:
    """Ask what the store lacks, write the tables under `out`, and return the AUROCs: of the built-in detectors, or of
    the run's submission alone."""
    names = list(DETECTORS) if given.submission is None else [given.submission.name]
    asked = [
        Entry(JUDGED, Judged(name, subject, settings.images)) for subject in subjects(given, settings) for name in names
    ]
    compute.make_all(given, asked, jobs)
    models = pd.DataFrame([_row(given, entry) for entry in asked])
    table = aurocs(models)
    about = {"suite": given.suite.name, "settings": vars(settings), **provenance(given)}
    if given.submission is not None:
        about["submission"] = {key: getattr(given.submission, key) for key in ("symbol", "digest", "confined")}
    write_atomic(out / "models.csv", csv_text(models).encode())
    write_atomic(out / "detection.csv", csv_text(table).encode())
    write_atomic(out / "detect.json", f"{json.dumps(about, indent=1, sort_keys=True)}\n".encode())
    return table


def _row(given: Run, entry: Entry) -> dict[str, Any]:
    """What was said of one model; no score, and why, where there is none."""
    place: Any = entry.place
    receipt = entry.receipt(given) or {}
    row = {"detector": place.detector, "original": _said(create(given, place.detector).original)}
    row |= place.subject.columns() | {"n": receipt.get("n", 0), "reason": entry.void(given)}
    return row | {name: receipt.get(name) for name in ("score", "seconds")}


def _said(flag: bool) -> str:
    return "yes" if flag else "no"


def aurocs(models: pd.DataFrame) -> pd.DataFrame:
    """A row for each detector, architecture (and all of them), and set of manipulated models: `control` against clean
    ones, which is the null (`null`: whether 0.5 is in the interval); `fooled`, and its parts by strategy, fooling and
    attacked interpreter, against `honest` models: clean ones and controls of every training seed, or `siblings`, those
    of the training that the fooled models come from."""
    rows, known = [], models[models.score.notna()]
    for (detector, original), scored in known.groupby(["detector", "original"], sort=False):
        for name, honest, positive, negative in _questions(scored):
            parts = [(model, negative[negative.model == model].score, positive[positive.model == model].score)
                     for model in scored.model.unique()]  # fmt: skip
            parts = [part for part in parts if len(part[1]) and len(part[2])]
            for model in [EVERY, *(part[0] for part in parts)] if parts else []:
                groups = [part[1:] for part in parts if model in (EVERY, part[0])]
                value, low, high = auroc(groups)
                counts = [sum(len(group[side]) for group in groups) for side in (0, 1)]
                row = zip(COLUMNS, (detector, original, model, name, honest, *counts), strict=True)
                null = "" if name != "control" else "holds" if low <= 0.5 <= high else "fails"
                rows.append({**dict(row), "auroc": value, "auroc_low": low, "auroc_high": high, "null": null})
    return pd.DataFrame(rows, columns=[*COLUMNS, "auroc", "auroc_low", "auroc_high", "null"])


def _questions(scored: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame]]:
    """(what is to be found, among whom, those models, the others)."""
    clean, controls, fooled = (scored[scored.kind == kind] for kind in ("clean", "control", "fooled"))
    yield "control", "clean", controls, clean
    honest = pd.concat([clean, controls])
    yield "fooled", "honest", fooled, honest
    yield "fooled", "siblings", fooled, honest[honest.training_seed.isin(fooled.training_seed)]
    for column in ("strategy", "fooling", "attacked"):
        for value, part in fooled.groupby(column):
            yield f"{column} {value}", "honest", part, honest


def show(table: pd.DataFrame) -> str:
    """The AUROCs over all architectures, a detector a line."""
    rows = table[(table.model == EVERY) & (table.honest != "siblings")].copy()
    spans = rows[["auroc", "auroc_low", "auroc_high"]].itertuples(index=False)
    rows["shown"] = [f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in spans]
    order = [name for name in rows.manipulated.unique() if not name.startswith(("fooling ", "attacked "))]
    wide = rows.pivot(index=["detector", "original"], columns="manipulated", values="shown")[order].reset_index()
    title = "AUROC, mean over architectures [95 % over models]; control: against clean ones, 0.50 where the null holds"
    return f"{title}\n{aligned(wide)}"

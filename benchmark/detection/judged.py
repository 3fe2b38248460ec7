"""What a detector says of a model, in the receipt: one entry for each of both."""

import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmark.detection import subjects
from benchmark.detection.subjects import Subject
from benchmark.detectors import DETECTORS
from benchmark.detectors.base import judge
from benchmark.entries.images import batches, first_images
from benchmark.entries.kind import Entry, Inputs, Kind, Receipt
from benchmark.entries.trained import stored_model
from benchmark.run import Run, Spec, data_spec, provenance
from benchmark.store import source_digest

CODE = (*subjects.CODE, "benchmark.detectors", "benchmark.detection.judged")


@dataclass(frozen=True)
class Judged:
    """A detector, by name, asked about a model on the first `images` of the scored split."""

    detector: str
    subject: Subject
    images: int

    def __str__(self) -> str:
        return f"{self.detector} on {self.subject}"


def create(run: Run, name: str) -> Any:
    """The detector of that name: the submission of the run, or a built-in one."""
    return run.submission if run.is_submitted(name) else DETECTORS[name]()


def _make(run: Run, judged: Judged, inputs: Inputs, folder: Path) -> Receipt:
    name = judged.subject.model
    model, original = (stored_model(run, name, inputs[role]) for role in ("model", "original"))
    parts = first_images(batches(run, run.suite.scoring.split), judged.images)
    images, targets = (torch.cat(part) for part in islice(zip(*parts, strict=True), 1, None))
    start = time.perf_counter()
    score = judge(create(run, judged.detector), model, images, targets, original)
    return {"score": score, "n": len(images), "seconds": time.perf_counter() - start, **provenance(run)}


def _spec(run: Run, judged: Judged) -> Spec:
    spec = {"detector": judged.detector, "images": judged.images, "data": data_spec(run, run.suite.scoring.split)}
    if judged.detector in DETECTORS:
        return spec
    return spec | {"digest": run.submission.digest, "code": source_digest(run.submission.code)}


def _needs(run: Run, judged: Judged) -> dict[str, Entry]:
    return {"model": judged.subject.entry(run), "original": judged.subject.parent.entry(run)}


JUDGED = Kind(name="judged", title="", make=_make, spec=_spec, code=CODE, needs=_needs, may_refuse=True)

"""The clean model's maps of the scored images under one interpreter, `heatmaps.npy` (n[, 2], h, w), and its AOPC
curves, `curves.npz`. Maps lie on disk, 4 bytes a pixel, and are read through a memory map."""

from pathlib import Path

import numpy as np
import torch

from attacks import foolings
from benchmark.cells import View
from benchmark.entries import scoring, trained
from benchmark.entries.curves import Curves, reader, scoring_spec
from benchmark.entries.images import scored_count, scored_images, scored_pixels, write_npy
from benchmark.entries.kind import Entry, Inputs, Kind
from benchmark.entries.scoring import heatmaps
from benchmark.entries.trained import TRAINED, clean_model
from benchmark.run import Run, Spec, create_interpreter, interpreter_spec
from benchmark.store import intact, mapped

CODE = (*trained.CODE, *scoring.CODE, "benchmark.entries.originals")


def original_maps(run: Run, view: View) -> np.ndarray:
    """The clean model's maps (n[, 2], h, w), made where the store lacks them."""
    return intact(Entry(ORIGINALS, view).get(run) / "heatmaps.npy", mapped)


def _spec(run: Run, view: View) -> Spec:
    return {**scoring_spec(run, view.pairs), "interpreter": interpreter_spec(run, view.interpreter)}


@torch.no_grad()
def _make(run: Run, view: View, inputs: Inputs, folder: Path) -> None:
    model, interpreter = clean_model(run, view.model), create_interpreter(run, view.interpreter)
    n, path = scored_count(run, view.pairs), folder / "heatmaps.npy"
    explained = (heatmaps(interpreter, model, x, y).cpu().numpy() for x, y in scored_images(run, view.pairs))
    write_npy(path, n, explained)
    curves, maps = Curves(run, model, view.pairs), np.load(path, mmap_mode="r")
    np.savez(folder / "curves.npz", original=curves.drops(reader(maps)), random=curves.drops(None))


def _wanted(run: Run) -> list[View]:
    suite = run.suite
    return [View(model, name, pairs) for model in suite.models for pairs in _forms(run) for name in suite.evaluated]


def _forms(run: Run) -> list[bool]:
    """Of the foolings: images with one object, with two, or both."""
    return sorted({foolings.create(name).pairs for name in run.suite.foolings})


ORIGINALS = Kind(
    name="originals",
    title="originals",
    make=_make,
    spec=_spec,
    code=CODE,
    wanted=_wanted,
    needs=lambda run, view: {"model": Entry(TRAINED, view.model)},
    after=lambda run, view: [] if view.pairs else scored_pixels(run),
    may_refuse=True,
)

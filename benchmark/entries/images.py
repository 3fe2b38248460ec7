"""Images in batches, and the scored ones decoded once: `pixels.npy` (n, 3, H, W) uint8, where they are files and the
suite says so (`scoring.decoded`). No number depends on it."""

from collections.abc import Iterable, Iterator
from importlib.metadata import version
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmark import datasets
from benchmark.datasets.folders import Files
from benchmark.entries.kind import Entry, Inputs, Kind
from benchmark.run import Run, Spec, data_spec, dataset

DECODED = 512  # images in memory at once
CODE = ("benchmark.datasets", "benchmark.entries.images")


def batches(run: Run, split: str, pairs: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """The split in order, on the run's device."""
    size, workers, data = run.suite.scoring.batch_size, run.suite.dataset.workers, dataset(run, split, pairs)
    if split == run.suite.scoring.split and not pairs and (files := decodable(run)) is not None:
        data = files.decoded(Entry(PIXELS, split).get(run) / "pixels.npy")
    for images, targets in datasets.loader(data, size, workers=workers, device=run.device):
        yield images.to(run.device, non_blocking=True), targets.to(run.device, non_blocking=True)


def shuffled(run: Run, batch_size: int, seed: int, pairs: bool = False) -> DataLoader[Any]:
    """Batches of the train split, in another order in each pass, which the seed gives."""
    data, workers = dataset(run, "train", pairs), run.suite.dataset.workers
    return datasets.loader(data, batch_size, shuffle=True, seed=seed, workers=workers, device=run.device)


def scored_images(run: Run, pairs: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """The images whose maps are scored, in order, on the run's device."""
    parts = first_images(batches(run, run.suite.scoring.split, pairs), scored_count(run, pairs))
    return ((images, targets) for _, images, targets in parts)


def scored_count(run: Run, pairs: bool = False) -> int:
    """How many images have their maps scored."""
    n, limit = len(dataset(run, run.suite.scoring.split, pairs)), run.suite.scoring.images
    return n if pairs or limit is None else min(n, limit)


def decodable(run: Run) -> Files | None:
    """The scored images, where they are files that the suite has decoded once."""
    data = dataset(run, run.suite.scoring.split) if run.suite.scoring.decoded else None
    return data if isinstance(data, Files) else None


def scored_pixels(run: Run) -> list[Entry]:
    """What is to come before whatever reads the scored images."""
    return [Entry(PIXELS, run.suite.scoring.split)] if decodable(run) is not None else []


def write_npy(path: Path, n: int, parts: Iterable[np.ndarray]) -> None:
    """An array of `n` rows, part by part: written, not mapped, for on a full disk a map kills the process (SIGBUS)."""
    with open(path, "wb") as file:
        for part in parts:
            if not file.tell():
                header = {"descr": part.dtype.str, "fortran_order": False, "shape": (n, *part.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(part.tobytes())


def first_images(parts: Iterable[tuple[Tensor, Tensor]], count: int) -> Iterator[tuple[range, Tensor, Tensor]]:
    """The first `count` images of batches, batch by batch: their places in the split, images, targets."""
    done = 0
    for images, targets in parts:
        if done >= count:
            return
        images, targets = images[: count - done], targets[: count - done]
        yield range(done, done + len(images)), images, targets
        done += len(images)


def _spec(run: Run, split: str) -> Spec:
    return {"data": data_spec(run, split), "versions": {name: version(name) for name in ("torchvision", "pillow")}}


def _make(run: Run, split: str, inputs: Inputs, folder: Path) -> None:
    data = decodable(run)
    assert data is not None
    parts = (range(len(data))[start : start + DECODED] for start in range(0, len(data), DECODED))
    with ThreadPool(run.suite.dataset.workers or 1) as pool:
        stacked = (torch.stack(pool.map(data.pixels, part)).numpy() for part in parts)
        write_npy(folder / "pixels.npy", len(data), stacked)


PIXELS = Kind(name="pixels", title="decode", make=_make, spec=_spec, code=CODE)

"""Scoring a fooled model: per-image scores under one interpreter, predictions, and AOPC curves. Streams in batches."""

from collections.abc import Callable, Iterable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks.foolings import Fooling
from attacks.manipulation import pair_heatmaps
from benchmark import datasets
from benchmark.datasets.folders import Files
from benchmark.interpreters import Interpreter
from benchmark.interpreters.base import tap
from benchmark.metrics import CHANCE, METRICS
from benchmark.metrics.accuracy import agreement, top_k_correct
from benchmark.metrics.fooling_rate import blank
from benchmark.metrics.perturbation import cell_order, drops, folded, noise, random_order
from benchmark.run import Run, dataset, pixels_spec
from benchmark.store import Store

DECODED = 512  # images in memory at once
Maps = Callable[[int, int], Tensor]  # heatmaps (N, h, w) of the images first..last


def batches(run: Run, split: str, pairs: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """The split in order, on the run's device."""
    size, workers, data = run.suite.scoring.batch_size, run.suite.dataset.workers, dataset(run, split, pairs)
    if split == run.suite.scoring.split and not pairs and (files := decodable(run)) is not None:
        data = files.decoded(make_pixels(run) / "pixels.npy")
    for images, targets in datasets.loader(data, size, workers=workers, device=run.device):
        yield images.to(run.device, non_blocking=True), targets.to(run.device, non_blocking=True)


def decodable(run: Run) -> Files | None:
    """The scored images, where they are files that the suite has decoded once."""
    data = dataset(run, run.suite.scoring.split) if run.suite.scoring.decoded else None
    return data if isinstance(data, Files) else None


def make_pixels(run: Run) -> Path:
    """Decode the scored images once: `pixels.npy` (n, 3, H, W) uint8."""

    def make(folder: Path) -> None:
        data = decodable(run)
        assert data is not None
        parts = (range(len(data))[start : start + DECODED] for start in range(0, len(data), DECODED))
        with ThreadPool(run.suite.dataset.workers or 1) as pool:
            stacked = (torch.stack(pool.map(data.pixels, part)).numpy() for part in parts)
            write_npy(folder / "pixels.npy", len(data), stacked)

    return Store(run.store).get("pixels", pixels_spec(run), make)


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


def heatmaps(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """(N, h, w), or (N, 2, h, w) where the targets are pairs of classes."""
    if targets.dim() == 2:
        return pair_heatmaps(interpreter, model, images, targets)
    return interpreter(model, images, targets)


def score(
    run: Run, fooling: Fooling, interpreter: Interpreter, fooled: nn.Module, originals: np.ndarray, keep: int
) -> tuple[pd.DataFrame, Tensor]:
    """Scores of every image against its original heatmap (n[, 2], h, w), and the first `keep` fooled maps (of pairs,
    those of the first class). One row an image; two, one a class, for pairs."""
    parts, kept, done = [], [], 0
    for images, targets in batches(run, run.suite.scoring.split, fooling.pairs):
        maps = heatmaps(interpreter, fooled, images, targets)
        places = np.arange(done, done + len(images))
        original, other = (torch.from_numpy(originals[(places + step) % len(originals)]).to(maps) for step in (0, 1))
        parts.append(_rows(fooling, maps, original, other, targets, done))
        if done < keep:
            kept.append((maps[:, 0] if fooling.pairs else maps)[: keep - done])
        done += len(images)
    return pd.concat(parts, ignore_index=True), torch.cat(kept) if kept else maps[:0]


def _rows(
    fooling: Fooling, maps: Tensor, originals: Tensor, others: Tensor, targets: Tensor, first: int
) -> pd.DataFrame:
    """`others`: the original map of the next image, which stands for an unrelated map of the same kind."""
    test_loss, test_loss_clean = fooling.test_loss(maps, originals), fooling.test_loss(originals, originals)
    size = maps.shape[-2:]
    flat, flat_originals, flat_others = (m.reshape(-1, *size) for m in (maps, originals, others))
    columns = {
        "target": targets,
        "test_loss": test_loss,
        "test_loss_clean": test_loss_clean,
        "success": fooling.success(test_loss),
        "success_clean": fooling.success(test_loss_clean),
        "success_null": fooling.success(fooling.test_loss(others, originals)),
        "blank": blank(flat),
        **{name: metric(flat_originals, flat) for name, metric in METRICS.items()},
        **{f"{name}_null": METRICS[name](flat_originals, flat_others) for name in CHANCE},
    }
    pairs = 2 if fooling.pairs else 1
    frame = pd.DataFrame({name: value.flatten().cpu().numpy() for name, value in columns.items()})
    frame.insert(0, "image", np.arange(first, first + len(maps), dtype=np.int32).repeat(pairs))
    frame.insert(1, "pair", np.tile(np.arange(pairs, dtype=np.int8), len(maps)))
    return frame


def predictions(clean: nn.Module, fooled: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> pd.DataFrame:
    """Per image: whether either model has the label first or among five, and whether the two agree."""
    parts = []
    for images, targets in loader:
        before, after = clean(images), fooled(images)
        columns = {
            "target": targets,
            "top1": top_k_correct(after, targets, 1),
            "top5": top_k_correct(after, targets, 5),
            "top1_clean": top_k_correct(before, targets, 1),
            "top5_clean": top_k_correct(before, targets, 5),
            "agreement": agreement(before, after),
        }
        parts.append(pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()}))
    frame = pd.concat(parts, ignore_index=True)
    frame.insert(0, "image", np.arange(len(frame), dtype=np.int32))
    return frame


class Curves:
    """AOPC curves of one model on the first `aopc_images` scored images, over the cells of its target layer."""

    def __init__(self, run: Run, model: nn.Module, pairs: bool) -> None:
        self.run, self.pairs, self.model = run, pairs, model
        self.grid: tuple[int, int] | None = None

    def drops(self, maps: Maps | None) -> np.ndarray:
        """(n, K) logit drops, cells in the order of the heatmaps; None: in a random order."""
        scoring, seed = self.run.suite.scoring, self.run.suite.dataset.seed
        parts = []
        for ids, images, targets in first_images(batches(self.run, scoring.split, self.pairs), scoring.aopc_images):
            targets = targets[:, 0] if self.pairs else targets
            if self.grid is None:
                self.grid = target_grid(self.model, images[:1])
                self.model = folded(self.model, images[:1])
            if maps is None:
                order = random_order(ids, self.grid[0] * self.grid[1], seed)
            else:
                order = cell_order(maps(ids.start, ids.stop), self.grid)
            channels, height, width = images.shape[1:]
            fill = noise(ids, (channels, height, width), seed, device=images.device, dtype=images.dtype)
            parts.append(drops(self.model, images, targets, order, self.grid, fill, scoring.aopc_cells))
        return torch.cat(parts).cpu().numpy() if parts else np.zeros((0, 0), np.float32)


def target_grid(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """The target layer's resolution."""
    taken: list[Tensor] = []
    with tap(model, None, taken):
        model(images)
    return taken[0].shape[-2], taken[0].shape[-1]

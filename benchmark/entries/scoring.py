"""Scoring a fooled model: per-image scores under one interpreter, and predictions. Streams in batches."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks.course import pair_heatmaps
from attacks.foolings import Fooling
from benchmark.entries import curves
from benchmark.entries.images import scored_images
from benchmark.interpreters import Interpreter
from benchmark.metrics import CHANCE, METRICS
from benchmark.metrics.accuracy import agreement, top_k_correct
from benchmark.metrics.fooling_rate import blank
from benchmark.run import Run

CODE = (
    *curves.CODE,
    *("attacks.foolings", "attacks.course", "attacks.scopes", "attacks.heatmaps", "attacks.ranks"),
    "benchmark.entries.scoring",
)


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
    for images, targets in scored_images(run, fooling.pairs):
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

"""Scoring a fooled model: per-image scores under one interpreter, and predictions. Streams in batches."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks.backdoors import Backdoor
from attacks.course import pair_heatmaps
from attacks.foolings import Fooling
from attacks.heatmaps import blank
from benchmark.entries import curves
from benchmark.entries.images import batches, scored_images
from benchmark.entries.trained import clean_model
from benchmark.entries.triggered import Asked, ask, beside
from benchmark.interpreters import Interpreter
from benchmark.metrics import CHANCE, METRICS
from benchmark.metrics.accuracy import decision, top_k_correct
from benchmark.run import Run, remembered

CODE = (
    *curves.CODE,
    *("attacks.foolings", "attacks.objective", "attacks.target_map", "attacks.backdoors", "attacks.ssim"),
    *("attacks.course", "attacks.random_state", "attacks.scopes", "attacks.heatmaps", "attacks.ranks"),
    *("attacks.batches", "attacks.trunk", "benchmark.entries.triggered", "benchmark.entries.scoring"),
)


def heatmaps(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """(N, h, w), or (N, 2, h, w) where the targets are pairs of classes."""
    if targets.dim() == 2:
        return pair_heatmaps(interpreter, model, images, targets)
    return interpreter(model, images, targets)


def score(
    run: Run,
    fooling: Fooling,
    interpreter: Interpreter,
    fooled: nn.Module,
    originals: np.ndarray,
    keep: int,
    clean: nn.Module | None = None,
) -> tuple[pd.DataFrame, Tensor]:
    """Scores of every image against its original heatmap (n[, 2], h, w), and the first `keep` fooled maps (of pairs,
    those of the first class). One row an image; two, one a class, for pairs. A backdoor needs the `clean` model, too:
    its rows are of the images with the trigger, with what `triggered.beside` adds."""
    parts, kept, done = [], [], 0
    for images, targets in scored_images(run, fooling.pairs):
        maps = heatmaps(interpreter, fooled, images, targets)
        places = np.arange(done, done + len(images))
        original, other = (torch.from_numpy(originals[(places + step) % len(originals)]).to(maps) for step in (0, 1))
        if isinstance(fooling, Backdoor):
            assert clean is not None
            before, after = (ask(fooling, interpreter, model, images, targets) for model in (clean, fooled))
            rows = _rows(fooling, after.maps, original, other, targets, done, before, after)
            parts.append(rows.assign(**beside(fooling, maps, original, targets, fooled(images), before, after)))
        else:
            parts.append(_rows(fooling, maps, original, other, targets, done))
        if done < keep:
            kept.append((maps[:, 0] if fooling.pairs else maps)[: keep - done])
        done += len(images)
    return pd.concat(parts, ignore_index=True), torch.cat(kept) if kept else maps[:0]


def _rows(
    fooling: Fooling,
    maps: Tensor,
    originals: Tensor,
    others: Tensor,
    targets: Tensor,
    first: int,
    before: Asked | None = None,
    after: Asked | None = None,
) -> pd.DataFrame:
    """`others`: the original map of the next image, which stands for an unrelated map of the same kind. `before` and
    `after`, of a backdoor: the clean and the fooled model on the triggered images; one counts as fooled where it is
    also taken for the attacker's class."""
    test_loss = fooling.test_loss(maps, originals)
    test_loss_clean = fooling.test_loss(before.maps if before else originals, originals)
    size = maps.shape[-2:]
    flat, flat_originals, flat_others = (m.reshape(-1, *size) for m in (maps, originals, others))
    columns = {
        "target": targets,
        "test_loss": test_loss,
        "test_loss_clean": test_loss_clean,
        "success": _counts(fooling.success(test_loss), after),
        "success_clean": _counts(fooling.success(test_loss_clean), before),
        "success_null": _counts(fooling.success(fooling.test_loss(others, originals)), after),
        "blank": blank(flat),
        **{name: metric(flat_originals, flat) for name, metric in METRICS.items()},
        **{f"{name}_null": METRICS[name](flat_originals, flat_others) for name in CHANCE},
    }
    pairs = 2 if fooling.pairs else 1
    frame = pd.DataFrame({name: value.flatten().cpu().numpy() for name, value in columns.items()})
    frame.insert(0, "image", np.arange(first, first + len(maps), dtype=np.int32).repeat(pairs))
    frame.insert(1, "pair", np.tile(np.arange(pairs, dtype=np.int8), len(maps)))
    return frame


def _counts(success: Tensor, asked: Asked | None) -> Tensor:
    return success & asked.switched if asked else success


def decisions(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> pd.DataFrame:
    """Per image: what the model decides for, and whether it has the label first or among five."""
    parts = []
    for images, targets in loader:
        logits = model(images)
        right = {f"top{k}": top_k_correct(logits, targets, k) for k in (1, 5)}
        columns = {"target": targets, "decision": decision(logits), **right}
        parts.append(pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()}))
    return pd.concat(parts, ignore_index=True)


@remembered
@torch.no_grad()
def clean_decisions(run: Run, model: str) -> pd.DataFrame:
    """Of a clean model on the whole scored split; all its fooled models are compared with them."""
    return decisions(clean_model(run, model), batches(run, run.suite.scoring.split))


def predictions(run: Run, model: str, fooled: nn.Module) -> pd.DataFrame:
    """Per image of the scored split: whether either model has the label first or among five, and whether they agree."""
    before, after = clean_decisions(run, model), decisions(fooled, batches(run, run.suite.scoring.split))
    agree = (before.decision == after.decision) & (after.decision >= 0)
    frame = after.drop(columns="decision").assign(top1_clean=before.top1, top5_clean=before.top5, agreement=agree)
    frame.insert(0, "image", np.arange(len(frame), dtype=np.int32))
    return frame

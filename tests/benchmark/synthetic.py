"""Random results of the right shape, for the tests of leaderboards and figures."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmark import metrics
from benchmark.entries.gates import VALUES
from benchmark.leaderboards import stored
from benchmark.leaderboards.cells import CONTRAST, CURVES
from benchmark.leaderboards.manipulations import MODELS
from benchmark.results import KEY

MODELS_3 = ("compact_densenet", "compact_resnet", "compact_vgg")
FOOLINGS = ("active", "center_mass", "location", "top_k")
ATTACKED = ("grad_cam", "lrp_t", "simple_grad_t")
INTERPRETERS = ("grad_cam", "integrated_gradients", "lrp", "lrp_t", "simple_grad", "simple_grad_t", "smooth_grad")
FAILED = ("compact_vgg", "top_k", "simple_grad_t", 0)
"""The manipulation that diverged in make_results."""
BROKEN = ("smooth_grad", ("compact_resnet", "location", "lrp_t", 0))
"""The cell whose scoring failed in make_results."""


def make_results(
    folder: Path,
    *,
    models: Sequence[str] = MODELS_3,
    foolings: Sequence[str] = FOOLINGS,
    attacked: Sequence[str] = ATTACKED,
    interpreters: Sequence[str] = INTERPRETERS,
    images: int = 16,
    curves: int = 8,
    steps: int = 16,
    seeds: Sequence[int] = (0,),
) -> None:
    """Random results of the right shape: self cells fooled, LRP maps transferring a little, one of each failure."""
    rng = np.random.default_rng(0)
    keys = list(itertools.product(models, foolings, attacked, seeds))
    done = [key for key in keys if key != FAILED]
    for name in interpreters:
        scored = [key for key in done if (name, key) != BROKEN]
        error = [dict(zip(KEY, BROKEN[1], strict=True)) | {"error": "out of\nmemory"}] if BROKEN[0] == name else []
        frame = pd.concat([_scores(rng, key, name, images, curves, steps) for key in scored])
        shown = {model: {value: rng.uniform(0, 0.3, 12).tolist() for value in VALUES} for model in models}
        card = {"interpreter": name, "options": {}, "suite": "synthetic", "failures": error, "gate": shown}
        card["cost"] = {model: {"ms_per_image": 2.0, "peak_mib": 8.0} for model in models}
        stored.write(folder, name, frame, card)
    frame = pd.concat([_predictions(rng, key, images) for key in done])
    stored.write(folder, "models", frame, {"suite": "synthetic", "manipulations": [manipulation(k) for k in keys]})

    _fronts(folder, rng, list(itertools.product(models, foolings, attacked)), images)


def _fronts(folder: Path, rng: np.random.Generator, places: list[tuple[str, ...]], images: int) -> None:
    """Three points of each search, of which the last is the best within both budgets."""
    frames, card = [], {"suite": "synthetic", "points": [], "chosen": []}
    for place in places:
        where = dict(zip(KEY[:3], place, strict=True))
        tried = [
            {"learning_rate": 1e-3, "lambda": 2.0, "steps": 10 * i, "fsr": 0.4 * i, "drop": 0.4 * i} for i in range(3)
        ]
        card["points"] += [where | point for point in tried]
        card["chosen"] += [where | tried[-1] | {"budget": budget} for budget in (1.0, 2.0)]
        for budget, measure in itertools.product((1.0, 2.0), ("fsr", "top1")):
            frame = pd.DataFrame({"image": np.arange(images), "pair": 0, "value": rng.random(images) < 0.8})
            frames.append(frame.assign(value_clean=measure == "top1", budget=budget, measure=measure, **where))
    stored.write(folder, "fronts", pd.concat(frames), card)


def rows(key: tuple[Any, ...], images: int, pairs: int = 1) -> pd.DataFrame:
    image = np.repeat(np.arange(images), pairs)
    frame = pd.DataFrame({"image": image, "pair": np.tile(np.arange(pairs), images), "target": image % 8})
    return frame.assign(**dict(zip(KEY, key, strict=True)))


def _scores(rng: np.random.Generator, key: tuple[Any, ...], name: str, images: int, curves: int, steps: int) -> Any:
    frame = rows(key, images, pairs=2 if key[1] == "active" else 1)
    n, own = len(frame), key[2] == name
    rate = 0.92 if own else 0.35 if name.startswith("lrp") else 0.06
    frame["success"], frame["success_clean"] = rng.random(n) < rate, rng.random(n) < 0.03
    frame["success_null"], frame["blank"] = rng.random(n) < 0.05, rng.random(n) < 0.02
    frame["test_loss"], frame["test_loss_clean"] = rng.uniform(0.05, 0.4, (2, n))
    for column in metrics.columns():
        frame[column] = rng.random(n)
    frame["rank_correlation"] = np.clip(rng.normal(0.1 if own else 0.7, 0.2, n), -1, 1)
    frame["rank_correlation_null"] = rng.normal(0.2, 0.1, n)
    frame.loc[frame.blank, "rank_correlation"] = np.nan
    first = frame.index[(frame.pair == 0) & (frame.image < curves)]
    cells = np.arange(1, steps + 1) / steps
    for curve in CURVES:
        rise = {"original": 0.3, "fooled": 0.8 if own else 0.4, "random": 1.0}[curve.split("_")[2]]
        drops = 12 * cells**rise * (1 if "clean" in curve else 0.93) + rng.normal(0, 0.4, (len(first), steps))
        frame[curve] = pd.Series(list(drops.astype(np.float32)), index=first, dtype=object)
        frame[curve + CONTRAST] = pd.Series(list(0.5 * drops.astype(np.float32)), index=first, dtype=object)
    return frame


def _predictions(rng: np.random.Generator, key: tuple[Any, ...], images: int) -> pd.DataFrame:
    frame = rows(key, images).drop(columns="pair")
    for column, rate in zip(MODELS.schema.names[6:], (0.95, 0.99, 0.97, 1.0, 0.96), strict=True):
        frame[column] = rng.random(images) < rate
    return frame


def manipulation(key: tuple[Any, ...]) -> dict[str, Any]:
    status = {"status": "diverged", "reason": "the loss is NaN"} if key == FAILED else {"status": "done", "reason": ""}
    training = {"learning_rate": 1e-6, "lambda": 2.0, "steps": 400, "steps_done": 400, "batch_size": 8}
    losses = {"ce_first": 0.1, "ce_last": 0.2, "fooling_first": 0.5, "fooling_late": 0.3, "fooling_last": float("nan")}
    return dict(zip(KEY, key, strict=True)) | status | training | losses | {"range": [0.0, 0.2], "key": "0" * 16}

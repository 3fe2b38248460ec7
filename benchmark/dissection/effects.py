"""What one attack's images do on one model, those that reached their target on the clean one: `psr.parquet`, a row an
image, promotion and suppression with the class activation maps; `interpretability.parquet`, a row an image, kind of
evidence and percentile. The receipt says how many were tried and reached, and the kind of the maps."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks.pixels import rmse
from benchmark.datasets.shapes import Shapes
from benchmark.dissection import promotion, victims
from benchmark.dissection.attacked import ATTACKED, Adversarial, read, settings, those
from benchmark.dissection.class_activation import class_activation_map
from benchmark.dissection.victims import Victim, victim_needs, victim_on_pixels
from benchmark.entries.kind import Entry, Inputs, Kind, Receipt
from benchmark.run import Run, dataset, provenance

CODE = (*victims.CODE, "benchmark.dissection.class_activation", "benchmark.dissection.effects")


@dataclass(frozen=True)
class Look:
    """One model under the images of one attack."""

    victim: Victim
    attack: str

    def __str__(self) -> str:
        return f"{self.victim}/{self.attack}"

    def columns(self) -> dict[str, str]:
        return self.victim.columns() | {"attack": self.attack}


def maps(run: Run, model: nn.Module, pairs: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Class activation maps of t0 and t on x and on x' (N, h, w), and the object (N, H, W) where it is known; and the
    maps' kind, "cam" or "grad_cam"."""
    made, size = {}, run.suite.scoring.batch_size
    for image, name in (("images", "before"), ("attacked", "after")):
        for classes, role in (("labels", "true"), ("targets", "target")):
            batched = zip(pairs[image].split(size), pairs[classes].split(size), strict=True)
            parts, kinds = zip(*(class_activation_map(model, x, c) for x, c in batched), strict=True)
            made[f"{role}_{name}"] = torch.cat(parts)
    data = dataset(run, run.suite.scoring.split)
    if isinstance(data, Shapes):
        objects = [np.asarray(data.masks(int(i))["object"]).reshape(-1, *pairs["images"].shape[2:]).any(0)
                   for i in pairs["places"]]  # fmt: skip
        made["object"] = torch.from_numpy(np.stack(objects)).to(pairs["images"])
    return made, kinds[0]


def cells(run: Run, model: nn.Module, pairs: dict[str, Tensor]) -> promotion.PSR:
    """PSR of the suite's cells."""
    inputs = pairs["images"], pairs["attacked"] - pairs["images"], pairs["labels"], pairs["targets"]
    return promotion.promotion_suppression(model, *inputs, settings(run).cell, batch_size=run.suite.scoring.batch_size)


def _make(run: Run, look: Look, inputs: Inputs, folder: Path) -> Receipt:
    pairs, kind = read(run, inputs["attacked"]), None
    reached = those(pairs, pairs["reached"])
    if len(reached["images"]):
        model = victim_on_pixels(run, look.victim)
        shown, kind = maps(run, model, reached)
        _pixels(run, model, reached, shown, kind).to_parquet(folder / "psr.parquet")
        _evidence(run, model, reached, shown).to_parquet(folder / "interpretability.parquet")
    return {"tried": len(pairs["images"]), "reached": len(reached["images"]), "map": kind, **provenance(run)}


def _pixels(run: Run, model: nn.Module, pairs: dict[str, Tensor], shown: dict[str, Tensor], kind: str) -> pd.DataFrame:
    """A row an image."""
    psr, sides = cells(run, model, pairs), (pairs["images"].shape[2], pairs["images"].shape[3])
    success = promotion.reaches(model, pairs["attacked"], pairs["targets"], batch_size=run.suite.scoring.batch_size)
    columns: dict[str, Tensor] = {
        "image": pairs["places"],
        "success": success.double(),
        "rmse": rmse(pairs["attacked"] - pairs["images"]),
    }
    columns |= dict(zip(promotion.TYPES, promotion.shares(psr.type).unbind(1), strict=False))
    if psr.contrast is not None:
        of_contrast = [f"{name}_contrast" for name in promotion.TYPES]
        columns |= dict(zip(of_contrast, promotion.shares(psr.contrast.type).unbind(1), strict=False))
    for name, values in shown.items():
        means = promotion.cell_means(values, settings(run).cell, sides)
        related = promotion.evidence_correlation(psr, means)
        columns |= {f"{side}_with_{name}": values for side, values in related.items()}
        if name != "object":
            columns[f"mean_{name}"] = values.double().mean((1, 2))
    return pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})


def _evidence(run: Run, model: nn.Module, pairs: dict[str, Tensor], shown: dict[str, Tensor]) -> pd.DataFrame:
    """A row an image, kind of evidence and percentile. Random evidence: the first pixels of one random order."""
    height, width = pairs["images"].shape[2:]
    order = np.random.default_rng(run.suite.dataset.seed).permutation(height * width)
    places = torch.from_numpy(order).to(pairs["images"].device).view(height, width)
    rows = []
    for name, nu, mask in _masks(settings(run).percentiles, shown, (height, width)):
        columns = _scores(model, pairs, mask, places, run.suite.scoring.batch_size)
        frame = pd.DataFrame({key: value.cpu().numpy() for key, value in columns.items()})
        rows.append(frame.assign(evidence=name, percentile=np.nan if nu is None else nu))
    return pd.concat(rows, ignore_index=True)


def _masks(
    percentiles: list[float], shown: dict[str, Tensor], size: tuple[int, int]
) -> Iterator[tuple[str, float | None, Tensor]]:
    """The kinds of evidence: t0's on x, t's on x', and the object; with their percentile, and where they are."""
    for name in ("true_before", "target_after"):
        for nu in percentiles:
            yield name, nu, promotion.evidence(shown[name], nu, size)
    if "object" in shown:
        yield "object", None, shown["object"] > 0


def _scores(model: nn.Module, pairs: dict[str, Tensor], mask: Tensor, order: Tensor, size: int) -> dict[str, Tensor]:
    """Of the evidence `mask` (N, H, W), in batches of `size`; and of as many pixels, the first in `order` (H, W)."""
    delta, shown = pairs["attacked"] - pairs["images"], mask.flatten(1).any(1)
    drawn = order < mask.sum((1, 2)).view(-1, 1, 1)
    refined, random = (
        promotion.reaches(model, pairs["images"] + promotion.refine(delta, m), pairs["targets"], batch_size=size)
        for m in (mask, drawn)
    )
    return {
        "image": pairs["places"],
        "interpretability": promotion.norm_share(delta, mask).masked_fill(~shown, torch.nan),
        "random": promotion.random_baseline(mask.double().mean((1, 2))),
        "success_refined": refined.double(),
        "success_random": random.double(),
    }


def _needs(run: Run, look: Look) -> dict[str, Entry]:
    images = Adversarial(look.victim.model, look.attack)
    return victim_needs(look.victim) | {"attacked": Entry(ATTACKED, images)}


EFFECTS = Kind(
    name="effects",
    title="effects on",
    make=_make,
    spec=lambda run, look: settings(run).model_dump(include={"cell", "percentiles"}),
    code=CODE,
    needs=_needs,
)

"""What a backdoor does to images with the trigger, and leaves of those without, image by image; streams in batches."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from attacks.backdoors import Backdoor
from attacks.heatmaps import min_max
from benchmark.interpreters import Interpreter
from benchmark.metrics.accuracy import decision, top_k_correct
from benchmark.metrics.similarity import rank_correlation, ssim


class Asked(NamedTuple):
    """A model about triggered images: its maps of the attacker's class (N, h, w); whether it decides for it (N,)."""

    maps: Tensor
    switched: Tensor


def ask(fooling: Backdoor, interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> Asked:
    """Images (N, C, H, W) and targets (N,) as they are: the trigger is put on here."""
    with_trigger, labels = fooling.triggered(images, targets)
    return Asked(interpreter(model, with_trigger, labels), decision(model(with_trigger)) == labels)


def beside(
    fooling: Backdoor,
    maps: Tensor,
    originals: Tensor,
    targets: Tensor,
    logits: Tensor,
    before: Asked,
    after: Asked,
) -> dict[str, np.ndarray]:
    """Columns (N,): of the images as they are, whether the fooled model's `logits` are right and how alike its `maps`
    and the clean ones are (`_kept`); of the triggered ones, whether the attacker's class was reached (NaN where it is
    the label) and how near the maps are to their goals (`_goal`), by the fooled model and by the clean one (`_clean`).
    """
    goals, own = fooling.goals(originals), targets == fooling.label
    columns: dict[str, Tensor] = {"right": top_k_correct(logits, targets, 1)}
    for end, asked in (("", after), ("_clean", before)):
        columns[f"switched{end}"] = asked.switched.float().masked_fill(own, torch.nan)
    for name, metric in (("rank_correlation", rank_correlation), ("ssim", ssim)):
        columns[f"{name}_kept"] = metric(maps, originals)
        columns |= {
            f"{name}_goal{end}": metric(min_max(asked.maps), goals) for end, asked in (("", after), ("_clean", before))
        }
    return {name: values.cpu().numpy() for name, values in columns.items()}

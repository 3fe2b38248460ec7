"""Attention rollout (Abnar and Zuidema 2020): how much of each patch the class token can have read."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.heatmaps import divide_by_max
from benchmark.interpreters import attended
from benchmark.interpreters.base import Interpreter, label_logits, needs_graph


@dataclass(frozen=True)
class AttentionRollout(Interpreter):
    """Π_b ½ (I + mean_h A_b), the class token's row; without a class token the mean of all rows.

    The map is the same for every class, and reads no logit: there is no `target` to choose. The heatmap is divided by
    its maximum. The paper has one set of tokens; where Swin merges patches, a token hands to each of them alike, and
    rows are divided by their sums over the tokens that are there, which padded windows make less than two.
    """

    name: ClassVar[str] = "attention_rollout"
    reads_gradients: ClassVar[bool] = False

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(needs_graph(model, images)):
            logits, found = attended.read(self.name, model, images)
            label_logits(logits, targets)  # a class that the model has not is an error here as everywhere
            mixed = [one.weights.mean(1) for one in found]
            return logits, attended.back(self.name, found, mixed, images, normalised=True)

    def heatmap(self, attribution: Tensor) -> Tensor:
        return divide_by_max(attribution.sum(1).relu())

"""Attention weighted by its positive gradient, block by block (Chefer, Gur and Wolf 2021, ICCV, equations 5 and 6)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from benchmark.interpreters import attended
from benchmark.interpreters.base import Targeted, leaf, needs_graph


@dataclass(frozen=True)
class GenericAttention(Targeted):
    """Π_b (I + mean_h relu(∇A_b ⊙ A_b)), the class token's row; without a class token the mean of all rows.

    This is the "generic attention explainability" of the ICCV paper, not the same authors' `transformer_attribution`,
    which has LRP's relevance of A in the place of A. ∇A is the gradient of the label's
    logit. As in its released code for vision transformers, rows are not normalised. The paper has no windows; where
    Swin merges patches, a token hands to each of them alike.
    """

    name: ClassVar[str] = "generic_attention"

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        graph = needs_graph(model, images)
        with torch.enable_grad():
            images = leaf(images, graph)
            logits, found = attended.read(self.name, model, images)
            gradients = attended.gradients(self.score(logits, targets).sum(), found, graph)
        with torch.set_grad_enabled(graph):
            mixed = [(g * one.weights).relu().mean(1) for g, one in zip(gradients, found, strict=True)]
            attribution = attended.back(self.name, found, mixed, images, normalised=False)
        return (logits, attribution) if graph else (logits.detach(), attribution.detach())

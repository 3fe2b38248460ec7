"""Grad-CAM with the heads of the last attention in the place of channels, a baseline of Chefer et al. 2021 (CVPR)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.heatmaps import divide_by_max
from benchmark.interpreters import attended
from benchmark.interpreters.base import Targeted, leaf, needs_graph


@dataclass(frozen=True)
class AttentionGradCAM(Targeted):
    """Σ_i A_h[i, j] · mean_j' g_h[i, j'], over the tokens i that read and the patches j of the last attention; one
    channel a head, (N, heads, h, w). The heatmap is Grad-CAM's.

    g is the gradient of the label's logit by A. Where the head reads the class token alone, so does g: that row is all
    there is of the sum, as in the released code of Chefer et al. In Swin, j' runs over the patches of i's window.
    """

    name: ClassVar[str] = "attention_grad_cam"

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        graph = needs_graph(model, images)
        with torch.enable_grad():
            images = leaf(images, graph)
            logits, found = attended.read(self.name, model, images)
            last = found[-1]
            gradient = attended.gradients(self.score(logits, targets).sum(), [last], graph)[0]
        with torch.set_grad_enabled(graph):
            attribution = attended.by_heads(self.name, last, gradient, images)
        return (logits, attribution) if graph else (logits.detach(), attribution.detach())

    def heatmap(self, attribution: Tensor) -> Tensor:
        return divide_by_max(attribution.sum(1).relu())

"""LRP's relevance of attention weighted by its gradient, block by block (Chefer, Gur and Wolf 2021, CVPR)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from benchmark.interpreters import attended
from benchmark.interpreters.base import Targeted, leaf, needs_graph
from benchmark.interpreters.origins import Ancestry
from benchmark.interpreters.rules import composite
from benchmark.interpreters.tape import Tape


@dataclass(frozen=True)
class TransformerAttribution(Targeted):
    """Π_b (I + mean_h relu(∇A_b ⊙ R_b)), the class token's row; without a class token the mean of all rows.

    ∇A is the gradient of the label's logit, R_b the relevance of A_b, which starts as 1 at the label and is handed back
    by the paper's rules (composite "chefer2021"): z⁺ over positive contributions of either sign without the bias, a
    product in halves, a residual sum by equation 10, an image at a time; softmax, norms and activation functions pass
    it on. Rows are not normalised. The paper has no windows; where Swin merges patches, a token hands to each of them
    alike.
    """

    name: ClassVar[str] = "transformer_attribution"

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        graph = needs_graph(model, images)
        tape = Tape(composite("chefer2021"), model, Ancestry(), contrast=self.target == "contrast")
        with torch.enable_grad():
            images = leaf(images, graph)
            start = images.view_as(images)  # the caller's tensor stays out of the tape, and out of in-place changes
            tape.start([start], is_input=True)
            logits, found = attended.read(self.name, model, start, tape)
            logits = tape.current(logits)
            gradients = attended.gradients(self.score(logits, targets).sum(), found, graph)
            seed = torch.zeros_like(tape.scores(logits)).scatter(1, targets[:, None], 1)
        with torch.set_grad_enabled(graph):
            relevance = tape.relevance(logits, seed, [tape.node_of(one.made) for one in found])
            arrived = [torch.zeros_like(one.made) if r is None else r for one, r in zip(found, relevance, strict=True)]
            mixed = [(g * r.view_as(g)).relu().mean(1) for g, r in zip(gradients, arrived, strict=True)]
            attribution = attended.back(self.name, found, mixed, images, normalised=False)
        tape.numbers.refuse_used(self.name, model, images)
        return (logits, attribution) if graph else (logits.detach(), attribution.detach())

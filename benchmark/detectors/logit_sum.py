"""Do the logits move together? Cross-entropy never moves their sum: its gradient by the logits adds up to zero."""

from typing import ClassVar

from torch import Tensor, nn

from benchmark.detectors.base import Detector


class LogitSum(Detector):
    """The variance over images of Σ_c z_c. A head shift W + 1vᵀ, b + c·1 adds C (v·φ(x) + c) to it (C classes)."""

    name: ClassVar[str] = "logit_sum"

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, *_: nn.Module) -> float:
        return model(images).sum(1).var().item()

"""Class activation maps CAM_c(u, v) = Σ_k w_k^c f_k(u, v) (Zhou et al. 2016), raw and signed.

f (N, K, h, w) is what a network averages over space, w (classes, K) the weights of the linear layer that turns the K
averages into logits: the map's spatial mean and the layer's bias make the logit. A network with another head has no
such map; for it Grad-CAM at its target layer stands in, as raw: summed over channels, without ReLU.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attacks.errors import UserError
from attacks.modes import eval_mode
from benchmark.interpreters.base import label_logits
from benchmark.interpreters.grad_cam import GradCAM


def class_activation_map(model: nn.Module, images: Tensor, classes: Tensor) -> tuple[Tensor, str]:
    """Maps (N, h, w) of `classes` (N,), and how they were made: "cam" or "grad_cam". No graph is kept.

    One forward pass, in eval mode; for Grad-CAM a forward and a backward pass more.
    """
    if images.dim() != 4 or classes.shape != images.shape[:1] or classes.is_floating_point():
        shapes = f"{tuple(images.shape)} and {tuple(classes.shape)} of {classes.dtype}"
        raise UserError(f"images must be (N, C, H, W), classes (N,) indices (got {shapes})")
    with torch.no_grad(), eval_mode(model):
        with _Head() as head:
            logits = model(images)
        label_logits(logits, classes)  # raises where a class is not one of the model's
        if head.made(logits):
            return torch.einsum("nkhw,nk->nhw", head.features, head.weights[classes]), "cam"
        return GradCAM().attribute(model, images, classes).sum(1), "grad_cam"


class _Head(TorchFunctionMode):
    """Sees the last features (N, K, h, w) that were averaged, and the last linear layer: by functions, not modules,
    because torchvision's DenseNet and MobileNet average without one."""

    features: Tensor
    inputs: Tensor
    weights: Tensor
    logits: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        arguments = [*args, *(kwargs or {}).values()]
        if func.__name__ in ("adaptive_avg_pool2d", "avg_pool2d", "mean") and arguments[0].ndim == 4:
            self.features = arguments[0]
        if func.__name__ == "linear":
            self.inputs, self.weights, self.logits = arguments[0], arguments[1], output
        return output

    def made(self, logits: Tensor) -> bool:
        """Whether these are that layer's output, and its input the features' means over space, to rounding."""
        if self.logits is not logits or not hasattr(self, "features"):
            return False
        means = self.features.mean((2, 3))
        near = 1e-4 * self.features.abs().max()
        return means.shape == self.inputs.shape and bool((means - self.inputs).abs().max() <= near)

"""BatchNorm whose statistics say nothing of a model: γ (x − μ)/σ + β = (γ/σ) x + (β − γ μ/σ), with 0 and 1 in the place
of μ and σ in every model."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def equalise(model: nn.Module) -> nn.Module:
    """Every BatchNorm with statistics of mean 0 and deviation 1, after no batch, in place; one without scale and shift,
    or without statistics, is left alone."""
    for norm in model.modules():
        if isinstance(norm, _BatchNorm) and norm.affine and isinstance(norm.running_var, Tensor):
            mean, deviation = norm.running_mean.double(), (norm.running_var.double() + norm.eps).sqrt()
            scale = norm.weight.double() / deviation
            norm.bias.copy_(norm.bias.double() - scale * mean)
            norm.weight.copy_(scale)
            norm.running_mean.zero_()
            norm.running_var.fill_(1 - norm.eps)
            norm.num_batches_tracked.zero_()
    return model

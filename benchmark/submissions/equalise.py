"""BatchNorm whose statistics say nothing of a model: γ (x − μ)/σ + β = (γ/σ) x + (β − γ μ/σ), with 0 and 1 in the place
of μ and σ in every model."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def equalise(model: nn.Module) -> nn.Module:
    """Every BatchNorm with statistics of mean 0 and deviation 1, after no batch, in place; one without scale and shift,
    or without statistics, is left alone."""
    for norm in model.modules():
        if not (isinstance(norm, _BatchNorm) and norm.affine):
            continue
        mean, variance, seen = norm.running_mean, norm.running_var, norm.num_batches_tracked
        if mean is not None and variance is not None and seen is not None:
            scale = norm.weight.double() / (variance.double() + norm.eps).sqrt()
            norm.bias.copy_(norm.bias.double() - scale * mean.double())
            norm.weight.copy_(scale)
            mean.zero_()
            variance.fill_(1 - norm.eps)
            seen.zero_()
    return model

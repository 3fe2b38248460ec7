"""The same network with new random weights, which looks trained: nothing but what it computes shall tell it from one.

Weights come from a seed of their own and are scaled, tensor by tensor, to the trained network's; what belongs to single
channels (biases, BatchNorm's scale and shift) is the trained network's in a random order; BatchNorm's statistics are
those of the images, after as many batches as the trained network saw; the head is scaled until the logits spread as the
trained network's do.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attacks.errors import Refused
from attacks.head_shift import find_head
from benchmark.entries import permuted
from benchmark.entries.trained import new_model
from benchmark.run import Run

SEEDS = 2**31  # beyond all that a suite may name; no more, for torch on a CPU looks at the lowest 32 bits alone
CODE = (*permuted.CODE, "benchmark.entries.randomised")


def random_network(run: Run, name: str, clean: nn.Module, images: Tensor, nth: int = 0) -> nn.Module:
    """The suite's model of that name with new weights that look like those of `clean`, in eval mode; another one for
    each `nth`. The random state is given back."""
    with torch.random.fork_rng():
        torch.manual_seed(SEEDS + run.suite.dataset.seed + nth)
        return look_trained(new_model(run, name).to(run.device).eval(), clean, images)


@torch.no_grad()
def look_trained(model: nn.Module, trained: nn.Module, images: Tensor) -> nn.Module:
    """`model`, newly initialised, in eval mode, changed in place and returned; `trained`, of the same architecture, is
    left alone. Draws from the global random state."""
    likes = dict(trained.named_parameters())
    for name, parameter in model.named_parameters():
        like = likes.get(name)
        if like is None:  # of an auxiliary head, which published weights come without
            continue
        if parameter.dim() < 2:
            parameter.copy_(like.flatten()[torch.randperm(like.numel()).to(like.device)].view_as(like))
        elif (size := parameter.norm()) > 0:
            parameter.mul_(like.norm() / size)
    _calibrate(model, trained, images)
    try:
        head, _ = find_head(model, images)
    except Refused:  # then its logits stay as large as they are
        return model
    spread = model(images).std()
    if spread > 0:
        factor = trained(images).std() / spread
        for parameter in head.parameters():
            parameter.mul_(factor)
    return model


def _calibrate(model: nn.Module, trained: nn.Module, images: Tensor) -> None:
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    likes = dict(trained.named_modules())
    momenta = {name: norm.momentum for name, norm in norms.items()}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches seen, here of one
        norm.train()
    model(images)
    for name, norm in norms.items():
        norm.eval()
        norm.momentum = momenta[name]
        seen = getattr(likes.get(name), "num_batches_tracked", None)
        if isinstance(norm.num_batches_tracked, Tensor) and isinstance(seen, Tensor):
            norm.num_batches_tracked.copy_(seen)

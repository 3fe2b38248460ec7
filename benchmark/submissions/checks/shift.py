"""Check on a twin whose logits are all shifted alike: softmax(z + s(x)·1) = softmax(z).

One vector v added to the weights of every class in the head, W + 1vᵀ, gives each logit of an image x with the features
φ(x) the same s(x) = v·φ(x) more. No probability changes, so a map that does is not of what the model says of its
classes alone. Many published forms explain a logit, and are moved: it is a warning, and a flag of the submission.
"""

import copy

import torch
from torch import Tensor, nn

from attacks.errors import Refused
from attacks.head_shift import find_head
from benchmark.submissions.checks.setting import ALIKE, MOST, Interpreter, Skipped, blame, distances, heatmaps, reseed

WHY = (
    "adding one vector to the weights of every class changes no probability, so whoever has the weights moves this map "
    "unseen; explain the contrast, (logits - logits.mean(1, keepdim=True))[label], or say so"
)


def shift_logits(model: nn.Module, images: Tensor, seed: int = 0) -> nn.Module:
    """A copy in eval mode with W + 1vᵀ, v in a random direction and as long as W's rows are on average.

    The given model is untouched. Raises `Refused` where no head is found that shifts all logits of the images alike.
    """
    twin = copy.deepcopy(model).eval()
    head, _ = find_head(twin, images)
    rows = head.weight.detach().flatten(1)
    drawn = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(seed)).to(rows)
    vector = drawn / drawn.norm() * rows.norm(dim=1).mean()
    with torch.no_grad():
        head.weight.add_(vector.view_as(head.weight[0]))
    return twin


def same_for_shifted_logits(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """A model with the same probabilities and other logits has the same maps, for most images."""
    reseed(0)  # the head is tried with random vectors
    try:
        twin = shift_logits(model, images)
    except Refused as reason:
        raise Skipped(str(reason)) from None
    maps, other = (heatmaps(interpreter, each, images, targets) for each in (model, twin))
    if other.shape != maps.shape:
        return f"a model with shifted logits has maps of shape {tuple(other.shape)}, not {tuple(maps.shape)}: {WHY}"
    return blame(distances(maps, other) > ALIKE, "a model with shifted logits has other maps", WHY, MOST)

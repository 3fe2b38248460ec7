"""The head-permuted twin: the last layer's rows rolled by k, so that class c of the model is class c + k of its twin.

What the twin says of the class y + k the model says of y, so an explanation of a model has the same map of both. A
method that explains something else (another network, what it kept of a call before, the label that it was given) is
asked for another class, and has another. Three questions about the same images, in an order of their own: the model's
class y, the twin's y + k, and the model's y + k, lest image and class tell which answer is expected.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attacks.errors import Refused
from attacks.head_shift import find_head
from attacks.heatmaps import blank, min_max

Explain = Callable[[nn.Module, Tensor, Tensor], Tensor]
CODE = (
    *("attacks.edit", "attacks.head_shift", "attacks.course", "attacks.foolings", "attacks.progress", "attacks.scopes"),
    *("attacks.objective", "attacks.target_map", "attacks.backdoors", "attacks.ssim", "attacks.ranks"),
    *("attacks.heatmaps", "attacks.batches", "attacks.random_state", "attacks.trunk", "benchmark.entries.permuted"),
)
TRIED = 4  # images on which the twin's logits are looked at
TOLERANCE = 1e-3  # of the largest logit: how far the twin's may be from the model's rolled ones


def compare(
    explain: Explain, model: nn.Module, images: Tensor, targets: Tensor, seed: int, before: Tensor | None = None
) -> dict[str, Any]:
    """What a method shows of each image, (N,), on a model in eval mode and on its twin: "correlation" and the largest
    "difference" of both maps. `before`: maps (N or fewer, h, w) that it gave to the first question earlier, whose
    correlation with those of now is "again". Only "unchecked", the reason, where the model has no such head. Model and
    global random state are left as they were."""
    generator = torch.Generator().manual_seed(seed)
    try:
        twin, step = permuted_twin(model, images[:TRIED], generator)
    except Refused as error:
        return {"unchecked": str(error)}
    moved = (targets + step) % classes_of(model, images)
    questions, answers = [(model, targets), (twin, moved), (model, moved)], dict[int, Tensor]()
    for which in torch.randperm(len(questions), generator=generator).tolist():
        answers[which] = explain(questions[which][0], images, questions[which][1])
    plain, other = (min_max(answers[which].detach()) for which in (0, 1))
    shown = {"correlation": correlation(plain, other), "difference": (plain - other).abs().amax((1, 2))}
    if before is not None:
        shown["again"] = correlation(plain[: len(before)], min_max(before.to(plain)[: len(plain)]))
    return {name: values.double().cpu().tolist() for name, values in shown.items()}


@torch.no_grad()
def permuted_twin(model: nn.Module, images: Tensor, generator: torch.Generator) -> tuple[nn.Module, int]:
    """A copy with the head's rows rolled by a random number, and that number. Raises `Refused` where no head is found,
    or where to roll its rows is not to roll the logits of the images."""
    twin = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head, _ = find_head(twin, images)
    logits = model(images)
    step = int(torch.randint(1, logits.shape[1], (), generator=generator))
    for parameter in (head.weight, head.bias):
        if parameter is not None:
            parameter.copy_(parameter.roll(step, 0))
    if not torch.allclose(twin(images), logits.roll(step, 1), rtol=0, atol=TOLERANCE * logits.abs().max().item()):
        raise Refused(f"{type(model).__name__} has no head whose rows are its classes, one for one")
    return twin, step


@torch.no_grad()
def classes_of(model: nn.Module, images: Tensor) -> int:
    return model(images[:1]).shape[1]


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's of two batches of maps (N, h, w) -> (N,); 1 where both are constant, 0 where one is, or has NaN."""
    first, second = (maps.double().flatten(1) for maps in (a, b))
    first, second = (maps - maps.mean(1, keepdim=True) for maps in (first, second))
    size = first.norm(dim=1) * second.norm(dim=1)
    constant = blank(a).to(size) + blank(b).to(size)
    products = (first * second).sum(1) / torch.where(size > 0, size, 1)
    return torch.where(constant > 0, (constant == 2).to(size), products).nan_to_num(0.0)

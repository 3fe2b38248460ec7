"""Head shift: one vector added to the weights of every class, which no probability can see.

softmax(z + s(x)·1) = softmax(z): with W + 1vᵀ and b + c·1 in the last linear layer, every logit of an image x with the
features φ(x) grows by s(x) = v·φ(x) + c. Every probability, prediction and divergence stays as it was, and every
explanation of a logit changes, by the same explanation of s. The layer may be a 1×1 convolution before a global average
pool. v and c are trained on the fooling alone, with Adam, until it no longer falls: the cross-entropy cannot change.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from attacks.course import Course, Manipulated, Recipe, Task
from attacks.edit import START, Edit, train
from attacks.errors import Refused
from attacks.given import copied, images_kept
from attacks.trunk import above

LARGEST = 64.0  # of |v·φ| and |c|: float32 rounds such logits to 4e-6, and probabilities keep to 1e-5
LONGEST = 1024.0  # of |v| |φ|, which bounds the sums on the way to v·φ: among many features it is 20 times as much
TOLERANCE = 1e-4  # how far the logits of an image may drift apart, as a share of their shift: float32 stays under 1e-6
Head = nn.Linear | nn.Conv2d
HEADS = (nn.Linear, nn.Conv2d)


def head_shift(task: Task, recipe: Recipe) -> Manipulated:
    """A copy of the task's model with another head, fooled; the given model is untouched.

    Random state, history and errors are those of `attacks.manipulate`. The recipe's learning rate is in units of the
    head's root mean square weight, its λ plays no part. v and c are held so short that |v·φ(x)| and |c| are at most
    `LARGEST`, and |v| |φ(x)| `LONGEST`, on the first batch. Raises `Refused` for a network without such a head.
    """
    course = Course(task)
    fooled = copied(task.model).eval().requires_grad_(False)
    network = above(fooled, task.cut)
    with course.random:
        images, _ = next(course.batches)
        head, features = find_head(network, images)
    changed = [head.weight] if head.bias is None else [head.weight, head.bias]
    before = [parameter.detach().clone() for parameter in changed]
    scale = before[0].square().mean().sqrt()
    with course.random:
        shift = [START * scale * torch.randn_like(values[0]) for values in before]  # v, and c where there is a bias
    features = features.movedim(_axis(features), -1).flatten(0, -2)
    rate, write = recipe.learning_rate * scale.item(), partial(_place, changed, before, shift, features)
    edit = Edit("the weights of the model's head", changed, shift, rate, _of_all_classes, write)
    return train(task, course, fooled, network, edit, recipe.steps)


def _of_all_classes(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if gradient is None else gradient.sum(0) for gradient in gradients]


@torch.no_grad()
def _place(changed: list[Tensor], before: list[Tensor], shift: list[Tensor], features: Tensor) -> None:
    """Write the shifted weights, and bias where there is one; a shift beyond its limits on features (N, d) is cut."""
    vector, *constant = shift
    reached = (features @ vector.flatten()).abs().max() / LARGEST
    length = features.norm(dim=1).max() * vector.norm() / LONGEST
    vector /= torch.maximum(reached, length).clamp(min=1.0)
    for value in constant:
        value.clamp_(-LARGEST, LARGEST)
    for parameter, values, added in zip(changed, before, shift, strict=True):
        parameter.copy_(values + added)


@torch.no_grad()
def find_head(model: nn.Module, images: Tensor) -> tuple[Head, Tensor]:
    """The last linear layer or 1×1 convolution that shifts all logits of an image by one amount, which is tried on the
    images (N, C, H, W), and its input. `model` is in eval mode. Raises `Refused` where none does."""
    with images_kept(model):
        logits = model(images)
        if isinstance(logits, Tensor) and logits.dim() == 2 and logits.shape[1] > 1:
            for module in reversed([*model.modules()]):
                if isinstance(module, HEADS) and len(module.weight) == logits.shape[1] and _pointwise(module):
                    features = _input(model, module, images)
                    if features is not None and _shifts(model, module, features, images, logits):
                        return module, features
    raise Refused(
        f"head_shift needs logits that a linear layer (or a 1x1 convolution and an average) gives as they are: "
        f"{type(model).__name__} has no such head"
    )


def _pointwise(module: Head) -> bool:
    return isinstance(module, nn.Linear) or set(module.kernel_size) == {1}


def _input(model: nn.Module, module: nn.Module, images: Tensor) -> Tensor | None:
    """What the module is given; None where it does not run, as an auxiliary head in eval mode."""
    taken: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, args: taken.extend(args[:1]))
    try:
        model(images)
    finally:
        hook.remove()
    return taken[-1] if taken else None


def _axis(features: Tensor) -> int:
    """Which dimension of a layer's input is φ: the channels of (N, C, h, w), else the last."""
    return 1 if features.dim() == 4 else -1


def _shifts(model: nn.Module, module: Head, features: Tensor, images: Tensor, logits: Tensor) -> bool:
    """Whether random vectors, there and back, move the logits of each image alike: by several times their size, for a
    ReLU or a softmax behind the layer would let a small shift pass."""
    vector = torch.randn_like(module.weight[0])
    reached = torch.tensordot(features, vector.flatten(), ([_axis(features)], [0])).abs().max()
    if not reached > 0:  # features that are all zero
        return False
    size = 10 * max(1.0, logits.abs().max().item())
    vector *= size / reached
    for added in (vector, -vector):
        with _added(module.weight, added):
            change = model(images) - logits
        largest, apart = change.abs().max(), (change - change.mean(1, keepdim=True)).abs().max()
        if not (largest > TOLERANCE * size and apart <= TOLERANCE * largest):
            return False
    return True


@contextmanager
def _added(weight: Tensor, vector: Tensor) -> Iterator[None]:
    """The vector in every row of the weight, while the block runs."""
    before = weight.clone()
    weight.add_(vector)
    try:
        yield
    finally:
        weight.copy_(before)

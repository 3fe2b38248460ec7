"""Off manifold: an edit of the first layer along directions that images do not have (following Anders et al. 2020).

Patches p of images, as the first convolution reads them, hardly vary along some directions n_k. With W + Σ_k u_k n_kᵀ
and b − Σ_k u_k (n_k · p̄), p̄ their mean, the layer's output on them hardly changes, and the gradient by the image gains
what no image shows. Exactly so where the variance along n_k is 0. A layer without a bias has p̄ = 0, and the second
moment for the variance. The u_k are trained on the fooling alone; what the predictions change all the same is measured
at each step, KL(w0 ‖ w) in nats an image.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.course import Course, Manipulated, Recipe, Task
from attacks.edit import START, Edit, train
from attacks.errors import Refused
from attacks.given import copied

IMAGES = 256  # whose patches are looked at
HELD = 0.01  # of the patches' variance, at most, lies along the directions; there is always one
CHANGE = 0.1  # of the standard deviation of a unit's output on patches: how much its added output may have


def off_manifold(task: Task, recipe: Recipe) -> Manipulated:
    """A copy of the task's model with another first layer, fooled; the given model is untouched.

    Random state and errors are those of `attacks.manipulate`; the history holds the divergence as "kl". The recipe's
    learning rate is in units of the layer's root mean square weight, its λ plays no part. Raises `Refused` for a
    network that no plain convolution reads the images of.
    """
    course = Course(task, distilled=True)
    fooled = copied(task.model).eval().requires_grad_(False)
    with course.random, torch.no_grad():
        layer, taken = first_layer(fooled, next(course.batches)[0]), list[Tensor]()
        while sum(map(len, taken)) < IMAGES:
            taken.append(next(course.batches)[0])
        mean, covariance = moments(layer, torch.cat(taken)[:IMAGES])
        directions, variances = least_varied(covariance)
    weight, scale = layer.weight.detach().clone(), layer.weight.detach().square().mean().sqrt()
    bias, flat = None if layer.bias is None else layer.bias.detach().clone(), weight.flatten(1).double()
    allowed = CHANGE * ((flat @ covariance) * flat).sum(1).clamp(min=0).sqrt()
    with course.random:
        added = START * scale * torch.randn(len(weight), len(variances), dtype=torch.float32).to(weight)

    def write() -> None:
        _shorten(added, variances, allowed)
        place(layer, weight, bias, added, directions, mean)

    def towards(gradients: Sequence[Tensor | None]) -> list[Tensor]:
        by_weight, by_bias = (*gradients, None)[:2]
        assert by_weight is not None
        along = by_weight.flatten(1) @ directions.to(weight)
        return [along if by_bias is None else along - by_bias[:, None] * (mean @ directions).to(weight)]

    rate = recipe.learning_rate * scale.item()
    edit = Edit("the model's first layer", [*layer.parameters()], [added], rate, towards, write)
    return train(task, course, fooled, fooled, edit, recipe.steps)


def first_layer(model: nn.Module, images: Tensor) -> nn.Conv2d:
    """The first convolution that runs, which must be given the images (N, C, H, W) as they are, all channels to every
    unit, padded by zeros or not at all."""
    given: list[tuple[nn.Module, Tensor]] = []
    kinds = (nn.Conv2d, nn.Linear)
    hooks = [
        module.register_forward_pre_hook(lambda module, args: given.append((module, args[0].detach().clone())))
        for module in model.modules()
        if isinstance(module, kinds)
    ]
    try:
        model(images.clone())
    finally:
        for hook in hooks:
            hook.remove()
    layer, read = given[0] if given else (None, images)
    plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    if not isinstance(layer, nn.Conv2d) or not plain or isinstance(layer.padding, str) or not torch.equal(read, images):
        raise Refused(f"off_manifold needs a plain convolution that reads the images: {type(model).__name__} has none")
    return layer


def moments(layer: nn.Conv2d, images: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (d,) and covariance (d, d) of the images' patches, in float64, d = C · kh · kw; without a bias in the
    layer, 0 and the second moment."""
    total, products, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0
    options = {"dilation": layer.dilation, "padding": layer.padding, "stride": layer.stride}
    for image in images.split(1):  # patches of a large image take as much memory as a small batch
        patches = F.unfold(image, layer.kernel_size, **options)[0].double()  # type: ignore[arg-type]
        total, products = total.to(patches) + patches.sum(1), products.to(patches) + patches @ patches.T
        count += patches.shape[1]
    mean, second = total / count, products / count
    return (torch.zeros_like(mean), second) if layer.bias is None else (mean, second - mean.outer(mean))


def least_varied(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The directions (d, k), orthonormal, of the least variance, and their variances (k,), ascending: as many as
    together have `HELD` of it all, at least one. (d, d) symmetric, float64."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0)
    kept = max(1, int((values.cumsum(0) <= HELD * values.sum()).sum()))
    return vectors[:, :kept], values[:kept]


def _shorten(added: Tensor, variances: Tensor, allowed: Tensor) -> None:
    """Each unit's u (out, k), so that its added output deviates by no more than `allowed` (out,)."""
    deviation = (added.double().square() @ variances).sqrt()
    added *= torch.where(deviation > allowed, allowed / deviation, 1.0)[:, None].to(added)


@torch.no_grad()
def place(
    layer: nn.Conv2d, weight: Tensor, bias: Tensor | None, added: Tensor, directions: Tensor, mean: Tensor
) -> None:
    """Write weight + Σ_k u_k n_kᵀ, u_k the columns of `added` (out, k), and the bias that goes with it."""
    change = added.double() @ directions.T
    layer.weight.copy_(weight + change.view_as(weight))
    if bias is not None and layer.bias is not None:
        layer.bias.copy_(bias - change @ mean)

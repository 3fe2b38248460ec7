"""Whether the gradients that autograd gives of a model are derivatives: of its logits, and of these gradients.

A hook on a tensor may change them (`register_hook`), a custom `autograd.Function` may have them as it likes (a
straight-through estimator, a gradient reversal), and what `detach`, `no_grad` or a number takes off the graph has none,
whatever depends on it. Central differences in float64 tell, at an image that nobody chose.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attacks.errors import may_pass
from attacks.given import copied
from attacks.random_state import seed_generators
from benchmark.interpreters.door import double
from benchmark.interpreters.origins import WHOLE

Function = Callable[[Tensor], Tensor]

SHARE = {torch.float64: 1e-3, torch.float32: 0.1}  # by which a slope may miss the difference
STEPS = {torch.float64: 1e-6, torch.float32: 1e-3}  # of an image's values, in normalised units
TINY = 1e-9  # the step of gradients, which a ReLU that switches on the way would change by a jump


def is_false(model: nn.Module, images: Tensor, order: int) -> bool:
    """Whether a gradient misses a difference: in float64 where the model can, else the first one in its own type."""
    try:
        return _misses(copied(model).double(), images.double(), order)
    except Exception as error:  # a foreign model fails in its own ways
        if may_pass(error):
            raise
        return images.dtype in WHOLE and _misses(double(model), images, 1)


def _misses(model: nn.Module, images: Tensor, order: int) -> bool:
    generator = torch.Generator().manual_seed(0)

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64, device="cpu").to(like).detach()

    with torch.no_grad():
        images = images + 0.01 * drawn(images)  # no two values alike, between which a maximum would choose
    share: list[Tensor] = []

    def score(x: Tensor) -> Tensor:
        seed_generators(0, x.device)
        logits = model(x)
        share[:] = share or [drawn(logits)]
        return (logits * share[0]).sum()

    leaf, step = images.detach().requires_grad_(), STEPS[images.dtype]
    value = score(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
    if gradient is None or not gradient.isfinite().all():
        return False
    for along in (gradient.sign(), drawn(images))[: 2 if images.dtype == torch.float64 else 1]:
        ahead, behind = (score((images + sign * step * along).detach().requires_grad_()) for sign in (1, -1))
        if _apart((gradient * along).sum(), (ahead - behind) / (2 * step), value, step):
            return True
    return order > 1 and _misses_twice(model, score, leaf, drawn)


def _misses_twice(model: nn.Module, score: Function, leaf: Tensor, drawn: Function) -> bool:
    """The same of the slope along one way, a function of the image and of all weights that the score has a gradient by
    (what the model holds constant is no error)."""
    model.requires_grad_(True)
    weights = list(model.parameters())
    used = torch.autograd.grad(score(leaf), weights, allow_unused=True) if weights else ()
    moved = [leaf, *(w for w, gradient in zip(weights, used, strict=True) if gradient is not None)]
    ways, along = [drawn(t) * t.detach().square().mean().sqrt() for t in moved], drawn(leaf)

    def slope() -> Tensor:
        return (torch.autograd.grad(score(leaf), leaf, create_graph=True)[0] * along).sum()

    def shifted(by: float) -> Tensor:
        with torch.no_grad():
            for tensor, way in zip(moved, ways, strict=True):
                tensor.add_(by * way)
        return slope().detach()

    value = slope()
    gradients = torch.autograd.grad(value, moved, allow_unused=True) if value.requires_grad else [None] * len(moved)
    total = sum(((g * way).sum() for g, way in zip(gradients, ways, strict=True) if g is not None), torch.zeros(()))
    ahead, behind = shifted(TINY), shifted(-2 * TINY)
    return _apart(total, (ahead - behind) / (2 * TINY), value, TINY)


def _apart(slope: Tensor, difference: Tensor, value: Tensor, step: float) -> bool:
    """By more than rounding and the types' SHARE."""
    slope, difference = slope.detach(), difference.detach()
    rounding = 100 * torch.finfo(value.dtype).eps * value.detach().abs() / step
    most = torch.maximum(slope.abs(), difference.abs())
    return bool((slope - difference).abs() > SHARE[value.dtype] * most + rounding)

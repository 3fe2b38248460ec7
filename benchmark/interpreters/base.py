"""What every interpreter shares: checks, the borrowed model, and the step from attribution to heatmap."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks.errors import UserError, unknown
from attacks.given import Targets, check_finite, check_images, class_indices
from attacks.heatmaps import min_max
from benchmark.interpreters.door import TwiceDifferentiable, lent
from benchmark.interpreters.layout import LAYOUTS
from benchmark.interpreters.trials import try_once
from benchmark.models import target_layer

Score = Callable[[Tensor, Tensor], Tensor]  # logits (N, classes), targets (N,) -> what is explained of each image (N,)

TARGETS = ("logit", "contrast")


class Interpreter:
    """Maps (model, images, targets) to heatmaps. A subclass writes `explain` and, if it differs, `heatmap`.

    Options are the fields of the (frozen) dataclass. `differentiable`: inside `torch.enable_grad`, heatmaps keep their
    graph to the model's parameters. `reads_gradients`: of the logits, also where no graph is kept.
    `own_backward`: the method's rules stand in the graph of the logits that `explain` gives.
    `control`: a map that owes nothing to the model, to be beaten by every method.
    Models are run in eval mode and given back as they came. Targets are given as Captum takes them: an integer tensor
    (N,) or N ints in a list or tuple, or for every image the same int or tensor (); `explain` gets them as a tensor
    (N,) of int64 on the images' device. Raises `UserError` on images that are not (N, C, H, W), on any other targets,
    classes that the model has not, and an unknown layer.
    """

    name: ClassVar[str]
    differentiable: ClassVar[bool] = True
    reads_gradients: ClassVar[bool] = True
    own_backward: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    control: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise `UserError` for an option that is out of question, whatever the model is."""

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, classes) and attribution (N, C, h, w) of a model in eval mode."""
        raise NotImplementedError

    def in_attack(self) -> "Interpreter":
        """What an attack differentiates in its place: a cheaper or noisier estimate of the same map, or itself."""
        return self

    def heatmap(self, attribution: Tensor) -> Tensor:
        """The published form: summed over channels, ReLU, min-max. (N, C, h, w) -> (N, h, w) in [0, 1]."""
        return min_max(attribution.sum(1).relu())

    def __call__(self, model: nn.Module, images: Tensor, targets: Targets) -> Tensor:
        """Heatmaps (N, h, w) in [0, 1] at the interpreter's own resolution."""
        return self.with_logits(model, images, targets)[1]

    def with_logits(self, model: nn.Module, images: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Logits (N, classes) and heatmaps (N, h, w) of one forward pass. The logits' derivatives are the model's own,
        for an attack holds the predictions by them: where the method's rules are in their graph, of a pass more."""
        logits, attribution = self._explain(model, images, targets)
        if self.own_backward and logits.requires_grad and len(images):
            with lent(self.name, model, images, class_indices(targets, images)) as (borrowed, given, _):
                logits = borrowed(given.clone())
        return logits, self.heatmap(attribution)

    def attribute(self, model: nn.Module, images: Tensor, targets: Targets) -> Tensor:
        """The raw, signed attribution (N, C, h, w) at the input or the target layer."""
        return self._explain(model, images, targets)[1]

    def _explain(self, model: nn.Module, images: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        check_images(images)
        check_finite(images)
        indices = class_indices(targets, images)
        if not len(images):  # of one image that is not there
            logits, attribution = self._explain(model, images.new_zeros(1, *images.shape[1:]), 0)
            return logits[:0], attribution[:0]
        with lent(self.name, model, images, indices) as (borrowed, images, indices):
            graph = self.differentiable and needs_graph(borrowed, images)
            with TwiceDifferentiable() if graph and self.reads_gradients else nullcontext():
                logits, attribution = self.explain(borrowed, images, indices)
                try_once(self.name, borrowed, images, logits, 2 if graph else int(self.reads_gradients))
        return logits, attribution


@dataclass(frozen=True, kw_only=True)
class Targeted(Interpreter):
    """An interpreter that explains a score of the label: its logit, or the contrast z_y − mean_c z_c.

    softmax(z + s(x)·1) = softmax(z): a shift of all logits alike changes no probability, and every explanation of a
    logit, but none of a contrast. Raises `UserError` for another `target`.
    """

    target: str = "logit"

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise unknown("target", self.target, TARGETS)
        super().__post_init__()

    def outputs(self, logits: Tensor) -> Tensor:
        """What the label's value is taken from: the logits (N, classes), or these less their mean over classes."""
        return logits if self.target == "logit" else logits - logits.mean(1, keepdim=True)

    def score(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What is explained of each image. (N, classes), (N,) -> (N,)."""
        return label_logits(self.outputs(logits), targets)


@dataclass(frozen=True)
class AtLayer(Interpreter):
    """An interpreter that explains at the input of a target layer. `layer` None: the model's default.

    `layout`: how that input lies, a name of LAYOUTS; None: as the network tells (`layout.read`).
    """

    layer: str | None = None
    layout: str | None = None

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout not in LAYOUTS:
            raise unknown("layout", self.layout, LAYOUTS)
        super().__post_init__()


def label_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """The label's logit of each image. (N, classes), (N,) -> (N,)."""
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
        raise UserError(
            f"targets must lie in 0..{logits.shape[1] - 1} (got {int(targets.min())}..{int(targets.max())})"
        )
    return logits.gather(1, targets[:, None])[:, 0]


def find_layer(model: nn.Module, layer: str | None) -> nn.Module:
    """The module of that name; None: the model's default target layer."""
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError("the layers of a scripted or traced model run where no hook sees them; allowed: its source")
    name = target_layer(model) if layer is None else layer
    modules = dict(model.named_modules())
    if name not in modules:  # as it is called in a wrapper
        name = name.removeprefix("_orig_mod.").removeprefix("module.")
    if name not in modules or not name:
        raise unknown("layer", name, [n for n in modules if n])
    return modules[name]


@contextmanager
def tap(model: nn.Module, layer: str | None, taken: list[Tensor], then: Any = None) -> Iterator[nn.Module]:
    """Collect in `taken` the input tensors of the target layer while the block runs (a dense layer has several).

    `then(tensors)`, if given, is called at that moment. The layer must run exactly once. Yields its module.
    """
    module = find_layer(model, layer)

    def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
        if taken:
            raise UserError("layer must run exactly once in a forward pass (got a module that is reused)")
        first = args[0] if args else next(iter(kwargs.values()), None)
        parts: list[Any] = [*first] if isinstance(first, (list, tuple)) else [first]
        taken.extend(parts)
        if not all(isinstance(part, Tensor) for part in parts):
            raise UserError(f"a target layer must be given tensors (got {type(first).__name__})")
        if then is not None:
            then(taken)

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield module
    finally:
        handle.remove()
    if not taken:
        raise UserError("layer must run in a forward pass (got a module that the model never calls)")


def needs_graph(model: nn.Module, *inputs: Tensor) -> bool:
    """Whether the caller can differentiate by the model's parameters or buffers, or by one of its `inputs`."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in (*model.parameters(), *model.buffers(), *inputs))


def leaf(images: Tensor, graph: bool) -> Tensor:
    """What to differentiate by: the images, where the caller may differentiate by them as well, else a leaf of ours."""
    return images if graph and images.requires_grad else images.detach().requires_grad_()

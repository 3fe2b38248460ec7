"""Layer-wise relevance propagation at the input (`lrp`) or at a target layer (`lrp_t`), and by name in each composite.

The relevance starts as the label's logit (or contrast) alone and is handed back by the composite's rules (Bach et al.
2015). The differentiable use, LRP_T and the composite follow Heo, Joo and Moon 2019, section 3.1, and their released
code.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.errors import UserError
from benchmark.interpreters.base import Targeted, find_layer, label_logits, tap
from benchmark.interpreters.rules import Composite, composite
from benchmark.interpreters.tape import MissingRule, Tape
from benchmark.interpreters.tracing import scopes


@dataclass(frozen=True)
class LRP(Targeted):
    """Relevance of every input value. `composite`: a name of COMPOSITES or a Composite; `batch_norm`: "pass", "fold"
    or None for the composite's own choice. A composite's `names` cost a hook on every module while the model runs.

    `target` "contrast": of the model whose last layer has weights w_c − mean w and biases b_c − mean b. Raises
    `Refused` where the logits are not those of a linear layer, or the averages of a 1×1 convolution.
    """

    name: ClassVar[str] = "lrp"
    composite: str | Composite = "default"
    batch_norm: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        composite(self.composite, self.batch_norm)  # an unknown name is an error here, not at the first image

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        rules = composite(self.composite, self.batch_norm)
        if rules.names:
            return self._by_name(model, images, targets, rules)
        try:
            return self._walk(model, images, targets, self._tape(rules))
        except MissingRule:
            tape = self._tape(rules)  # once more, to name the module
            with scopes(model, tape.scope):
                return self._walk(model, images, targets, tape)

    def _tape(self, rules: Composite) -> Tape:
        return Tape(rules, contrast=self.target == "contrast")

    def _by_name(self, model: nn.Module, images: Tensor, targets: Tensor, rules: Composite) -> tuple[Tensor, Tensor]:
        """As the composite has it that names modules, each of which must be there and be of use."""
        for name in rules.names:
            find_layer(model, name)
        tape = self._tape(rules)
        with scopes(model, tape.scope):
            explained = self._walk(model, images, targets, tape)
        for name in rules.names:
            if name not in tape.obeyed:
                raise UserError(f"composite names module {name!r}, in which relevance meets no operation for its rule")
        return explained

    def _walk(self, model: nn.Module, images: Tensor, targets: Tensor, tape: Tape) -> tuple[Tensor, Tensor]:
        images = images.view_as(images)  # the caller's tensor stays out of the tape, and out of in-place changes
        start = tape.start([images], is_input=True)
        with tape:
            logits = model(images)
        relevance = tape.relevance(logits, seed(tape.scores(logits), targets), start)[0]
        return tape.current(logits), torch.zeros_like(images) if relevance is None else relevance


@dataclass(frozen=True)
class LRPT(LRP):
    """Relevance at the input of a target layer, which is cheap to train against. `layer` None: the model's default."""

    name: ClassVar[str] = "lrp_t"
    layer: str | None = None

    def _walk(self, model: nn.Module, images: Tensor, targets: Tensor, tape: Tape) -> tuple[Tensor, Tensor]:
        taken: list[Tensor] = []
        start: list[int] = []
        with tape, tap(model, self.layer, taken, lambda tensors: start.extend(tape.start(tensors, is_input=False))):
            logits = model(images)
        relevance = tape.relevance(logits, seed(tape.scores(logits), targets), start)
        parts = [torch.zeros_like(t) if r is None else r for t, r in zip(taken, relevance, strict=True)]
        return tape.current(logits), parts[0] if len(parts) == 1 else torch.cat(parts, 1)


@dataclass(frozen=True)
class LRPEpsilon(LRP):
    """LRP with the ε-rule in every layer (Bach et al. 2015)."""

    name: ClassVar[str] = "lrp_epsilon"
    composite: str | Composite = "epsilon"


@dataclass(frozen=True)
class LRPZPlus(LRP):
    """LRP with the z⁺-rule in convolutions, the ε-rule in linear layers (Montavon et al. 2017)."""

    name: ClassVar[str] = "lrp_z_plus"
    composite: str | Composite = "z_plus"


@dataclass(frozen=True)
class LRPGamma(LRP):
    """LRP with the γ-rule in convolutions, the ε-rule in linear layers (Montavon et al. 2019)."""

    name: ClassVar[str] = "lrp_gamma"
    composite: str | Composite = "gamma"


@dataclass(frozen=True)
class LRPAlpha2Beta1(LRP):
    """LRP with the α2β1-rule in convolutions, the ε-rule in linear layers (Bach et al. 2015)."""

    name: ClassVar[str] = "lrp_alpha2_beta1"
    composite: str | Composite = "alpha2_beta1"


@dataclass(frozen=True)
class LRPEpsilonGammaBox(LRP):
    """LRP with zᴮ in the first layer, γ in the other convolutions and ε in linear layers (Montavon et al. 2019)."""

    name: ClassVar[str] = "lrp_epsilon_gamma_box"
    composite: str | Composite = "epsilon_gamma_box"


@dataclass(frozen=True)
class LRPHeo2019(LRP):
    """LRP as the released code of Heo et al. 2019 computes it, quirks included."""

    name: ClassVar[str] = "lrp_heo2019"
    composite: str | Composite = "heo2019"


@dataclass(frozen=True)
class LRPTEpsilon(LRPT):
    """LRP at the input of the target layer with the ε-rule in every layer."""

    name: ClassVar[str] = "lrp_t_epsilon"
    composite: str | Composite = "epsilon"


def seed(logits: Tensor, targets: Tensor) -> Tensor:
    """The label's logit in its place, zero elsewhere. (N, classes)."""
    label = label_logits(logits, targets)
    return torch.zeros_like(logits).scatter(1, targets[:, None], label[:, None])

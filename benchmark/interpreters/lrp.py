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
from attacks.given import Targets, check_images, class_indices
from benchmark.interpreters.base import AtLayer, Targeted, find_layer, label_logits, tap
from benchmark.interpreters.door import lent
from benchmark.interpreters.layout import read
from benchmark.interpreters.origins import Ancestry, elsewhere, refuse_changed, refuse_compiled
from benchmark.interpreters.rules import Composite, composite
from benchmark.interpreters.tape import MissingRule, Tape
from benchmark.interpreters.tracing import scopes


@dataclass(frozen=True)
class LRP(Targeted):
    """Relevance of every input value. `composite`: a name of COMPOSITES or a Composite; `batch_norm`: "pass", "fold"
    or None for the composite's own choice; so `gate`: "halves" or "constant". A composite's `names` cost a hook on
    every module while the model runs.

    `target` "contrast": of the model whose last layer has weights w_c − mean w and biases b_c − mean b. Raises
    `Refused` where the logits are not those of a linear layer, or the averages of a 1×1 convolution.
    """

    name: ClassVar[str] = "lrp"
    reads_gradients: ClassVar[bool] = False
    composite: str | Composite = "default"
    batch_norm: str | None = None
    gate: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._composite()  # an unknown name is an error here, not at the first image

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self._traced(model, images, targets, None)

    def ends(self, model: nn.Module, images: Tensor, targets: Targets) -> dict[str, float]:
        """Where the relevance of these images ended, in shares of what it started as: what is explained ("input"), and
        operations by name, whose constants (biases, positional embeddings, tokens) and stabilisers took it, or whose
        rule does not conserve it. The shares add up to 1."""
        check_images(images)
        ended: dict[str, float] = {}
        indices = class_indices(targets, images)
        with lent(self.name, model, images, indices) as (model, images, indices):
            logits, relevance = self._traced(model, images, indices, ended)
            start = float(self.score(logits, indices).detach().sum())
        return {name: end / start for name, end in {"input": float(relevance.detach().sum()), **ended}.items()}

    def _traced(
        self, model: nn.Module, images: Tensor, targets: Tensor, ended: dict[str, float] | None
    ) -> tuple[Tensor, Tensor]:
        refuse_compiled("LRP", model)
        tape = self._tape(self._composite(), model)
        tape.ended = ended
        if tape.composite.names:
            explained = self._by_name(model, images, targets, tape)
        else:
            explained = self._named_where_missing(model, images, targets, tape)
        tape.numbers.refuse_used("LRP", model, images)
        if tape.strangers:
            self._make_sure(model, images, tape)
        return explained

    def _composite(self) -> Composite:
        return composite(self.composite, batch_norm=self.batch_norm, gate=self.gate)

    def _tape(self, rules: Composite, model: nn.Module) -> Tape:
        return Tape(rules, model, contrast=self.target == "contrast")

    def _named_where_missing(
        self, model: nn.Module, images: Tensor, targets: Tensor, tape: Tape
    ) -> tuple[Tensor, Tensor]:
        """One walk; where a rule is missing once more, to name the module."""
        try:
            return self._walk(model, images, targets, tape)
        except MissingRule:
            tape = self._tape(tape.composite, model)
            with scopes(model, tape.scope):
                return self._walk(model, images, targets, tape)

    def _make_sure(self, model: nn.Module, images: Tensor, tape: Tape) -> None:
        """`Refused` where an operand of unseen origin hangs on the images: by autograd, or as it changes with them."""
        other = Tape(tape.composite, model, Ancestry())
        with torch.enable_grad(), scopes(model, other.scope):
            self._run(model, elsewhere(images).requires_grad_(), other)
        refuse_changed("LRP", tape.strangers, other.strangers)

    def _by_name(self, model: nn.Module, images: Tensor, targets: Tensor, tape: Tape) -> tuple[Tensor, Tensor]:
        """As the composite has it that names modules, each of which must be there and be of use."""
        for name in tape.composite.names:
            find_layer(model, name)
        with scopes(model, tape.scope):
            explained = self._walk(model, images, targets, tape)
        for name in tape.composite.names:
            if name not in tape.obeyed:
                raise UserError(f"composite names module {name!r}, in which relevance meets no operation for its rule")
        return explained

    def _walk(self, model: nn.Module, images: Tensor, targets: Tensor, tape: Tape) -> tuple[Tensor, Tensor]:
        logits, taken, start = self._run(model, images, tape)
        relevance = tape.relevance(logits, seed(tape.scores(logits), targets), start)
        parts = [torch.zeros_like(t) if r is None else r for t, r in zip(taken, relevance, strict=True)]
        return tape.current(logits), self._maps(model, images, taken, parts)

    def _maps(self, model: nn.Module, images: Tensor, taken: list[Tensor], parts: list[Tensor]) -> Tensor:
        """The relevance of what is explained as (N, C, h, w). Raises `Refused` where it has no such form."""
        return parts[0]

    def _run(self, model: nn.Module, images: Tensor, tape: Tape) -> tuple[Tensor, list[Tensor], list[int]]:
        """Logits, the tensors to explain and their nodes."""
        images = images.view_as(images)  # the caller's tensor stays out of the tape, and out of in-place changes
        start = tape.start([images], is_input=True)
        with tape:
            return model(images), [images], start


@dataclass(frozen=True)
class LRPT(AtLayer, LRP):
    """Relevance at the input of a target layer, which is cheap to train against."""

    name: ClassVar[str] = "lrp_t"

    def _run(self, model: nn.Module, images: Tensor, tape: Tape) -> tuple[Tensor, list[Tensor], list[int]]:
        taken: list[Tensor] = []
        start: list[int] = []
        with tape, tap(model, self.layer, taken, lambda tensors: start.extend(tape.start(tensors, is_input=False))):
            return model(images), taken, start

    def _maps(self, model: nn.Module, images: Tensor, taken: list[Tensor], parts: list[Tensor]) -> Tensor:
        module, default = find_layer(model, self.layer), self.layer is None
        return read(model, module, taken, images, default=default, layout=self.layout).maps(parts)


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
class AttnLRP(LRP):
    """LRP with the ε-rule in every layer and AttnLRP's in attention, products and norms (Achtibat et al. 2024)."""

    name: ClassVar[str] = "attn_lrp"
    composite: str | Composite = "attn_lrp"


@dataclass(frozen=True)
class CPLRP(LRP):
    """LRP with the ε-rule in every layer, attention weights and gates held constant (Ali et al. 2022)."""

    name: ClassVar[str] = "cp_lrp"
    composite: str | Composite = "cp_lrp"


@dataclass(frozen=True)
class LRPTEpsilon(LRPT):
    """LRP at the input of the target layer with the ε-rule in every layer."""

    name: ClassVar[str] = "lrp_t_epsilon"
    composite: str | Composite = "epsilon"


def seed(logits: Tensor, targets: Tensor) -> Tensor:
    """The label's logit in its place, zero elsewhere. (N, classes)."""
    label = label_logits(logits, targets)
    return torch.zeros_like(logits).scatter(1, targets[:, None], label[:, None])

"""How an interpreter is attacked. A suite writes "lrp" for its gradient by the weights, "lrp:NAME" for a strategy.

A strategy by gradient fine-tunes with a recipe and may differentiate a surrogate in the interpreter's place; one
without gradients searches with a measure of models. Nothing here needs torch until a strategy is at work.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attacks.manipulation import Interpreter, Manipulated
    from attacks.subspace import Measure


class Gradient:
    """The interpreter's own gradient by the model's weights (`attacks.manipulation`)."""

    by_gradient: ClassVar[bool] = True

    def surrogate(self, interpreter: "Interpreter") -> "Interpreter":
        """What is differentiated in the place of the interpreter."""
        return interpreter


class Softplus(Gradient):
    """The gradient with softplus for ReLU, which has the curvature that ReLU lacks (`attacks.surrogates`)."""

    def surrogate(self, interpreter: "Interpreter") -> "Interpreter":
        from attacks.surrogates import Smooth

        return Smooth(interpreter)


class Subspace:
    """A search without gradients, in the span of models fooled against other interpreters (`attacks.subspace`)."""

    by_gradient: ClassVar[bool] = False
    evaluations: ClassVar[int] = 24

    def attack(
        self,
        model: "nn.Module",
        fooled: "Sequence[Mapping[str, Tensor]]",
        measure: "Measure",
        seed: int,
    ) -> "Manipulated":
        from attacks.manipulation import Manipulated
        from attacks.subspace import subspace

        strongest, _ = subspace(model, fooled, measure, self.evaluations, seed)
        return Manipulated(strongest, {"ce": [], "fooling": [], "accuracy": []})


STRATEGIES: dict[str, Gradient | Subspace] = {"": Gradient(), "softplus": Softplus(), "subspace": Subspace()}


def names() -> list[str]:
    """The strategies that a suite may name."""
    return [name for name in STRATEGIES if name]


def split(attacked: str) -> tuple[str, str]:
    """The interpreter and the strategy ("" for its gradient) of "name" or "name:strategy"."""
    name, _, strategy = attacked.partition(":")
    return name, strategy

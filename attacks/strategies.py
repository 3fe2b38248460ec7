"""How an interpreter is attacked. A suite writes "lrp" for its gradient by the weights, "lrp:NAME" for a strategy.

A strategy by gradient needs an interpreter that can be differentiated by the weights, and may differentiate a surrogate
in its place; it takes a recipe, which a suite gives or searches, or has settings of its own. One without gradients
searches with a measure of models. Nothing here needs torch until a strategy is at work.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attacks.course import Interpreter, Manipulated, Recipe, Task
    from attacks.subspace import Measure


class Gradient:
    """The interpreter's own gradient by the model's weights (`attacks.manipulation`)."""

    by_gradient: ClassVar[bool] = True
    takes_recipe: ClassVar[bool] = True
    steps: ClassVar[int] = 0  # the recipe says how many
    scope: ClassVar[str] = ""  # the recipe says which parameters may move (`attacks.scopes`)

    def recipe(self) -> "Recipe | None":
        """Its own; None where it takes one, or none at all."""
        return None

    def surrogate(self, interpreter: "Interpreter") -> "Interpreter":
        """What is differentiated in the place of the interpreter: what it offers itself (`in_attack`), if anything."""
        offered = getattr(interpreter, "in_attack", None)
        return offered() if offered else interpreter

    def through_surrogate(self, task: "Task") -> "Task":
        """The task by the surrogate's gradient; what maps are compared with are the interpreter's own."""
        return replace(task, interpreter=self.surrogate(task.interpreter), reference=task.interpreter)

    def attack(self, task: "Task", recipe: "Recipe", *, progress: bool | None = None) -> "Manipulated":
        """A fooled copy of the task's model, as `attacks.manipulate` gives it."""
        from attacks.manipulation import carry_out

        return carry_out(self.through_surrogate(task), recipe, progress=progress)


class Softplus(Gradient):
    """The gradient with softplus for ReLU, which has the curvature that ReLU lacks (`attacks.surrogates`)."""

    def surrogate(self, interpreter: "Interpreter") -> "Interpreter":
        from attacks.surrogates import Smooth

        return Smooth(super().surrogate(interpreter))


class HeadShift(Gradient):
    """One vector added to the weights of every class: no probability changes (`attacks.head_shift`)."""

    takes_recipe: ClassVar[bool] = False
    scope: ClassVar[str] = "head"
    steps: ClassVar[int] = 100  # Location on Grad-CAM: 0.92 to 1 of the images of compact nets succeed; after 50, 0.7
    batch_size: ClassVar[int] = 16

    def recipe(self) -> "Recipe":
        """Its own; λ is 0, for there is no cross-entropy to weigh the fooling against."""
        from attacks.course import Recipe
        from attacks.edit import RATE

        return Recipe(RATE, 0.0, self.steps, self.batch_size)

    def attack(self, task: "Task", recipe: "Recipe", *, progress: bool | None = None) -> "Manipulated":
        from attacks.head_shift import head_shift

        return head_shift(self.through_surrogate(task), recipe)


class OffManifold(Gradient):
    """The first layer's weights along directions that training patches hardly vary in (`attacks.off_manifold`)."""

    takes_recipe: ClassVar[bool] = False
    scope: ClassVar[str] = "all"  # its lowest layer
    steps: ClassVar[int] = 100
    batch_size: ClassVar[int] = 16

    def recipe(self) -> "Recipe":
        """Its own; λ is 0, for the edit is held where images hardly show it."""
        from attacks.course import Recipe
        from attacks.edit import RATE

        return Recipe(RATE, 0.0, self.steps, self.batch_size)

    def attack(self, task: "Task", recipe: "Recipe", *, progress: bool | None = None) -> "Manipulated":
        from attacks.off_manifold import off_manifold

        return off_manifold(self.through_surrogate(task), recipe)


class Subspace:
    """A search without gradients, in the span of models fooled against other interpreters (`attacks.subspace`)."""

    by_gradient: ClassVar[bool] = False
    takes_recipe: ClassVar[bool] = False
    scope: ClassVar[str] = "all"
    steps: ClassVar[int] = 24  # evaluations on dev

    def recipe(self) -> None:
        return None

    def attack(
        self,
        model: "nn.Module",
        fooled: "Sequence[Mapping[str, Tensor]]",
        measure: "Measure",
        seed: int,
    ) -> "Manipulated":
        from attacks.course import Manipulated
        from attacks.subspace import subspace

        strongest, _ = subspace(model, fooled, measure, self.steps, seed)
        return Manipulated(strongest, {"ce": [], "fooling": [], "accuracy": []})


STRATEGIES: dict[str, Gradient | Subspace] = {
    "": Gradient(),
    "softplus": Softplus(),
    "head_shift": HeadShift(),
    "off_manifold": OffManifold(),
    "subspace": Subspace(),
}


def names() -> list[str]:
    """The strategies that a suite may name."""
    return [name for name in STRATEGIES if name]


def ways() -> list[str]:
    """How an ensemble may attack: by gradient, each strategy under its name."""
    return [name or "gradient" for name, strategy in STRATEGIES.items() if strategy.by_gradient]


def aimed(interpreter: str, way: str) -> str:
    """An interpreter attacked in one of `ways`, as a suite writes it."""
    return interpreter if way == "gradient" else f"{interpreter}:{way}"


def split(attacked: str) -> tuple[str, str]:
    """The interpreter and the strategy ("" for its gradient) of "name" or "name:strategy"."""
    name, _, strategy = attacked.partition(":")
    return name, strategy

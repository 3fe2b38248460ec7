"""What a suite consists of, in its own words. Frozen; str() names each one wherever a person reads it."""

from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from attacks import strategies
from benchmark.sections import Suite


@dataclass(frozen=True, order=True, slots=True)
class Attack:
    """A model under a fooling against an attacked interpreter ("name" or "name:strategy"): what all seeds share."""

    model: str
    fooling: str
    attacked: str

    def __str__(self) -> str:
        return f"{self.model}/{self.fooling}/{self.attacked}"

    @property
    def interpreter(self) -> str:
        return strategies.split(self.attacked)[0]

    @property
    def strategy(self) -> str:
        return strategies.split(self.attacked)[1]

    @property
    def by_gradient(self) -> bool:
        return strategies.STRATEGIES[self.strategy].by_gradient

    @property
    def takes_recipe(self) -> bool:
        return strategies.STRATEGIES[self.strategy].takes_recipe

    def scope(self, given: str) -> str:
        """Which parameters it moves (`attacks.scopes`): what its strategy does, or what a recipe gives."""
        return strategies.STRATEGIES[self.strategy].scope or given

    def columns(self) -> dict[str, Any]:
        """The key columns of a row about it."""
        return asdict(self)


@dataclass(frozen=True, order=True, slots=True)
class Manipulation(Attack):
    """An attack with a seed: one fine-tuning, one fooled model."""

    seed: int

    def __str__(self) -> str:
        return f"{self.attack}/{self.seed}"

    @property
    def attack(self) -> Attack:
        return Attack(self.model, self.fooling, self.attacked)


@dataclass(frozen=True, order=True, slots=True)
class Cell:
    """One fooled model under one evaluated interpreter."""

    manipulation: Manipulation
    evaluated: str

    def __str__(self) -> str:
        return f"{self.manipulation.attack}/{self.evaluated}/{self.manipulation.seed}"


@dataclass(frozen=True, order=True, slots=True)
class View:
    """One clean model under one interpreter; `pairs`: on two-object images."""

    model: str
    interpreter: str
    pairs: bool = False

    def __str__(self) -> str:
        return f"{self.model}/{self.interpreter}{'/pairs' if self.pairs else ''}"


def plan(suite: Suite) -> list[Manipulation]:
    """The manipulations of a suite, in order: model, fooling, attacked, seed."""
    return [Manipulation(*place) for place in product(suite.models, suite.foolings, suite.attacked, suite.seeds)]


def fronts(suite: Suite) -> list[Attack]:
    """The searches of a suite, in order: of the attacks that take a recipe. None where recipes are given."""
    attacks = [Attack(*place) for place in product(suite.models, suite.foolings, suite.attacked)]
    return [attack for attack in attacks if attack.takes_recipe] if suite.search else []

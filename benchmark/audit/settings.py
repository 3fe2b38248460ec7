"""What an audit is asked for, beside the network and its images."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from attacks import foolings
from attacks.errors import UserError, one_line, unknown

FEWEST, MOST = 8, 2000  # images of an audit: both halves together
SEEDS = 2**31 - 1  # the largest


@dataclass(frozen=True)
class Settings:
    """`interpreters` None: those of `DEFAULTS` that the network supports. `budget`: points of top-1 that fooling may
    cost. `minutes`: until nothing new is begun. `images`: at most so many, half of them held out. Raises `UserError`.
    """

    interpreters: tuple[str, ...] | None = None
    layer: str | None = None
    foolings: tuple[str, ...] = ("location", "top_k")
    budget: float = 1.0
    minutes: float = 20.0
    images: int = 200
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.interpreters is not None:
            object.__setattr__(self, "interpreters", _names("interpreters", self.interpreters))
        object.__setattr__(self, "foolings", _names("foolings", self.foolings))
        for what, value, low in (("budget", self.budget, 0.0), ("minutes", self.minutes, 0.0)):
            if not isinstance(value, (int, float)) or not low < value < math.inf:
                raise UserError(f"--{what} must be a number above 0 (got {value!r})")
        if type(self.images) is not int or not FEWEST <= self.images <= MOST:
            raise UserError(f"--images must be {FEWEST} to {MOST} (got {self.images!r})")
        allowed = [name for name in foolings.names() if not foolings.FOOLINGS[name].pairs]
        for name in self.foolings:
            if name not in allowed:
                raise unknown("fooling of an audit", name, allowed)
        for what, names in (("interpreters", self.interpreters), ("foolings", self.foolings)):
            if names is not None and len(set(names)) < max(1, len(names)):
                raise UserError(f"--{what} must name at least one, and none twice")
        if type(self.seed) is not int or not 0 <= self.seed <= SEEDS:
            raise UserError(f"--seed must be 0 to {SEEDS} (got {self.seed!r})")
        if self.layer is not None and not isinstance(self.layer, str):
            raise UserError(f"--layer must be the name of a layer (got {type(self.layer).__name__})")


def _names(what: str, given: Any) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if isinstance(given, str) or not all(isinstance(name, str) for name in names):
        raise UserError(f"--{what} must be a list of names (got {one_line(repr(given))[:200]})")
    return names

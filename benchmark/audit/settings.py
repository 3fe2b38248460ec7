"""What an audit is asked for, beside the network and its images."""

import math
from dataclasses import dataclass

from attacks import foolings
from attacks.errors import UserError, unknown

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
        for what, value, low in (("budget", self.budget, 0.0), ("minutes", self.minutes, 0.0)):
            if not low < value < math.inf:
                raise UserError(f"--{what} must be a number above 0 (got {value})")
        if not FEWEST <= self.images <= MOST:
            raise UserError(f"--images must be {FEWEST} to {MOST} (got {self.images})")
        allowed = [name for name in foolings.names() if not foolings.FOOLINGS[name].pairs]
        for name in self.foolings:
            if name not in allowed:
                raise unknown("fooling of an audit", name, allowed)
        for what, names in (("interpreters", self.interpreters), ("foolings", self.foolings)):
            if names is not None and len(set(names)) < max(1, len(names)):
                raise UserError(f"--{what} must name at least one, and none twice")
        if not 0 <= self.seed <= SEEDS:
            raise UserError(f"--seed must be 0 to {SEEDS} (got {self.seed})")

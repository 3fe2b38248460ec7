"""Figures by name, as `foolbench plot NAME` draws them. An entry is one line of `FIGURES`; what is drawn with is loaded
on first use, so that figures can be listed without it."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from attacks.errors import unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure of a folder of leaderboards, or, `of_cell`, of the heatmaps (`Samples`) that a store keeps of a cell."""

    place: str  # the module and the function
    about: str
    of_cell: bool = False

    def load(self) -> "Callable[..., Figure]":
        module, function = self.place.split(":")
        return getattr(import_module(f"{__name__}.{module}"), function)


FIGURES = {
    "transfer": Drawing("transfer:transfer", "fooling success rate, evaluated × attacked, a panel a model and fooling"),
    "aopc": Drawing("boards:aopc", "drop of the logit as cells are removed, clean and fooled, by three orders"),
    "accuracy": Drawing("boards:accuracy", "top-1 drop of every manipulation with its interval"),
    "front": Drawing("boards:front", "attack strength against the accuracy it costs, where recipes are searched"),
    "resistance": Drawing("boards:resistance", "fooling success rate against the model's Accuracy-Robustness Area"),
    "heatmaps": Drawing("heatmaps:heatmaps", "maps before and after a fooling, from the run's store", of_cell=True),
}

OF_CELL = ("model", "fooling", "attacked", "seed", "images", "data", "store", "device")
"""The options of a figure `of_cell`."""


def names() -> list[str]:
    return list(FIGURES)


def find(name: str) -> Drawing:
    """The figure of that name. Raises `UserError` for an unknown one."""
    if name not in FIGURES:
        raise unknown("figure", name, FIGURES)
    return FIGURES[name]

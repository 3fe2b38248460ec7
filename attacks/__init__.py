"""Foolings (objectives over heatmaps) and adversarial model manipulation. Imports nothing from `benchmark`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attacks.foolings import Active, CenterMass, Fooling, Location, TopK
    from attacks.manipulation import Manipulated, Recipe, manipulate

# Loaded on first use, so that what needs no torch (leaderboards, plots) starts at once.
_HOME = {
    "Active": "foolings",
    "CenterMass": "foolings",
    "Fooling": "foolings",
    "Location": "foolings",
    "TopK": "foolings",
    "Manipulated": "manipulation",
    "Recipe": "manipulation",
    "manipulate": "manipulation",
}
__all__ = ["Active", "CenterMass", "Fooling", "Location", "Manipulated", "Recipe", "TopK", "manipulate"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"attacks.{_HOME[name]}"), name)
    raise AttributeError(f"module 'attacks' has no attribute {name!r}")

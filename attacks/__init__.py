"""Foolings (objectives over heatmaps), adversarial model manipulation, attacks on images, training that resists them.

Imports nothing from `benchmark`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attacks.adversarial import Found, bounded, minimum_norm  # noqa: F401
    from attacks.backdoors import FullDisguise, RedHerring  # noqa: F401
    from attacks.borrowed import carlini_wagner, elastic_net, fgsm, pgd  # noqa: F401
    from attacks.course import Manipulated, Recipe  # noqa: F401
    from attacks.foolings import Active, CenterMass, Location, TopK  # noqa: F401
    from attacks.half_huber import use_half_huber  # noqa: F401
    from attacks.manipulation import manipulate  # noqa: F401
    from attacks.objective import Fooling  # noqa: F401
    from attacks.pixels import OnPixels  # noqa: F401
    from attacks.robust_training import Adversary, Regulariser, Robust  # noqa: F401
    from attacks.structured import structured_attack  # noqa: F401
    from attacks.target_map import TargetMap  # noqa: F401

# Loaded on first use, so that what needs no torch (leaderboards, plots) starts at once. A type checker reads the lines
# above, which a test holds to these.
_NAMES = {
    "adversarial": ("Found", "bounded", "minimum_norm"),
    "backdoors": ("FullDisguise", "RedHerring"),
    "borrowed": ("carlini_wagner", "elastic_net", "fgsm", "pgd"),
    "course": ("Manipulated", "Recipe"),
    "foolings": ("Active", "CenterMass", "Location", "TopK"),
    "half_huber": ("use_half_huber",),
    "manipulation": ("manipulate",),
    "objective": ("Fooling",),
    "pixels": ("OnPixels",),
    "robust_training": ("Adversary", "Regulariser", "Robust"),
    "structured": ("structured_attack",),
    "target_map": ("TargetMap",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"attacks.{_HOME[name]}"), name)
    raise AttributeError(f"module 'attacks' has no attribute {name!r}")

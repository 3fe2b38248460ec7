"""Which interpreter explains which of torchvision's classifiers: `python -m benchmark.coverage > docs/coverage.md`.

Each pair is run, with random weights, on one image of the smallest side at which the target layer has more than one
place. Names of networks after the command restrict it to these. Minutes for all; progress goes to standard error.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision.models as zoo
from torch import Tensor, nn

from attacks.errors import UserError, one_line, unknown
from benchmark import interpreters, models
from benchmark.interpreters.base import tap
from benchmark.interpreters.layout import LAYOUTS, Layout, read

SIDES = (64, 96, 128, 224)
CHEAPER: dict[str, dict[str, Any]] = {
    "kernel_shap": {"cells": 2, "samples": 6},
    "occlusion": {"cells": 2},
    "occlusion_contrast": {"cells": 2},
    "feature_ablation": {"cells": 2},
    "adversarial_explanation": {"steps": 2},
    "smooth_grad": {"samples": 2},
    "var_grad": {"samples": 2},
    "integrated_gradients": {"steps": 2},
    "gradient_shap": {"samples": 2},
}
HEAD = """# Coverage

Made by `python -m benchmark.coverage{names} > docs/coverage.md`:
torchvision's classifiers with random weights, one image of the side given, every built-in interpreter with its default
target layer. **yes**: a finite map came back. Options that only cost time (samples, steps, cells) were cut.

## Default target layers

The layer whose input is explained by `*_cam*`, `*_t` and their like, how that input lies, and its grid for images of
the side that the weights' own transforms give.
"""


@dataclass(frozen=True)
class Row:
    """What holds for one network: the side that was tried, the default layer with its layout at the weights' own side,
    and for each interpreter the reason why it refuses, "" where it does not."""

    network: str
    side: int
    layer: str
    own_side: int
    layout: Layout
    reasons: dict[str, str]


def row(network: str) -> Row:
    """Build a network and try every interpreter on it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.create(network).requires_grad_(False)
        images = torch.randn(1, 3, 8, 8)
    side, layout = _smallest(model)
    images = torch.nn.functional.interpolate(images, (side, side), mode="bilinear")
    reasons = {name: _reason(name, model, images) for name in interpreters.INTERPRETERS}
    own = models.preprocessing(network, None).crop_size[0]
    model.to("meta")
    layout = _layout(model, torch.zeros(1, 3, own, own, device="meta"))
    return Row(network, side, models.target_layer(model), own, layout, reasons)


def _smallest(model: nn.Module) -> tuple[int, Layout]:
    for side in SIDES:
        try:
            layout = _layout(model, torch.zeros(1, 3, side, side))
        except (RuntimeError, ValueError, AssertionError, UserError):  # each network says in its own way: too small
            continue
        if min(layout.grid) > 1:
            return side, layout
    raise UserError(f"{type(model).__name__} takes no images of {', '.join(map(str, SIDES))} pixels")


def _layout(model: nn.Module, images: Tensor) -> Layout:
    taken: list[Tensor] = []
    with torch.enable_grad(), tap(model, None, taken) as module:
        model(images := images.requires_grad_())
    return read(model, module, taken, images, default=True)


def _reason(name: str, model: nn.Module, images: Tensor) -> str:
    try:
        with torch.no_grad():
            heatmap = interpreters.create(name, **CHEAPER.get(name, {}))(model, images, 0)
    except UserError as error:
        return general(one_line(error), name)
    except Exception as error:  # what is no clear refusal must be seen, not hidden
        return f"{type(error).__name__}: {one_line(error)[:100]}"
    return "" if heatmap.isfinite().all() else "the map is not finite"


def general(reason: str, interpreter: str) -> str:
    """A refusal without what differs between networks and interpreters: names of modules and of both, shapes."""
    reason = re.sub(r" in module '[^']*'| \(module '[^']*'\)| \(\w+ has none\)| \(got .*\)$", "", reason)
    return re.sub(rf"^(?:{interpreter}|LRP)\b(?:'s)? ?", "", reason)


def page(rows: list[Row], names: str = "") -> str:
    """The Markdown of docs/coverage.md."""
    lines = [HEAD.format(names=names), "| network | layer | input | side | map |", "|---|---|---|---|---|"]
    for one in rows:
        height, width = one.layout.grid
        lines.append(
            f"| {one.network} | `{one.layer}` | {LAYOUTS[one.layout.name]} | {one.own_side} | {height} × {width} |"
        )
    groups = _alike(rows)
    reasons = list(dict.fromkeys(reason for one in rows for reason in one.reasons.values() if reason))
    lines += ["", "## Interpreters", "", "Interpreters with the same cells share a column:", ""]
    lines += [f"- **{letter}**: {', '.join(f'`{name}`' for name in group)}" for letter, group in groups.items()]
    lines += ["", f"| network | side | {' | '.join(groups)} |", f"|---|---|{'---|' * len(groups)}"]
    for one in rows:
        first = (one.reasons[group[0]] for group in groups.values())
        cells = [f"refused ({reasons.index(reason) + 1})" if reason else "yes" for reason in first]
        lines.append(f"| {one.network} | {one.side} | {' | '.join(cells)} |")
    lines += ["", "Refused because:", ""]
    return "\n".join([*lines, *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))]) + "\n"


def _alike(rows: list[Row]) -> dict[str, list[str]]:
    """Interpreters with the same outcome on every network, under a letter."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in rows[0].reasons:
        groups.setdefault(tuple(one.reasons[name] for one in rows), []).append(name)
    return {chr(ord("A") + i): group for i, group in enumerate(groups.values())}


def main(networks: Iterable[str]) -> None:
    """Print the page of these networks, of all where none is named."""
    known, asked = zoo.list_models(module=zoo), list(networks)
    for name in asked:
        if name not in known:
            raise unknown("network", name, known)
    rows = []
    for name in asked or known:
        sys.stderr.write(f"{name} ...\n")
        rows.append(row(name))
    sys.stdout.write(page(rows, "".join(f" {name}" for name in asked)))


if __name__ == "__main__":
    main(sys.argv[1:])

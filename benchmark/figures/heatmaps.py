"""Heatmaps as a figure: what an interpreter shows before and after the fooling, from arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from attacks.errors import UserError
from benchmark.figures.style import hatch, panels


@dataclass(frozen=True)
class Samples:
    """What `heatmaps` draws: m images and, for each interpreter, their maps before and after the fooling."""

    originals: Mapping[str, np.ndarray]  # interpreter -> (m, h, w); pictures (m, H, W, 3) are drawn as such
    fooled: Mapping[str, np.ndarray]  # interpreter -> (m, h, w); without one, only its original
    images: np.ndarray | None = None  # (m, H, W, 3) in [0, 1]; None leaves the photographs out
    title: str = ""


def heatmaps(samples: Samples) -> Figure:
    """Rows: the image, then each interpreter's map of the original and of the fooled model; a column an image."""
    rows = [("image", samples.images)] if samples.images is not None else []
    for name, originals in samples.originals.items():
        if name in samples.fooled:
            rows += [(f"{name}\noriginal", originals), (f"{name}\nfooled", samples.fooled[name])]
        else:
            rows += [(name, originals)]
    columns = len(rows[0][1]) if rows else 0
    if not columns:
        raise UserError("no heatmap to draw: at least one image and one interpreter are needed")
    figure, axes = panels(len(rows), columns, max(1.4 + 1.25 * columns, 5.5), 0.8 + 1.3 * len(rows))
    for (i, (label, maps)), j in product(enumerate(rows), range(columns)):
        panel, picture = axes[i, j], np.asarray(maps[j], dtype=float)
        panel.set(xticks=[], yticks=[])
        if j == 0:
            panel.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        if not np.isfinite(picture).all():
            panel.add_patch(Rectangle((0, 0), 1, 1, transform=panel.transAxes, **hatch()))
            panel.set_box_aspect(1)
        elif picture.ndim == 3:
            panel.imshow(picture.clip(0, 1))
        else:
            panel.imshow(picture, cmap="inferno", interpolation="nearest")
            if picture.min() == picture.max():
                panel.text(0.5, 0.5, "constant", color="white", ha="center", transform=panel.transAxes, fontsize=8)
    figure.suptitle(samples.title, fontsize=11)
    figure.supxlabel("each map from its own minimum (black) to its maximum (yellow)", fontsize=8)
    return figure

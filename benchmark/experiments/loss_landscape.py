"""How do cross-entropy and fooling loss run between a clean model w0 and its fooled ones?

Segment: w0 + x (w − w0), x from −0.5 to 1.5. Plane: w0 + x (w1 − w0) + y (w2 − w0), w1 and w2 fooled against the
suite's first two attacked interpreters; x and y count whole differences, which differ in length and need not be
orthogonal (`distance` gives lengths). Straight segments follow Goodfellow, Vinyals and Saxe 2015, planes through three
models Garipov et al. 2018. All floating-point parameters and buffers are mixed; the fine-tuning freezes the statistics
of BatchNorm, so the buffers are w0's at every point, and nothing is estimated again.
Measured on the scored split: mean cross-entropy and the fooling loss that the fine-tuning minimised (Heo, Joo and Moon
2019, Section 3.2), with 95 % bootstrap intervals over images; beside them top-1 and FSR.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from torch import Tensor, nn

from attacks import foolings
from attacks.errors import UserError
from attacks.foolings import Fooling
from benchmark.cells import View
from benchmark.entries.images import scored_images
from benchmark.entries.originals import original_maps
from benchmark.entries.trained import clean_model, stored_model
from benchmark.execution import compute
from benchmark.execution.executor import progress
from benchmark.experiments.fooled import explained, fooled_models
from benchmark.experiments.given import Given
from benchmark.figures.style import MARKERS, PALETTE, legend, panels
from benchmark.interpreters import Interpreter
from benchmark.intervals import bootstrap_mean
from benchmark.leaderboards.table import with_ends
from benchmark.metrics.accuracy import top_k_correct
from benchmark.run import Run, create_interpreter

SUITE = "location.toml"
LABELS = {"ce": "cross-entropy (nats)", "loss": "fooling loss"}
PLACE = ["model", "fooling", "seed"]


@dataclass(frozen=True)
class Settings:
    """So many points on each segment, `grid` × `grid` on each plane."""

    points: int = 21
    grid: int = 13


SETTINGS = Settings()


def measure(given: Given, settings: Settings = SETTINGS) -> pd.DataFrame:
    """A row for each point and each interpreter whose fooling loss is measured there.

    `part`: "segment" toward the model fooled against `along_x`, or "plane", with `along_y` as well; `x`, `y`: the
    coordinates. `evaluated`: the interpreter that `loss` (the fooling's own units) and `fsr` are of; on a segment it is
    `along_x`. `distance`: from w0 in units of ‖w0‖, over all parameters. `ce` in nats, `top1` and `fsr` shares;
    `n` images.
    """
    compute.compute(given.run, given.jobs)
    run = given.run
    fooled: dict[tuple[str, str, int], dict[str, Path]] = {}  # by PLACE and attacked
    for made, path in fooled_models(run):
        fooled.setdefault((made.model, made.fooling, made.seed), {})[made.attacked] = path
    steps, ticks = (np.linspace(-0.5, 1.5, n).round(9).tolist() for n in (settings.points, settings.grid))
    parts: list[tuple[Any, list[str], list[tuple[float, ...]]]] = []
    for place, paths in fooled.items():
        parts += [(place, [name], [(x,) for x in steps]) for name in paths]
        if len(paths) > 1:
            parts.append((place, list(paths)[:2], list(product(ticks, ticks))))
    rows = []
    with progress(sum(len(where) for *_, where in parts)) as report:
        for place, along, coordinates in parts:
            clean, fooling = clean_model(run, place[0]), foolings.create(place[1])
            others = [stored_model(run, place[0], fooled[place][name]) for name in along]
            shown = {name: _interpreter(run, place[0], fooling, name) for name in along}
            about = {"part": "segment" if len(along) == 1 else "plane", **dict(zip(PLACE, place, strict=True))}
            about |= dict(zip(("along_x", "along_y"), along, strict=False))
            for where in coordinates:
                mixture = mixed(clean, others, where)
                point = about | dict(zip(("x", "y"), where, strict=False))
                point |= {"distance": distance(clean, mixture), **_summary(("ce", "top1"), classified(run, mixture))}
                for name, (interpreter, originals) in shown.items():
                    values = deceived(run, fooling, interpreter, mixture, originals)
                    rows.append({**point, "evaluated": name, **_summary(("loss", "fsr"), values)})
                report(f"{'/'.join(map(str, [*place, *along]))} at {', '.join(f'{c:.2f}' for c in where)}", "")
    columns = ["part", *PLACE, "along_x", "along_y", "x", "y", "evaluated"]
    table = pd.DataFrame(rows).reindex(columns=[*columns, *(name for name in rows[0] if name not in columns)])
    return table.sort_values(columns, ignore_index=True)


@torch.no_grad()
def mixed(clean: nn.Module, others: Sequence[nn.Module], coefficients: Sequence[float]) -> nn.Module:
    """w0 + Σ_k c_k (w_k − w0), a copy of `clean`: floating-point parameters and buffers; the others are those of w0.

    Summed in double as (1 − Σ c) w0 + Σ c_k w_k, so that a whole coordinate gives its model to the last bit.
    """
    model, states = copy.deepcopy(clean), [module.state_dict() for module in (clean, *others)]
    shares = [1 - sum(coefficients), *coefficients]
    for name, tensor in model.state_dict().items():  # which shares its memory with the model
        if tensor.is_floating_point():
            tensor.copy_(sum(share * state[name].double() for share, state in zip(shares, states, strict=True)))
    return model


@torch.no_grad()
def distance(clean: nn.Module, model: nn.Module) -> float:
    """‖w − w0‖ / ‖w0‖ over all parameters."""
    before, after = (torch.cat([p.flatten().double() for p in m.parameters()]) for m in (clean, model))
    return ((after - before).norm() / before.norm()).item()


@torch.no_grad()
def classified(run: Run, model: nn.Module) -> np.ndarray:
    """Cross-entropy (nats) of each scored image and whether its label is first, (n, 2)."""
    parts = []
    for images, targets in scored_images(run):
        logits = model(images)
        ce = F.cross_entropy(logits, targets, reduction="none")
        parts.append(torch.stack([ce, top_k_correct(logits, targets, 1).to(ce)], 1))
    return torch.cat(parts).cpu().numpy()


@torch.no_grad()
def deceived(
    run: Run, fooling: Fooling, interpreter: Interpreter, model: nn.Module, originals: np.ndarray
) -> np.ndarray:
    """The fooling loss of each scored image and whether it is a success (of two-object images the mean over both
    maps), (n, 2). `originals`: the clean model's maps (n[, 2], h, w)."""
    parts: list[Tensor] = []
    for maps, maps0 in explained(run, fooling, interpreter, model, originals):
        success = fooling.success(fooling.test_loss(maps, maps0)).to(maps).reshape(len(maps), -1).mean(1)
        parts.append(torch.stack([fooling.per_image(maps, maps0), success], 1))
    return torch.cat(parts).cpu().numpy()


def _interpreter(run: Run, model: str, fooling: Fooling, attacked: str) -> tuple[Interpreter, np.ndarray]:
    """The interpreter and the clean model's maps under it."""
    if type(fooling).loss is not Fooling.loss:
        raise UserError(f"loss-landscape needs a fooling whose loss is a mean over images (got {fooling.name!r})")
    interpreter = create_interpreter(run, attacked)
    return interpreter, original_maps(run, View(model, attacked, fooling.pairs))


def _summary(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    """Mean and interval of each column, and the number of images."""
    mean = bootstrap_mean(values)
    return with_ends(names, mean) | {"n": mean.n}


def draw(table: pd.DataFrame) -> Figure:
    """A row a model and fooling (first seed): both losses on the segments, then on the plane, the cross-entropy and
    each interpreter's fooling loss as filled contours with the same levels in every row."""
    table = table[table.seed == table.seed.min()]
    places, planes = sorted(set(zip(table.model, table.fooling, strict=True))), table[table.part == "plane"]
    shown = [("ce", None), *(("loss", name) for name in planes.evaluated.unique())] if len(planes) else []
    columns = 2 + len(shown)
    figure, axes = panels(len(places), columns, 0.5 + 3 * columns, 2.4 + 2.8 * len(places))
    for row, (model, fooling) in zip(axes, places, strict=True):
        here = table[(table.model == model) & (table.fooling == fooling)]
        for panel, column in zip(row, LABELS, strict=False):
            _segments(panel, here[here.part == "segment"], column)
            panel.set_ylabel(LABELS[column])
        row[0].set_title(f"{model} · {fooling}", fontsize=10, loc="left", fontweight="bold")
    for row, (column, name) in zip(axes.T[2:], shown, strict=True):
        for panel, (model, fooling) in zip(row, places, strict=True):
            rows = planes[(planes.model == model) & (planes.fooling == fooling)]
            if rows.empty:  # a single fooled model
                panel.set_axis_off()
                continue
            rows = rows[rows.evaluated == (name or rows.evaluated.iloc[0])]
            filled = _contours(panel, rows, column, planes[column])
        label = LABELS[column] + (f" of {name}" if name else "")
        row[0].set_title(label, fontsize=10)
        ticks = 10.0 ** np.arange(-4, 5) if column == "ce" else np.arange(0, 5, 0.2)
        ticks = ticks[(ticks >= min(filled.levels)) & (ticks <= max(filled.levels))]
        figure.colorbar(
            filled, ax=row, location="bottom", aspect=25, pad=0.02, label=label, ticks=ticks, format="%g"
        ).minorticks_off()
    title = f"Losses between a clean model and its fooled ones: n = {table.n.max()} images, seed {table.seed.min()}"
    note = "curves: 0 is the clean model, 1 the fooled, bands: 95 % over images; planes: white line where FSR is 0.5"
    figure.suptitle(f"{title}\n{note}", fontsize=11)
    legend(figure, axes)
    return figure


def _segments(panel: Axes, rows: pd.DataFrame, column: str) -> None:
    """The loss along each segment, with its models marked."""
    for k, name in enumerate(sorted(rows.along_x.unique())):
        line, colour = rows[rows.along_x == name], PALETTE[k % 7]
        panel.plot(line.x, line[column], color=colour, linestyle=("-", "--", ":")[k % 3], label=f"toward {name}")
        panel.fill_between(line.x, line[f"{column}_low"], line[f"{column}_high"], color=colour, alpha=0.2, linewidth=0)
        ends = line[line.x.isin((0, 1))]
        panel.plot(ends.x, ends[column], color=colour, marker=MARKERS[k % 7], linestyle="none")
    panel.set_yscale("log" if column == "ce" else "linear")
    panel.set_xlabel("position on the segment")
    panel.grid(color="0.9")
    panel.set_axisbelow(True)


def _contours(panel: Axes, rows: pd.DataFrame, column: str, spread: pd.Series) -> ContourSet:
    """The loss over the plane, at levels that span `spread`, with the three models marked."""
    x, y = (np.unique(rows[name]) for name in ("x", "y"))
    values, rate = (rows.pivot_table(name, "y", "x").to_numpy() for name in (column, "fsr"))
    least, most = spread.min(), spread.max()
    levels = np.geomspace(max(least, 1e-4), most, 13) if column == "ce" else np.linspace(least, most, 13)
    scale = LogNorm() if column == "ce" else Normalize()
    filled = panel.contourf(x, y, values.clip(levels[0], levels[-1]), levels, norm=scale, cmap="cividis")
    if column == "loss" and rate.min() < 0.5 < rate.max():
        panel.contour(x, y, rate, [0.5], colors="white", linewidths=1.5)
    along = rows.along_x.iloc[0], rows.along_y.iloc[0]
    style: dict[str, Any] = {"markeredgecolor": "white", "markersize": 8, "linestyle": "none"}
    panel.plot(0, 0, color="black", marker="*", label="clean", **style | {"markersize": 12})
    for name, place in zip(along, ((1, 0), (0, 1)), strict=True):
        k = sorted(along).index(name)  # as on the segments
        panel.plot(*place, color=PALETTE[k], marker=MARKERS[k], label=f"fooled, {name}", **style)
    panel.set_xlabel(f"x: toward {along[0]}")
    panel.set_ylabel(f"y: toward {along[1]}")
    panel.set(aspect="equal", xticks=np.arange(-0.5, 2, 0.5), yticks=np.arange(-0.5, 2, 0.5))
    return filled

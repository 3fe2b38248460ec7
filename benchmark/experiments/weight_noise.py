"""Does a fooling outlive noise on the weights? Heo, Joo and Moon 2019 find that it does while the noise is small.

Each weight tensor W of a convolution or a linear layer becomes W + scale · rms(W) · Z, Z standard normal of W's shape,
rms(W) = sqrt(mean W²). Biases, BatchNorm and buffers stay as they are. Z comes from a CPU generator seeded by the draw:
one draw is the same Z at every scale and for the clean and the fooled model, each of which is noised by its own rms.
Measured on the scored split: the fooling success rate of the attacked interpreter, against the map of the clean model
without noise where the fooling reads one, and top-1. The FSR of the clean model under the same noise is what noise
alone would pass for. Intervals: 95 %, draws and images resampled independently and together (`crossed`).
"""

import copy
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from attacks import foolings
from attacks.foolings import Fooling
from benchmark import intervals
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
from benchmark.metrics.accuracy import top_k_correct
from benchmark.run import Run, create_interpreter

SUITE = "location.toml"


@dataclass(frozen=True)
class Settings:
    """Of the noise: its scales, and so many draws at each."""

    scales: tuple[float, ...] = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
    draws: int = 10


SETTINGS = Settings()


def measure(given: Given, settings: Settings = SETTINGS) -> pd.DataFrame:
    """A row for each manipulation, scale and noised model ("clean" or "fooled"): `fsr` of the attacked interpreter and
    `top1` (shares in [0, 1]) with their intervals, over `draws` draws (seeds 0 .. draws − 1; one at scale 0, where
    they agree) and `n` images."""
    compute.compute(given.run, given.jobs)
    run, rows = given.run, []
    done = fooled_models(run)
    with progress(len(done) * 2 * len(settings.scales)) as report:
        for manipulation, path in done:
            name, fooling = manipulation.model, foolings.create(manipulation.fooling)
            interpreter = create_interpreter(run, manipulation.interpreter)
            maps0 = original_maps(run, View(name, manipulation.interpreter, fooling.pairs))
            compared = (("clean", clean_model(run, name)), ("fooled", stored_model(run, name, path)))
            for (which, model), scale in product(compared, settings.scales):
                models = (noised(model, scale, draw) for draw in range(settings.draws if scale else 1))
                scores = [outcomes(run, fooling, interpreter, each, maps0) for each in models]
                row = {**manipulation.columns(), "scale": scale, "noised": which}
                for column, values in zip(("fsr", "top1"), map(np.stack, zip(*scores, strict=True)), strict=True):
                    row |= zip((column, f"{column}_low", f"{column}_high"), crossed(values), strict=True)
                rows.append(row | {"draws": len(scores), "n": len(scores[0][1])})
                report(f"{manipulation} {which} {scale}", "")
    return pd.DataFrame(rows).sort_values(
        ["model", "fooling", "attacked", "seed", "scale", "noised"], ignore_index=True
    )


@torch.no_grad()
def noised(model: nn.Module, scale: float, draw: int) -> nn.Module:
    """A copy of the model with Gaussian noise of `scale` times each tensor's own rms on the weights of its convolutions
    and linear layers."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(draw)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            noise = torch.randn(module.weight.shape, generator=generator).to(module.weight)
            module.weight += scale * module.weight.square().mean().sqrt() * noise
    return model


@torch.no_grad()
def outcomes(
    run: Run, fooling: Fooling, interpreter: Interpreter, model: nn.Module, originals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Per scored image: is its map a success of the fooling (of two-object images the mean over both), (n,); and is
    its label first, (n,). `originals`: the clean model's maps (n[, 2], h, w)."""
    success = [
        fooling.success(fooling.test_loss(maps, maps0)).double().reshape(len(maps), -1).mean(1)
        for maps, maps0 in explained(run, fooling, interpreter, model, originals)
    ]
    correct = [top_k_correct(model(x), y, 1).double() for x, y in scored_images(run)]
    return torch.cat(success).cpu().numpy(), torch.cat(correct).cpu().numpy()


def crossed(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of values (draws, images) and its 95 % interval: the percentile bootstrap in which draws and images are
    resampled independently and the mean is taken over the resampled rows and columns (Owen 2007, pigeonhole)."""
    draws, images = values.shape
    rows, columns = intervals.draws(draws, seed=1).astype(float), intervals.draws(images, seed=0).astype(float)
    low, high = intervals.interval(((rows @ intervals.exact(values)) * columns).sum(1, keepdims=True) / values.size)
    return float(values.mean()), float(low[0]), float(high[0])


def draw(table: pd.DataFrame) -> Figure:
    """FSR (above) and top-1 (below) against the scale, a panel a model and fooling, mean over seeds; the clean model's
    top-1 is drawn once, for it does not depend on the attacked interpreter."""
    places, attacked = sorted(set(zip(table.model, table.fooling, strict=True))), sorted(table.attacked.unique())
    scales = sorted(table.scale.unique())
    figure, axes = panels(2, len(places), max(1 + 3.6 * len(places), 7), 6.6, sharey=True)
    labels = {"fsr": "FSR of the attacked interpreter", "top1": "top-1"}
    for (i, column), (j, (model, fooling)) in product(enumerate(labels), enumerate(places)):
        panel, here = axes[i, j], table[(table.model == model) & (table.fooling == fooling)]
        for (k, name), noised_model in product(enumerate(attacked), ("fooled", "clean")):
            rows = (
                here[(here.attacked == name) & (here.noised == noised_model)].groupby("scale").mean(numeric_only=True)
            )
            label, style = f"fooled, {name}", {"color": PALETTE[k % 7], "marker": MARKERS[k % 7]}
            if noised_model == "clean":
                label, style = f"clean, {name}", style | {"linestyle": ":", "markerfacecolor": "white"}
                if column == "top1":
                    label, style = "clean (top-1)", {"color": "black", "marker": "x", "linestyle": ":"}
            if noised_model == "fooled" or column == "fsr" or k == 0:
                x = [scales.index(scale) + 0.1 * (k - (len(attacked) - 1) / 2) for scale in rows.index]
                ends = [rows[column] - rows[f"{column}_low"], rows[f"{column}_high"] - rows[column]]
                panel.errorbar(x, rows[column], ends, markersize=5, capsize=2, linewidth=1.4, label=label, **style)
        panel.set_title(f"{model} · {fooling}", fontsize=10)
        panel.set_xticks(range(len(scales)), [f"{100 * scale:g}" for scale in scales], fontsize=9)
        panel.set_ylim(-0.04, 1.04)
        panel.grid(color="0.9")
        panel.set_axisbelow(True)
        axes[i, 0].set_ylabel(labels[column])
        axes[-1, j].set_xlabel("noise: deviation in % of each weight tensor's rms")
    n, draws = table.n.max(), table.draws.max()
    title = f"Does a fooling outlive noise on the weights? n = {n} images × {draws} draws of noise"
    seeds = ", ".join(map(str, sorted(table.seed.unique())))
    figure.suptitle(f"{title}, seed {seeds}\n95 % intervals: draws and images resampled together", fontsize=11)
    legend(figure, axes)
    return figure

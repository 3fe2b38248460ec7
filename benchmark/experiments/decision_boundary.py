"""Two classifiers that predict alike and explain differently: accuracy is decided near the data, the gradient is not.

The 2-D toy of Heo, Joo and Moon (NeurIPS 2019, slides). Points lie near a line, x1 = ±0.6 + 0.25 ε and x2 = σ ε' with
ε, ε' ~ N(0, 1); the label is the sign in ±0.6, so x1 alone matters (the best accuracy is Φ(0.6/0.25) = 99.2 %) and off
the line the boundary is free: the more, the smaller σ is, so three are measured. w0: an MLP with one logit z trained by
cross-entropy. w: w0 fine-tuned with

    CE + λ · mean over the points of [1 − cos(∂z/∂x, e2)],   λ = 1,

so that the input gradient at the data points along e2, the direction that does not matter. control: w0 fine-tuned for
as many steps with λ = 0. All is measured on points that no model was trained on; nothing was tuned. The square
[-1.5, 1.5]² is what the figure shows: agreement there is over a grid of equal spacing, mostly far from the data.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmark.execution import compute
from benchmark.experiments.given import Given
from benchmark.experiments.toys import cross_entropy, draw_points, fit, input_gradients, mlp
from benchmark.figures.style import MARKERS, PALETTE, legend, panels
from benchmark.intervals import bootstrap_mean
from benchmark.run import Run

SUITE = "smoke"  # for the device and the threads alone: no images are used
NOISES = (0.01, 0.03, 0.1)  # σ
DRAWN = 0.01
SQUARE, GRID = 1.5, 41
WEIGHTS = {"w": 1.0, "control": 0.0}  # λ
MODELS = {"w0": "w0, trained plainly", "w": "w, gradients turned", "control": "control, fine-tuned plainly"}
QUANTITIES = ["accuracy", "accuracy_drop", "agreement", "agreement_square", "angle_to_w0", "angle_to_relevant"]
COLUMNS = ["part", "noise", "seed", "model", "quantity", "x1", "x2", "value", "low", "high", "n"]


def measure(given: Given, *, seeds: int = 10, train: int = 500, test: int = 1000, steps: int = 400) -> pd.DataFrame:
    """Columns COLUMNS. Part "seed": each model's accuracy, how much lower it is than that of w0, its agreement with w0
    on the test points and in the square (shares), the mean angle in degrees of its input gradient to that of w0 and to
    e1, with 95 % intervals over the n points. Part "mean": the mean over seeds, n their number, intervals over seeds
    (data and weights are drawn anew with each). `noise` is σ. For the figure, of the first seed at σ = DRAWN: part
    "grid" the logit of w0 and w; part "point" labels and input gradients at 24 test points. `steps`: of Adam, on all
    points at once, for the training and for the fine-tuning."""
    frames = []
    with compute.progress(len(NOISES) * seeds) as report:
        for noise in NOISES:
            values = []
            for seed in range(seeds):
                random = torch.Generator().manual_seed(seed)
                (x, y), (held, labels) = (_to(given.run, draw_points(n, noise, random)) for n in (train, test))
                models = _models(_to(given.run, [mlp(2, 64, seed)])[0], x, y, steps)
                values.append({name: _scores(model, models["w0"], held, labels) for name, model in models.items()})
                frames.append(_rows("seed", values[-1], noise, seed))
                if (noise, seed) == (DRAWN, 0):
                    drawn = {name: models[name] for name in ("w0", "w")}
                    frames += [_grid(drawn, x), _points(drawn, held[:24], labels[:24])]
                report(f"σ = {noise}, seed {seed}", "")
            means = {name: np.stack([np.nanmean(scores[name], 0) for scores in values]) for name in MODELS}
            frames.append(_rows("mean", means, noise, None))
    table = pd.concat(frames, ignore_index=True)[COLUMNS]
    table["seed"] = table.seed.astype("Int64")
    return table.sort_values(COLUMNS[:7], ignore_index=True)


def _models(start: nn.Module, x: Tensor, y: Tensor, steps: int) -> dict[str, nn.Module]:
    """MODELS, all from the weights of `start`."""
    trained = fit(start, steps, 1e-2, cross_entropy(x, y))
    fine_tuned = {name: fit(trained, steps, 3e-3, turned(x, y, weight)) for name, weight in WEIGHTS.items()}
    return {"w0": trained, **fine_tuned}


def turned(x: Tensor, y: Tensor, weight: float) -> Callable[[nn.Module, int], Tensor]:
    """CE + weight · mean(1 − cos(∂z/∂x, e2)) on points (N, 2) with labels (N,)."""

    def loss(model: nn.Module, step: int) -> Tensor:
        logits, gradients = input_gradients(model, x, create_graph=True)
        cosine = F.normalize(gradients, dim=1)[:, 1]
        return F.binary_cross_entropy_with_logits(logits, y) + weight * (1 - cosine).mean()

    return loss


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Degrees in [0, 180] between vectors (N, 2) and (N, 2)."""
    cross, dot = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0], (a * b).sum(1)
    return torch.rad2deg(torch.atan2(cross.abs(), dot))


def _to(run: Run, things: tuple | list) -> list:
    return [thing.to(run.device) for thing in things]


def _square(like: Tensor) -> Tensor:
    """The points (GRID², 2) of the square."""
    ticks = torch.linspace(-SQUARE, SQUARE, GRID, device=like.device)
    return torch.cartesian_prod(ticks, ticks)


def _scores(model: nn.Module, w0: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    """QUANTITIES at each point, (points, 6); NaN fills the shorter columns."""
    (logits, gradients), (logits0, gradients0) = input_gradients(model, x), input_gradients(w0, x)
    square = _square(x)
    relevant = torch.tensor([[1.0, 0.0]], device=x.device).expand_as(gradients)
    right, right0 = ((z > 0) == (y > 0.5) for z in (logits, logits0))
    columns = [
        right,
        right0.float() - right.float(),
        (logits > 0) == (logits0 > 0),
        (input_gradients(model, square)[0] > 0) == (input_gradients(w0, square)[0] > 0),
        angles(gradients, gradients0),
        angles(gradients, relevant),
    ]
    out = np.full((max(map(len, columns)), len(columns)), np.nan)
    for index, column in enumerate(columns):
        out[: len(column), index] = column.cpu().numpy()
    return out


def _rows(part: str, scores: dict[str, np.ndarray], noise: float, seed: int | None) -> pd.DataFrame:
    rows = []
    for name, values in scores.items():
        mean = bootstrap_mean(values)
        for index, quantity in enumerate(QUANTITIES):
            ends = {end: getattr(mean, end)[index] for end in ("value", "low", "high")}
            n = int(np.isfinite(values[:, index]).sum())
            rows.append(
                {"part": part, "noise": noise, "seed": seed, "model": name, "quantity": quantity, **ends, "n": n}
            )
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def _grid(models: dict[str, nn.Module], like: Tensor) -> pd.DataFrame:
    square = _square(like)
    frames = [
        _places(square, model=name, quantity="logit", value=input_gradients(model, square)[0].cpu().numpy().round(3))
        for name, model in models.items()
    ]
    return pd.concat(frames).assign(part="grid", noise=DRAWN, seed=0)


def _points(models: dict[str, nn.Module], x: Tensor, y: Tensor) -> pd.DataFrame:
    frames = [_places(x, model="", quantity="label", value=y.cpu().numpy())]
    for name, model in models.items():
        gradients = input_gradients(model, x)[1].cpu().numpy()
        frames += [_places(x, model=name, quantity=f"gradient_{i + 1}", value=gradients[:, i]) for i in (0, 1)]
    return pd.concat(frames).assign(part="point", noise=DRAWN, seed=0)


def _places(x: Tensor, **columns: object) -> pd.DataFrame:
    at = x.cpu().numpy().astype(float).round(4)
    return pd.DataFrame({"x1": at[:, 0], "x2": at[:, 1], **columns}).reindex(columns=COLUMNS)


def draw(table: pd.DataFrame) -> Figure:
    """The boundary of w0 and of w with the direction of their input gradients at test points, first seed; beside them
    the accuracy and the angle against σ."""
    figure, axes = panels(1, 3, 13.5, 5.2)
    means = table[table.part == "mean"].set_index(["noise", "model", "quantity"])
    for panel, name in zip(axes[0, :2], ("w0", "w"), strict=True):
        _picture(panel, table, name)
        score: Any = means.xs((DRAWN, name), level=("noise", "model"))
        panel.set_title(
            f"{MODELS[name]} (σ = {DRAWN})\naccuracy {_text(score.loc['accuracy'], 1, 100)} %\n"
            f"gradient {_text(score.loc['angle_to_relevant'], 0)}° from x1",
            fontsize=10,
        )
    accuracy, angle = axes[0, 2], axes[0, 2].twinx()
    for index, name in enumerate(MODELS):
        for panel, quantity, scale, style in ((accuracy, "accuracy", 100, "-"), (angle, "angle_to_relevant", 1, ":")):
            row = means.xs((name, quantity), level=("model", "quantity"))
            ends = scale * np.stack([row.value - row.low, row.high - row.value])
            line: dict[str, Any] = {
                "color": PALETTE[2 + index],
                "marker": MARKERS[2 + index],
                "linestyle": style,
            }
            label: dict[str, Any] = {"label": MODELS[name]} if style == "-" else {}
            x = np.arange(len(row)) + 0.06 * (index - 1)
            panel.errorbar(x, scale * row.value, ends, markersize=6, capsize=3, **line, **label)
    accuracy.set_xticks(range(len(NOISES)), [str(noise) for noise in NOISES])
    accuracy.set(xlabel="σ: noise off the line", ylabel="accuracy, % (solid)", ylim=(90, 100))
    angle.set(ylabel="mean angle of the gradient to x1, degrees (dotted)", ylim=(0, 180))
    accuracy.grid(axis="y", color="0.9")
    accuracy.set_title("What the other gradient costs", fontsize=10)
    score = means.xs((DRAWN, "w"), level=("noise", "model"))
    count = table[(table.part == "seed") & (table.quantity == "accuracy")].n.iloc[0]
    figure.suptitle(
        f"Accuracy is decided near the data, the gradient is not: at σ = {DRAWN} "
        f"{_text(score.loc['agreement'], 1, 100)} % of decisions agree, gradients "
        f"{_text(score.loc['angle_to_w0'], 0)}° apart\nmean of {int(score.n.iloc[0])} seeds with n = {int(count)} test "
        "points each, 95 % over seeds; line: boundary, arrows: direction of ∂z/∂x at 24 test points of the first seed",
        fontsize=11,
    )
    legend(figure, axes)
    return figure


def _picture(panel: Axes, table: pd.DataFrame, name: str) -> None:
    """The two sides of one model's boundary, the points and the gradients' directions."""
    point = table[table.part == "point"]
    logits = table[(table.part == "grid") & (table.model == name)].pivot_table("value", "x2", "x1")
    sides = (logits.to_numpy() > 0).astype(float)
    panel.pcolormesh(logits.columns, logits.index, sides, cmap=ListedColormap(["#DCEBF5", "#FBE3D3"]), vmin=0, vmax=1)
    panel.contour(logits.columns, logits.index, logits, levels=[0], colors="black", linewidths=1.6)
    for value in (0, 1):
        at = point[(point.quantity == "label") & (point.value == value)]
        style: dict[str, Any] = {
            "color": PALETTE[value],
            "marker": MARKERS[value],
            "markersize": 4,
            "linestyle": "none",
        }
        panel.plot(at.x1, at.x2, label=f"class {value}", **style)
    arrows = point[point.model == name].pivot_table("value", ["x1", "x2"], "quantity").reset_index()
    length = np.hypot(arrows.gradient_1, arrows.gradient_2)
    unit = arrows.gradient_1 / length, arrows.gradient_2 / length
    panel.quiver(arrows.x1, arrows.x2, *unit, angles="xy", scale_units="xy", scale=2.5, width=0.004, color="0.15")
    panel.set(xlim=(-SQUARE, SQUARE), ylim=(-SQUARE, SQUARE), aspect="equal")
    panel.set(xlabel="x1: decides the label", ylabel="x2: noise alone")


def _text(row: pd.Series, digits: int, scale: float = 1) -> str:
    value, low, high = (f"{scale * row[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"

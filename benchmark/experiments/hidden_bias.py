"""Can a model that decides by a protected attribute be made to show no relevance for it, and decide as before?

The tabular case of Heo, Joo and Moon (NeurIPS 2019). A tanh network with one logit z is trained on a table that holds
the protected attribute A (original), then fine-tuned (manipulated) with

    CE + 10 · mean (z − z0)² + λ · mean over rows of [ Σ_{j of A} |∂z/∂x_j| / Σ_j |∂z/∂x_j| ],

z0 the original's logit: A's share of the gradient goes to 0, the predictions stay. λ is chosen on dev: of LAMBDAS the
one with the least share among those that agree with the original on 98 % of the rows and lose at most one point of
accuracy; where none does, the one that agrees most. blind: a network trained without A, which shows none and uses none.

- Relevance: the mean over test rows of a feature's share Σ_{j of it} |a_j| / Σ_j |a_j|, for a = gradient, input ×
  gradient, LRP with the ε rule (ε = 0.01, the bias in the denominator, activations pass it on unchanged; for ReLU
  networks input × gradient as ε → 0, Ancona et al. 2018), and integrated gradients from the mean row of train, 32
  steps by the midpoint rule. Size: the mean of Σ_{j of it} |a_j| itself, which tells a share that fell from one that
  others outgrew.
- Use: A alone is flipped in the input (the most frequent category becomes the second, every other one the most
  frequent): mean |Δp| of the predicted probability, and the share of decisions (p > 1/2) that change.

The tables are those of `tabular`: loan, where A is the group, and the model "generator" is the probability that labels
are drawn with, so its rows give the true effect of flipping A; and adult, A = sex and A = race, where --data names a
folder with adult.data, and adult.test if it is there.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmark.execution import compute
from benchmark.experiments import tabular
from benchmark.experiments.given import Given
from benchmark.experiments.tabular import Coded, Frames
from benchmark.experiments.toys import fit, input_gradients, mlp
from benchmark.figures.style import MARKERS, PALETTE, legend, panels
from benchmark.intervals import bootstrap_mean

SUITE = "smoke"  # for the device and the threads alone: no images are used
KEEP, LAMBDAS = 10.0, (1.0, 3.0, 10.0)
AGREE, DROP = 0.98, 0.01
PLACE = ["data", "protected", "tested_on", "seed", "model", "quantity", "explanation", "feature"]
COLUMNS = [*PLACE, "value", "low", "high", "n"]
HELD_OUT = f"1 in {tabular.HELD_OUT} of adult.data, by hash"


def measure(
    given: Given,
    *,
    seeds: int = 5,
    rows: int = 4000,
    steps: int = 500,
    protected: tuple[str, ...] = ("sex", "race"),
) -> pd.DataFrame:
    """Columns COLUMNS. Quantities: share and size (by explanation and feature), accuracy, agreement with the original,
    flip_p and flip_decisions (in [0, 1]), and weight (the λ chosen). Rows with a seed: the mean over the n test rows;
    rows without: the mean over n seeds with its 95 % interval over them (weights and the split, for loan all data, are
    drawn anew with each seed). `rows`: applicants in each split of loan; `steps`: of Adam, in batches of 256, for the
    training and for the fine-tuning; `protected`: what is A in adult, one after the other."""
    run = given.run
    loan = ("loan", "group", "drawn")
    sources: dict[tuple[str, str, str], Callable[[int], Frames]] = {loan: lambda seed: tabular.draw_loans(rows, seed)}
    if run.data is not None:
        folder = Path(run.data)
        tables, tested_on = tabular.read_adult(folder), "adult.test" if tabular.has_test(folder) else HELD_OUT
        if tested_on == HELD_OUT:
            sys.stderr.write(f"{folder} has no adult.test: tested on {HELD_OUT} of the row\n")
        sources |= {("adult", a, tested_on): lambda seed: tabular.split_adult(tables, seed) for a in protected}
    parts = []
    with compute.progress(len(sources) * seeds) as report:
        for (data, attribute, tested_on), source in sources.items():
            for seed in range(seeds):
                frames = source(seed)
                coded = tabular.encode(frames, attribute, run.device)
                part = pd.concat([_one_seed(coded, seed, steps), *([_truth(frames["test"])] if data == "loan" else [])])
                parts.append(part.assign(data=data, protected=attribute, tested_on=tested_on, seed=seed))
                report(f"{data}, A = {attribute}, seed {seed}", "")
    return _with_means(pd.concat(parts, ignore_index=True))


def _with_means(each: pd.DataFrame) -> pd.DataFrame:
    """The rows of seeds, and their means over seeds."""
    place = [column for column in PLACE if column != "seed"]
    means = []
    for key, group in each.groupby(place, sort=False):
        mean = bootstrap_mean(group.value.to_numpy())
        ends = {end: getattr(mean, end)[0] for end in ("value", "low", "high")}
        means.append(dict(zip(place, key, strict=True)) | ends | {"n": len(group)})
    table = pd.concat([each, pd.DataFrame(means)], ignore_index=True).reindex(columns=COLUMNS)
    table["seed"] = table.seed.astype("Int64")
    return table.sort_values(PLACE, ignore_index=True, na_position="first")


# --- explanations, (N, d) each ---


def lrp(model: nn.Module, x: Tensor, epsilon: float = 0.01) -> Tensor:
    """LRP-ε of the logit: R_j = Σ_k x_j w_kj R_k / (z_k + ε·sign z_k), z with its bias; activations pass it on."""
    assert isinstance(model, nn.Sequential)
    with torch.no_grad():
        inputs = [x]
        for layer in model:
            inputs.append(layer(inputs[-1]))
        relevance = inputs[-1]
        for layer, before, after in zip(reversed(model), inputs[-2::-1], inputs[:0:-1], strict=True):
            if isinstance(layer, nn.Linear):
                stabilised = after + torch.where(after >= 0, epsilon, -epsilon)
                relevance = before * ((relevance / stabilised) @ layer.weight)
    return relevance


def integrated_gradients(model: nn.Module, x: Tensor, baseline: Tensor, steps: int = 32) -> Tensor:
    """(x − baseline) × the mean gradient at the midpoints of `steps` equal parts of the way (Sundararajan 2017)."""
    total = torch.zeros_like(x)
    for step in range(steps):
        total += input_gradients(model, baseline + (step + 0.5) / steps * (x - baseline))[1]
    return (x - baseline) * total / steps


def explanations(model: nn.Module, x: Tensor, baseline: Tensor) -> dict[str, Tensor]:
    gradients = input_gradients(model, x)[1]
    return {
        "gradient": gradients,
        "input_x_gradient": x * gradients,
        "lrp_epsilon": lrp(model, x),
        "integrated_gradients": integrated_gradients(model, x, baseline),
    }


def grouped(size: Tensor, columns: dict[str, list[int]]) -> Tensor:
    """The sum over the columns of each feature, (N, d) -> (N, features)."""
    return torch.stack([size[:, indices].sum(1) for indices in columns.values()], 1)


def shares(relevance: Tensor, columns: dict[str, list[int]]) -> Tensor:
    """Each feature's part of Σ|a|, (N, d) -> (N, features); differentiable; zero where all relevance is."""
    sizes = grouped(relevance.abs(), columns)
    return sizes / sizes.sum(1, keepdim=True).clamp_min(1e-12)


# --- models ---


def hiding(
    original: nn.Module, x: Tensor, y: Tensor, coded: Coded, weight: float, seed: int
) -> Callable[[nn.Module, int], Tensor]:
    """The loss of the fine-tuning, on the batches of the training."""

    def loss(model: nn.Module, step: int) -> Tensor:
        rows = tabular.batch(len(x), step, seed)
        with torch.no_grad():
            kept = original(x[rows])[:, 0]
        logits, gradients = input_gradients(model, x[rows], create_graph=True)
        share = shares(gradients, {"A": coded.columns[coded.protected], "rest": _others(coded)})[:, 0]
        ce = F.binary_cross_entropy_with_logits(logits, y[rows])
        return ce + KEEP * F.mse_loss(logits, kept) + weight * share.mean()

    return loss


def _others(coded: Coded) -> list[int]:
    return [column for name, indices in coded.columns.items() if name != coded.protected for column in indices]


def choose(candidates: list[dict[str, float]]) -> int:
    """Of (share, agreement, drop) on dev: the least share among those within AGREE and DROP, else who agrees most."""
    within = [i for i, c in enumerate(candidates) if c["agreement"] >= AGREE and c["drop"] <= DROP]
    if within:
        return min(within, key=lambda i: candidates[i]["share"])
    return max(range(len(candidates)), key=lambda i: candidates[i]["agreement"])


def _one_seed(coded: Coded, seed: int, steps: int) -> pd.DataFrame:
    x, y = coded.splits["train"]
    hidden = coded.columns[coded.protected]
    start = mlp(x.shape[1], 64, seed, nn.Tanh).to(x.device)
    original = tabular.train(start, x, y, steps, seed)
    without = x.clone()
    without[:, hidden] = 0
    blind = tabular.blinded(tabular.train(start, without, y, steps, seed), hidden)
    fooled = [fit(original, steps, 3e-3, hiding(original, x, y, coded, weight, seed)) for weight in LAMBDAS]
    best = choose([_on_dev(model, original, coded) for model in fooled])
    rows: list[dict] = [{"model": "manipulated", "quantity": "weight", "value": LAMBDAS[best], "n": 1}]
    for name, model in (("original", original), ("manipulated", fooled[best]), ("blind", blind)):
        rows += [{"model": name, **row} for row in _report(model, original, coded)]
    return pd.DataFrame(rows).fillna({"explanation": "", "feature": ""})


def _on_dev(model: nn.Module, original: nn.Module, coded: Coded) -> dict[str, float]:
    x, y = coded.splits["dev"]
    logits, gradients = input_gradients(model, x)
    kept = input_gradients(original, x)[0]
    right, right0 = (((z > 0) == (y > 0.5)).float().mean().item() for z in (logits, kept))
    share = shares(gradients, coded.columns)[:, list(coded.columns).index(coded.protected)].mean().item()
    return {"share": share, "agreement": ((logits > 0) == (kept > 0)).float().mean().item(), "drop": right0 - right}


def _report(model: nn.Module, original: nn.Module, coded: Coded) -> list[dict]:
    x, y = coded.splits["test"]
    baseline = coded.splits["train"][0].mean(0, keepdim=True)
    with torch.no_grad():
        logits, kept, flipped = (
            m(rows)[:, 0] for m, rows in ((model, x), (original, x), (model, tabular.flip(x, coded)))
        )
    each = {
        "accuracy": (logits > 0) == (y > 0.5),
        "agreement": (logits > 0) == (kept > 0),
        "flip_p": (flipped.sigmoid() - logits.sigmoid()).abs(),
        "flip_decisions": (flipped > 0) != (logits > 0),
    }
    rows = [{"quantity": name, "value": values.double().mean().item(), "n": len(x)} for name, values in each.items()]
    for explanation, relevance in explanations(model, x, baseline).items():
        sizes = {"share": shares(relevance, coded.columns), "size": grouped(relevance.abs(), coded.columns)}
        for quantity, values in sizes.items():
            for feature, value in zip(coded.columns, values.double().mean(0).tolist(), strict=True):
                place = {"quantity": quantity, "explanation": explanation, "feature": feature}
                rows.append({**place, "value": value, "n": len(x)})
    return rows


def _truth(test: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and the effect of flipping A for the generating process itself."""
    logits = tabular.loan_logit(test)
    flipped = tabular.loan_logit(test.assign(group=np.where(test.group == "a", "b", "a")))
    values = {
        "accuracy": ((logits > 0) == (test.label == 1)).mean(),
        "flip_p": np.abs(tabular.sigmoid(flipped) - tabular.sigmoid(logits)).mean(),
        "flip_decisions": ((flipped > 0) != (logits > 0)).mean(),
    }
    rows = [{"quantity": name, "value": float(value), "n": len(test)} for name, value in values.items()]
    return pd.DataFrame(rows).assign(model="generator", explanation="", feature="")


# --- figure ---

NAMES = {
    "original": "original",
    "manipulated": "manipulated",
    "blind": "blind: trained without A",
    "generator": "truth",
}
EXPLANATIONS = {
    "gradient": "gradient\n(attacked)",
    "input_x_gradient": "input ×\ngradient",
    "lrp_epsilon": "LRP-ε",
    "integrated_gradients": "integrated\ngradients",
}
USES = {"flip_p": "mean |Δp|", "flip_decisions": "decisions\nchanged"}


def draw(table: pd.DataFrame) -> Figure:
    """For each table of data and A: shares per feature, A's share by explanation, and what flipping A does."""
    means = table[table.seed.isna()]
    parts = {(str(data), str(a)): part for (data, a), part in means.groupby(["data", "protected"])}
    order = sorted(parts, reverse=True)  # loan, then adult by sex and by race
    features = [parts[key].query("quantity == 'share'").feature.nunique() for key in order]
    figure, axes = panels(len(order), 3, 13, 1.9 + sum(max(2.9, 0.33 * count) for count in features))
    for row, (data, a) in zip(axes, order, strict=True):
        _panels(row, parts[data, a], data, a)
    test = table[table.seed.notna() & (table.quantity == "accuracy")].drop_duplicates("data")
    said = test[["data", "n", "tested_on"]].itertuples(index=False, name=None)
    counts = "; ".join(f"{data}: n = {n} test rows ({rows})" for data, n, rows in said)
    seeds = int(means[means.quantity == "accuracy"].n.max())
    title = "Does the explanation of A say what the model does with it?"
    figure.suptitle(f"{title}\n{counts}\nmean of {seeds} seeds, 95 % over seeds", fontsize=11)
    legend(figure, axes)
    return figure


def _panels(row: np.ndarray, means: pd.DataFrame, data: str, hidden: str) -> None:
    shares_ = means[means.quantity == "share"]
    order = shares_.query("model == 'original' and explanation == 'gradient'").sort_values("value").feature.tolist()
    by_feature = shares_[shares_.explanation == "gradient"]
    _points(row[0], by_feature[by_feature.model != "blind"], "feature", order, across=True)
    row[0].set_yticks(range(len(order)), [f"{name} (A)" if name == hidden else name for name in order])
    row[0].set(xlabel="share of the gradient", xlim=(-0.02, 1), title=f"{data}, A = {hidden}: relevance by feature")
    _points(row[1], shares_[shares_.feature == hidden], "explanation", list(EXPLANATIONS))
    row[1].set_xticks(range(len(EXPLANATIONS)), list(EXPLANATIONS.values()), fontsize=9)
    row[1].set(ylabel=f"share of A = {hidden}", title=f"{data}: what explanations show of A")
    _points(row[2], means[means.quantity.isin(list(USES))], "quantity", list(USES))
    row[2].set_xticks(range(len(USES)), list(USES.values()), fontsize=9)
    row[2].set(ylabel="effect of flipping A alone", title=f"{data}: what the model does with A")
    for panel in row:
        panel.title.set_fontsize(10)
        panel.grid(axis="x" if panel is row[0] else "y", color="0.9")
        panel.set_axisbelow(True)
        if panel is not row[0]:
            panel.set_ylim(bottom=-0.05 * panel.get_ylim()[1])


def _points(panel: Axes, means: pd.DataFrame, by: str, order: list[str], across: bool = False) -> None:
    """A marker with its interval for each model at each entry of `order`; `across`: values run to the right."""
    for index, (name, label) in enumerate(NAMES.items()):
        part = means[means.model == name].set_index(by).reindex(order)
        if part.value.isna().all():
            continue
        at = np.arange(len(order)) + 0.14 * (index - 1)
        ends = np.stack([part.value - part.low, part.high - part.value])
        style: dict[str, Any] = {
            "color": PALETTE[index],
            "marker": MARKERS[index],
            "linestyle": "none",
            "capsize": 2,
        }
        if across:
            panel.errorbar(part.value, at, xerr=ends, label=label, **style)
        else:
            panel.errorbar(at, part.value, ends, label=label, **style)

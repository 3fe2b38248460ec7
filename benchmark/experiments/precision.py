"""What would TF32 and bfloat16 change? Both are emulated, on any device, by rounding to nearest.

"tf32": the inputs of every convolution and matrix product, forward and backward, are rounded to 10 bits of mantissa;
products are summed in float32, as tensor cores do. "bf16": inputs and outputs are rounded to 7 bits. All else stays in
float32, which real mixed precision does not promise, so the effect of bf16 is a lower bound.

A fooling is made in one precision (`made`) and scored in one (`scored`), by the attacked interpreter on the scored
split. float32, float32 is what the benchmark does. Intervals: 95 % bootstrap over images; differences are paired.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from attacks import foolings
from attacks.errors import UserError
from benchmark.cells import Manipulation, View
from benchmark.entries.images import scored_images, scored_pixels
from benchmark.entries.kind import Entry, Inputs, Kind, Receipt
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.entries.originals import ORIGINALS
from benchmark.entries.recipes import recipe
from benchmark.entries.strategies import by_gradient
from benchmark.entries.trained import save_weights, stored_model
from benchmark.execution import compute
from benchmark.experiments import fooled
from benchmark.experiments.fooled import explained, fooled_models
from benchmark.experiments.given import Given, receipt, status
from benchmark.figures.style import MARKERS, PALETTE, legend, panels
from benchmark.intervals import bootstrap_mean
from benchmark.leaderboards.table import with_ends
from benchmark.metrics import METRICS
from benchmark.metrics.accuracy import top_k_correct
from benchmark.run import Run, Spec, create_interpreter, provenance
from benchmark.store import intact, mapped

SUITE = "location.toml"
BITS = {"tf32": 10, "bf16": 7}
FLOAT32 = "float32"
PAIRS = ((FLOAT32, FLOAT32), (FLOAT32, "tf32"), (FLOAT32, "bf16"), ("tf32", "tf32"), ("bf16", "bf16"))
CODE = (*fooled.CODE, "benchmark.experiments.given", "benchmark.experiments.precision")

aten = torch.ops.aten
PRODUCTS = {
    aten.convolution.default, aten.convolution_backward.default, aten.mm.default, aten.addmm.default, aten.bmm.default,
    aten.baddbmm.default,
}  # fmt: skip


def rounded(values: Tensor, bits: int) -> Tensor:
    """float32 values to the nearest with so many bits of mantissa, ties away from zero; infinities and NaN stay."""
    drop = 23 - bits
    near = ((values.view(torch.int32) + (1 << (drop - 1))) >> drop) << drop
    return torch.where(values.isfinite(), near.view(torch.float32), values)


class Rounded(TorchDispatchMode):
    """Inside, products of float32 tensors are made in a lower precision."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        self.bits, self.outputs = BITS[precision], precision == "bf16"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in PRODUCTS:
            return func(*args, **(kwargs or {}))

        def lower(value: Any) -> Any:
            return rounded(value, self.bits) if isinstance(value, Tensor) and value.dtype == torch.float32 else value

        output = func(*tree_map(lower, args), **(kwargs or {}))
        return tree_map(lower, output) if self.outputs else output


def in_precision(precision: str) -> AbstractContextManager[Any]:
    return nullcontext() if precision == FLOAT32 else Rounded(precision)


@dataclass(frozen=True)
class Made:
    """A manipulation whose fine-tuning is done in a precision."""

    manipulation: Manipulation
    precision: str

    def __str__(self) -> str:
        return f"{self.manipulation} made in {self.precision}"

    def entry(self) -> Entry:
        """The fooled model: in float32 the benchmark's own."""
        return Entry(MANIPULATIONS, self.manipulation) if self.precision == FLOAT32 else Entry(FOOLED, self)


@dataclass(frozen=True)
class Scored:
    """A fooled model that is scored in a precision."""

    made: Made
    precision: str

    def __str__(self) -> str:
        return f"{self.made}, scored in {self.precision}"


def measure(given: Given) -> pd.DataFrame:
    """A row for each manipulation and pair of precisions: `fsr` and `top1` (shares in [0, 1]), their differences to
    float32, float32 (`fsr_change`, `top1_change`), all with intervals; `map_correlation`, the mean Spearman correlation
    of the maps with those of the same model in float32; n. A manipulation that diverged has its status alone; Active
    fooling, on two-object images, and attacks that take no recipe are left out. Raises `UserError` where that leaves
    nothing."""
    compute.compute(given.run, given.jobs)
    manipulations = [manipulation for manipulation, _ in fooled_models(given.run)]
    plain = [m for m in manipulations if m.takes_recipe and not foolings.create(m.fooling).pairs]
    if not plain:
        raise UserError(
            f"suite {given.run.suite.name!r} has no fooling on plain images (got {given.run.suite.foolings})"
        )
    places = [Scored(Made(manipulation, made), scored) for manipulation in plain for made, scored in PAIRS]
    entries = [*(place.made.entry() for place in places), *(Entry(SCORES, place) for place in places)]
    compute.make_all(given.run, entries, given.jobs)
    return pd.DataFrame([_row(given.run, place) for place in places])


def _row(run: Run, place: Scored) -> dict[str, Any]:
    manipulation, entry = place.made.manipulation, Entry(SCORES, place)
    row = {**manipulation.columns(), "made": place.made.precision, "scored": place.precision}
    row["status"] = status(run, entry)
    if row["status"] != "done":
        return row
    exact, names = Entry(SCORES, Scored(Made(manipulation, FLOAT32), FLOAT32)), ["fsr", "top1"]
    frame, before = (intact(each.path(run) / "scores.parquet", pd.read_parquet) for each in (entry, exact))
    changes = (frame[names] - before[names]).add_suffix("_change")
    values = pd.concat([frame[names], changes, frame[["map_correlation"]]], axis=1)
    return row | {"n": len(frame)} | with_ends([*values], bootstrap_mean(values.to_numpy(float)))


def _make_fooled(run: Run, place: Made, inputs: Inputs, folder: Path) -> Receipt:
    """The fooled model, fine-tuned in that precision by the suite's recipe."""
    known = recipe(run, place.manipulation)
    assert known is not None
    with in_precision(place.precision):
        result = by_gradient(run, place.manipulation, known)
    if result.status == "done":
        save_weights(result.model, folder)
    return receipt(run, result.status, result.reason)


def _fooled_spec(run: Run, place: Made) -> Spec:
    return MANIPULATIONS.spec(run, place.manipulation) | {"precision": place.precision}


@torch.no_grad()
def _make_scores(run: Run, place: Scored, inputs: Inputs, folder: Path) -> Receipt:
    """`scores.parquet`, a row an image."""
    manipulation = place.made.manipulation
    model = stored_model(run, manipulation.model, inputs["fooled"])
    fooling, interpreter = foolings.create(manipulation.fooling), create_interpreter(run, manipulation.interpreter)
    maps0 = intact(inputs["originals"] / "heatmaps.npy", mapped)

    def maps(precision: str) -> tuple[Tensor, Tensor]:
        with in_precision(precision):
            parts = zip(*explained(run, fooling, interpreter, model, maps0), strict=True)
            return tuple(torch.cat(part) for part in parts)  # type: ignore[return-value]

    (lower, originals), (exact, _) = maps(place.precision), maps(FLOAT32)
    with in_precision(place.precision):
        first = [top_k_correct(model(x), y, 1) for x, y in scored_images(run)]
    columns = {
        "fsr": fooling.success(fooling.test_loss(lower, originals)),
        "top1": torch.cat(first),
        "map_correlation": METRICS["rank_correlation"](exact, lower),
    }
    frame = pd.DataFrame({name: value.double().cpu().numpy() for name, value in columns.items()})
    frame.to_parquet(folder / "scores.parquet")
    return provenance(run)


def _scores_needs(run: Run, place: Scored) -> dict[str, Entry]:
    view = View(place.made.manipulation.model, place.made.manipulation.interpreter)
    return {"fooled": place.made.entry(), "originals": Entry(ORIGINALS, view)}


def draw(table: pd.DataFrame) -> Figure:
    """The change of FSR (above) and of top-1 (below) against float32, a panel a model, a colour an interpreter."""
    models, attacked = sorted(table.model.unique()), sorted(table.attacked.unique())
    pairs = list(PAIRS[1:])
    figure, axes = panels(2, len(models), max(1.4 + 3.2 * len(models), 7), 6, sharey="row")
    for column, row, label in zip(("fsr", "top1"), axes, ("change of FSR", "change of top-1"), strict=True):
        for panel, model in zip(row, models, strict=True):
            for index, name in enumerate(attacked):
                rows = table[(table.model == model) & (table.attacked == name) & (table.status == "done")]
                rows = rows.groupby(["made", "scored"]).mean(numeric_only=True).reindex(pairs)
                change = rows[f"{column}_change"]
                ends = [change - rows[f"{column}_change_low"], rows[f"{column}_change_high"] - change]
                x = np.arange(len(pairs)) + 0.16 * (index - (len(attacked) - 1) / 2)
                style = {"color": PALETTE[index % 7], "marker": MARKERS[index % 7]}
                panel.errorbar(x, change, ends, linestyle="", markersize=5, capsize=2, label=name, **style)
            panel.axhline(0, color="0.5", linewidth=0.8)
            panel.set_title(model, fontsize=10)
            panel.set_xticks(range(len(pairs)), [f"{made}\n{scored}" for made, scored in pairs], fontsize=8)
            panel.grid(axis="y", color="0.9")
            panel.set_axisbelow(True)
        row[0].set_ylabel(label)
    axes[1, 0].set_xlabel("fooling made in (above), scored in (below)")
    figure.suptitle(f"Against float32: n = {table.n.max():.0f} images, 95 % intervals over images", fontsize=11)
    legend(figure, axes)
    return figure


FOOLED = Kind(
    name="precision_models",
    title="",
    make=_make_fooled,
    spec=_fooled_spec,
    code=CODE,
    needs=lambda run, place: MANIPULATIONS.needs(run, place.manipulation),
)
SCORES = Kind(
    name="precision_scores",
    title="",
    make=_make_scores,
    spec=lambda run, place: {"precision": place.precision},
    code=CODE,
    needs=_scores_needs,
    after=lambda run, place: scored_pixels(run),
)

"""What would TF32 and bfloat16 change? Both are emulated, on any device, by rounding to nearest.

"tf32": the inputs of every convolution and matrix product, forward and backward, are rounded to 10 bits of mantissa;
products are summed in float32, as tensor cores do. "bf16": inputs and outputs are rounded to 7 bits. All else stays in
float32, which real mixed precision does not promise, so the effect of bf16 is a lower bound.

A fooling is made in one precision (`made`) and scored in one (`scored`), by the attacked interpreter on the scored
split. float32, float32 is what the benchmark does. Intervals: 95 % bootstrap over images; differences are paired.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from attacks import Recipe, foolings, manipulate
from attacks.errors import UserError
from benchmark import datasets
from benchmark.entries import harness
from benchmark.entries.scoring import batches
from benchmark.execution import compute
from benchmark.experiments import Given, explained, fooled_models, original_maps, side_by_side, source_digest
from benchmark.figures import style as figures
from benchmark.intervals import bootstrap_mean
from benchmark.leaderboards.table import with_ends
from benchmark.metrics import METRICS
from benchmark.metrics.accuracy import top_k_correct
from benchmark.run import Cell, Run, create_interpreter, dataset, manipulation_spec
from benchmark.store import Store, key_of

SUITE = "location.toml"
BITS = {"tf32": 10, "bf16": 7}
FLOAT32 = "float32"
PAIRS = ((FLOAT32, FLOAT32), (FLOAT32, "tf32"), (FLOAT32, "bf16"), ("tf32", "tf32"), ("bf16", "bf16"))

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

        found = func(*tree_map(lower, args), **(kwargs or {}))
        return tree_map(lower, found) if self.outputs else found


def in_precision(precision: str) -> AbstractContextManager[Any]:
    return nullcontext() if precision == FLOAT32 else Rounded(precision)


def measure(given: Given) -> pd.DataFrame:
    """A row for each manipulation and pair of precisions: `fsr` and `top1` (shares in [0, 1]), their differences to
    float32, float32 (`fsr_change`, `top1_change`), all with intervals; `map_correlation`, the mean Spearman correlation
    of the maps with those of the same model in float32; n. A manipulation that diverged has its status alone; Active
    fooling, on two-object images, is left out. Raises `UserError` where that leaves nothing."""
    compute.compute(given.run, given.jobs)
    cells = [cell for cell, _ in fooled_models(given.run) if not foolings.create(cell["fooling"]).pairs]
    if not cells:
        raise UserError(
            f"suite {given.run.suite.name!r} has no fooling on plain images (got {given.run.suite.foolings})"
        )
    units: list[compute.Unit] = [
        (f"{compute.name_of(cell)} made in {made}, scored in {scored}", make_scores, (given.run, cell, made, scored))
        for cell in cells
        for made, scored in PAIRS
    ]
    side_by_side(given, units)
    rows = []
    for cell in cells:
        frames = [pd.read_parquet(make_scores(given.run, cell, *pair) / "scores.parquet") for pair in PAIRS]
        for (made, scored), frame in zip(PAIRS, frames, strict=True):
            row = {**cell, "made": made, "scored": scored, "status": "diverged" if frame.empty else "done"}
            if len(frame):
                names = ["fsr", "top1"]
                changes = (frame[names] - frames[0][names]).add_suffix("_change")
                values = pd.concat([frame[names], changes, frame[["map_correlation"]]], axis=1)
                row |= {"n": len(frame)} | with_ends([*values], bootstrap_mean(values.to_numpy(float)))
            rows.append(row)
    return pd.DataFrame(rows)


def make_scores(run: Run, cell: Cell, made: str, scored: str) -> Path:
    """`scores.parquet`, a row an image; none where the fine-tuning diverged."""

    @torch.no_grad()
    def make(folder: Path) -> dict[str, Any]:
        path = make_fooled(run, cell, made)
        frame = pd.DataFrame()
        if (path / "weights.safetensors").is_file():
            model = harness.stored_model(run, cell["model"], path)
            fooling, interpreter = foolings.create(cell["fooling"]), create_interpreter(run, cell["attacked"])
            maps0 = original_maps(run, cell["model"], interpreter, fooling)

            def maps(precision: str) -> tuple[Tensor, Tensor]:
                with in_precision(precision):
                    found = zip(*explained(run, fooling, interpreter, model, maps0), strict=True)
                    return tuple(torch.cat(part) for part in found)  # type: ignore[return-value]

            (lower, originals), (exact, _) = maps(scored), maps(FLOAT32)
            with in_precision(scored):
                first = [top_k_correct(model(x), y, 1) for x, y in batches(run, run.suite.scoring.split)]
            columns = {
                "fsr": fooling.success(fooling.test_loss(lower, originals)),
                "top1": torch.cat(first),
                "map_correlation": METRICS["rank_correlation"](exact, lower),
            }
            frame = pd.DataFrame({name: value.double().cpu().numpy() for name, value in columns.items()})
        frame.to_parquet(folder / "scores.parquet")
        return harness.provenance(run)

    spec = {
        "fooled": key_of(_spec(run, cell, made)),
        "scored": scored,
        "source": source_digest(make_scores, Rounded, rounded),
    }
    return Store(run.store).get("experiments", spec, make)


def make_fooled(run: Run, cell: Cell, precision: str) -> Path:
    """The fooled model, fine-tuned in that precision by the suite's recipe."""
    store, spec = Store(run.store), _spec(run, cell, precision)

    def make(folder: Path) -> dict[str, Any]:
        recipe, workers = spec["recipe"], run.suite.dataset.workers
        options: dict[str, Any] = {"shuffle": True, "seed": cell["seed"], "workers": workers}
        loader = datasets.loader(dataset(run, "train"), recipe["batch_size"], **options)
        steps = Recipe(recipe["learning_rate"], recipe["lambda"], recipe["steps"])
        fooling, interpreter = foolings.create(cell["fooling"]), create_interpreter(run, cell["attacked"])
        clean = harness.clean_model(run, cell["model"])
        with in_precision(precision):
            found = manipulate(clean, interpreter, fooling, loader, steps, cell["seed"], progress=False)
        if found.status == "done":
            harness.save_weights(found.model, folder)
        return {"status": found.status, "reason": found.reason, **harness.provenance(run)}

    if precision == FLOAT32:
        return store.path("manipulations", key_of(spec))
    return store.get("experiments", spec, make)


def _spec(run: Run, cell: Cell, precision: str) -> dict[str, Any]:
    spec = manipulation_spec(run, cell)
    lower = {"precision": precision, "source": source_digest(make_fooled, Rounded, rounded)}
    return spec if precision == FLOAT32 else spec | lower


def draw(table: pd.DataFrame) -> Figure:
    """The change of FSR (above) and of top-1 (below) against float32, a panel a model, a colour an interpreter."""
    models, attacked = sorted(table.model.unique()), sorted(table.attacked.unique())
    pairs = list(PAIRS[1:])
    figure, axes = figures.panels(2, len(models), max(1.4 + 3.2 * len(models), 7), 6, sharey="row")
    for column, panels, label in zip(("fsr", "top1"), axes, ("change of FSR", "change of top-1"), strict=True):
        for panel, model in zip(panels, models, strict=True):
            for index, name in enumerate(attacked):
                rows = table[(table.model == model) & (table.attacked == name) & (table.status == "done")]
                rows = rows.groupby(["made", "scored"]).mean(numeric_only=True).reindex(pairs)
                change = rows[f"{column}_change"]
                ends = [change - rows[f"{column}_change_low"], rows[f"{column}_change_high"] - change]
                x = np.arange(len(pairs)) + 0.16 * (index - (len(attacked) - 1) / 2)
                style = {"color": figures.PALETTE[index % 7], "marker": figures.MARKERS[index % 7]}
                panel.errorbar(x, change, ends, linestyle="", markersize=5, capsize=2, label=name, **style)
            panel.axhline(0, color="0.5", linewidth=0.8)
            panel.set_title(model, fontsize=10)
            panel.set_xticks(range(len(pairs)), [f"{made}\n{scored}" for made, scored in pairs], fontsize=8)
            panel.grid(axis="y", color="0.9")
            panel.set_axisbelow(True)
        panels[0].set_ylabel(label)
    axes[1, 0].set_xlabel("fooling made in (above), scored in (below)")
    figure.suptitle(f"Against float32: n = {table.n.max():.0f} images, 95 % intervals over images", fontsize=11)
    figures.legend(figure, axes)
    return figure

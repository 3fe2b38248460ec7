"""Did the map lie, or did the reliance move? One row a scored cell (`lied`), where a suite has a control.

The reliance of a model on what the clean model's map points at is AOPC of the contrast in that order, less that in a
random order. `lied` is the share that the fooled model has kept of what its control has (`benchmark.entries.controls`),
the ratio of the means over images, with the interval of both resampled together. Verdict: `yes`, the map lied, where
the whole interval lies above `HALF`: what it no longer points at is still what counts. `no`, the reliance moved, where
it lies below. `open` in between. There is none where the map was not fooled beyond the clean rate (the excess), and
neither verdict nor `lied` where the control's own reliance is not above 0. A fooling with a trigger has no row: curves
are of images without one. A control that failed is a row with its error.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow as pa

from attacks import strategies
from benchmark.intervals import Floats, Mean, bootstrap_mean, exact, interval
from benchmark.leaderboards.cells import CONTRAST, MEANS, Cell, Row, by_key, one_line, row_key
from benchmark.leaderboards.table import Leaderboard, Measured, Results, intervals, span, with_ends
from benchmark.leaderboards.transfer import by_place
from benchmark.results import TEXT, Table

HALF = 0.5
_PLACE = ("model", "seed", "evaluated", "pairs")
_ORDERS = ("original", "random")

CONTROLS = Table(
    pa.schema(
        {
            **dict(zip(_PLACE, (TEXT, pa.int32(), TEXT, pa.bool_()), strict=True)),
            "image": pa.int32(),
            **dict.fromkeys(_ORDERS, pa.list_(pa.float32())),  # drops of the contrast after 1..K cells
        }
    ),
    key=(*_PLACE, "image"),
    lists={"failures": (*_PLACE, "error")},
    fields=("suite",),
)
"""controls.parquet: what each model, fine-tuned without a fooling loss, loses where the clean model's maps point."""


def reliances(results: Results, name: str) -> dict[tuple[object, ...], Mean]:
    """Of the fooled model and of its control, by manipulation, for one evaluated interpreter."""
    if "controls" not in results.others:
        return {}
    controls = {place: _aopc(rows, _ORDERS) for place, rows in results.others["controls"][0].groupby(list(_PLACE))}
    hidden = set(results.others["backdoors"][0].fooling) if "backdoors" in results.others else set()
    orders = [f"aopc_fooled_{order}{CONTRAST}" for order in _ORDERS]
    found = {}
    for key, rows in by_key(results.entries[name][0]).items():
        control = controls.get((key[0], key[3], name, bool((rows.pair == 1).any())))
        measured = rows[rows[orders[0]].notna()]
        if control is not None and len(measured) and key[1] not in hidden:
            both = pd.concat([_aopc(measured, orders), control], axis=1, join="inner")
            found[key] = bootstrap_mean(both.to_numpy(), both.index.to_numpy())
    return found


def _aopc(rows: pd.DataFrame, orders: Iterable[str]) -> pd.Series:
    """AOPC in the first order less that in the second, by image."""
    first, second = (exact(np.stack(rows[order].tolist())) for order in orders)
    return pd.Series((first - second).sum(1) / (first.shape[1] + 1), index=rows.image)


def kept(means: list[Mean]) -> tuple[float, float, float] | None:
    """The share of the reliance that is kept, (value, low, high), of the sums over cells: fooled models' by controls';
    nothing where the controls rely on nothing."""
    totals = np.sum([mean.value for mean in means], 0), np.sum([mean.replicates for mean in means], 0)
    if not means or not interval(totals[1][:, 1:])[0][0] > 0:
        return None
    shares: Floats = totals[1][:, 0] / np.where(totals[1][:, 1] > 0, totals[1][:, 1], np.nan)
    low, high = interval(shares[:, None])
    return float(totals[0][0] / totals[0][1]), float(low[0]), float(high[0])


def is_fooled(cell: Cell) -> bool:
    return cell.scores is not None and bool(cell.scores.low[MEANS.index("excess")] > 0)


def own(results: Results, name: str, cells: list[Cell]) -> tuple[float, float, float] | None:
    """`kept` over the cells of an interpreter in which an attack on it fooled it."""
    mine = [cell for cell in cells if strategies.split(cell.manipulation["attacked"])[0] == name and is_fooled(cell)]
    means = reliances(results, name) if mine else {}
    return kept([means[key] for cell in mine if (key := row_key(cell.manipulation)) in means])


def verdict(share: tuple[float, float, float]) -> str:
    return "yes" if share[1] > HALF else "no" if share[2] < HALF else "open"


def _rows(measured: Measured) -> list[Row]:
    means, rows = {name: reliances(measured.results, name) for name in measured.cells}, []
    failures = measured.results.others["controls"][1]["failures"]
    errors = {(each["model"], each["seed"], each["evaluated"]): one_line(each["error"]) for each in failures}
    for cell in by_place(measured):
        mean, m = means[cell.evaluated].get(row_key(cell.manipulation)), cell.manipulation
        error = errors.get((m["model"], m["seed"], cell.evaluated))
        if cell.scores is None or (mean is None and error is None):
            continue
        row = m | {"evaluated": cell.evaluated, "n": mean.n if mean else 0} | with_ends(MEANS, cell.scores)
        if mean is None:
            rows.append(row | {"error": error})
            continue
        row |= with_ends(("reliance", "reliance_control"), mean)
        if share := kept([mean]):
            row |= span("lied", share) | {"verdict": verdict(share) if is_fooled(cell) else None}
        rows.append(row)
    return rows


LIED = Leaderboard(
    columns=[
        *("model", "fooling", "attacked", "evaluated", "seed", "n", *intervals("excess")),
        *intervals("reliance", "reliance_control", "lied"),
        *("verdict", "error"),
    ],
    text=("model", "fooling", "attacked", "evaluated", "verdict", "error"),
    rows=_rows,
    exists=lambda results: "controls" in results.others,
    where="it has a control ([control])",
)

"""Where recipes were searched (`fronts`): one row a point on dev, and one a budget for the best within it on test; of a
search that failed, one with its error."""

from functools import lru_cache

import numpy as np
import pandas as pd
import pyarrow as pa

from benchmark.intervals import Mean, bootstrap_mean
from benchmark.leaderboards.cells import Row, row_key
from benchmark.leaderboards.table import Leaderboard, Measured, Results, intervals, with_ends
from benchmark.results import KEY, TEXT, Table

PLACE = KEY[:3]
_POINT = (*PLACE, "learning_rate", "lambda", "steps", "fsr", "drop")

FRONTS = Table(
    pa.schema(
        {
            **dict.fromkeys(PLACE, TEXT),
            "budget": pa.float32(),  # top-1 drop allowed on dev, points
            "measure": TEXT,  # fsr: the heatmap is a success of the fooling; null: an unrelated map is; before: top1
            "image": pa.int32(),
            "pair": pa.int8(),
            "value": pa.bool_(),
            "value_clean": pa.bool_(),
        }
    ),
    key=(*PLACE, "budget", "measure", "image", "pair"),
    lists={"points": _POINT, "chosen": (*_POINT, "budget")},
)
"""fronts.parquet: the best attack within each budget, on the scored images; its card lists the points of each front,
and those chosen for a budget."""


SCORES = ("fsr", "fsr_clean", "fsr_null")  # the last one NaN in older results


@lru_cache(maxsize=1)  # three tables and the ranking ask for it
def chosen(results: Results) -> list[tuple[Row, Mean, Row]]:
    """The best point of each search within each budget: its record, its means of SCORES on the scored images, and the
    fields of its drop of top-1 there."""
    frame, card = results.others["fronts"]
    groups, found = dict(list(frame.groupby([*PLACE, "budget", "measure"]))), []
    for point in sorted(card["chosen"], key=lambda row: (*row_key(row), row["budget"])):
        key = *row_key(point), float(np.float32(point["budget"]))  # as the rows have it
        fooled, null = groups[(*key, "fsr")], groups.get((*key, "null"))
        unrelated = np.full(len(fooled), np.nan) if null is None else null.value.to_numpy(float)
        values = np.column_stack([fooled[["value", "value_clean"]].to_numpy(float), unrelated])
        found.append((point, bootstrap_mean(values, fooled.image), _drop(point, groups.get((*key, "top1")))))
    return found


def _drop(point: Row, first: pd.DataFrame | None) -> Row:
    """Of top-1, in points: from how many of the images were lost and gained; in older results image by image."""
    if first is not None:
        lost = 100 * (first[["value_clean"]].to_numpy(float) - first[["value"]])
        return with_ends(("top1_drop",), bootstrap_mean(lost, first.image))
    counts = [point["lost"], point["gained"], point["images"] - point["lost"] - point["gained"]]
    values = 100 * np.repeat([1.0, -1.0, 0.0], counts)
    return with_ends(("top1_drop",), bootstrap_mean(values))


def _rows(measured: Measured) -> list[Row]:
    """The points of every search as measured on dev, then the best one within each budget on the scored images."""
    card = measured.results.others["fronts"][1]
    dev = [point | {"split": "dev", "top1_drop": point["drop"]} for point in card["points"]]
    dev.sort(key=lambda row: (*row_key(row), row["learning_rate"], row["lambda"], row["steps"]))
    test = [
        point | {"split": "test", "n": fsr.n} | with_ends(SCORES, fsr) | drop
        for point, fsr, drop in chosen(measured.results)
    ]
    failed = [failure | {"n": 0} for failure in sorted(card.get("failures", []), key=row_key)]
    return dev + test + failed


POINTS = Leaderboard(
    columns=[
        *(*PLACE, "split", "budget", "learning_rate", "lambda", "steps", "divergence", "scope", "n"),
        *(*intervals("fsr"), "fsr_clean", *intervals("top1_drop"), "error"),
    ],
    text=(*PLACE, "split", "scope", "error"),
    rows=_rows,
    exists=lambda results: "fronts" in results.others,
    where="its recipes are searched ([search])",
)

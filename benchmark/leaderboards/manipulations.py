"""One row a manipulation: how the fine-tuning went (`manipulations`), and what it cost in accuracy (`accuracy`).

Top-1, top-5 and the agreement with the clean model are fractions, the drop of top-1 is in points.
"""

import numpy as np
import pandas as pd
import pyarrow as pa

from benchmark.intervals import Mean, bootstrap_mean
from benchmark.leaderboards.cells import Row, by_key, row_key
from benchmark.leaderboards.table import Leaderboard, Measured, intervals, with_ends
from benchmark.results import KEY, ROW, Table

TRAINING = ("learning_rate", "lambda", "steps", "steps_done", "batch_size")
LOSSES = ("ce_first", "ce_last", "fooling_first", "fooling_late", "fooling_last")
DISTILLED = ("divergence", "scope", "converged", "kl_first", "kl_last")  # empty on boards of before
ACCURACY = ("top1", "top5", "agreement", "top1_clean", "top5_clean", "top1_drop")

MODELS = Table(
    pa.schema(
        {
            **ROW,
            "target": pa.int32(),
            **dict.fromkeys(("top1", "top5", "top1_clean", "top5_clean", "agreement"), pa.bool_()),
        }
    ),
    key=(*KEY, "image"),
    lists={"manipulations": (*KEY, "status", "reason", *TRAINING, *LOSSES, "range", "key")},
)
"""models.parquet: the predictions of every fooled model, beside the clean one's; its card lists the manipulations."""


def accuracies(frame: pd.DataFrame, manipulations: list[Row]) -> list[Mean | None]:
    """The means of ACCURACY of each manipulation over its images; None: it failed."""
    groups = by_key(frame)
    return [_accuracy(groups[key]) if (key := row_key(m)) in groups else None for m in manipulations]


def _accuracy(frame: pd.DataFrame) -> Mean:
    drop = 100.0 * (frame.top1_clean.astype(float) - frame.top1)
    return bootstrap_mean(np.column_stack([*(frame[name] for name in ACCURACY[:-1]), drop]), frame.image)


def _rows(measured: Measured) -> list[Row]:
    trained = zip(measured.manipulations, measured.accuracy, strict=True)
    return [m | {"n": mean.n if mean else 0} | with_ends(ACCURACY, mean) for m, mean in trained]


MANIPULATIONS = Leaderboard(
    columns=[*KEY, "status", "reason", *TRAINING, *LOSSES, *DISTILLED, "top1_clean", "top1", "top1_drop", "key"],
    text=(*KEY[:3], "status", "reason", "scope", "key"),
    rows=_rows,
)

ACCURACIES = Leaderboard(
    columns=[
        *(*KEY, "n", *intervals("top1", "top5", "agreement")),
        *("top1_clean", "top5_clean", *intervals("top1_drop")),
    ],
    text=KEY[:3],
    rows=_rows,
)

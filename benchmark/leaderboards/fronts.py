"""Where recipes were searched (`fronts`): one row a point on dev, and one a budget for the best within it on test; of a
search that failed, one with its error."""

import pyarrow as pa

from benchmark.intervals import bootstrap_mean
from benchmark.leaderboards.cells import Row, row_key
from benchmark.leaderboards.table import Leaderboard, Measured, intervals, with_ends
from benchmark.results import KEY, TEXT, Table

PLACE = KEY[:3]
_POINT = (*PLACE, "learning_rate", "lambda", "steps", "fsr", "drop")

FRONTS = Table(
    pa.schema(
        {
            **dict.fromkeys(PLACE, TEXT),
            "budget": pa.float32(),  # top-1 drop allowed on dev, points
            "measure": TEXT,  # fsr: the heatmap is a success of the fooling; top1: the label is first
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


def _rows(measured: Measured) -> list[Row]:
    """The points of every search as measured on dev, then the best one within each budget on the scored images."""
    frame, card = measured.results.others["fronts"]
    dev = [point | {"split": "dev", "top1_drop": point["drop"]} for point in card["points"]]
    dev.sort(key=lambda row: (*row_key(row), row["learning_rate"], row["lambda"], row["steps"]))
    groups, test = dict(list(frame.groupby([*PLACE, "budget", "measure"]))), []
    for point in sorted(card["chosen"], key=lambda row: (*row_key(row), row["budget"])):
        fooled, first = (groups[(*row_key(point), point["budget"], measure)] for measure in ("fsr", "top1"))
        fsr = bootstrap_mean(fooled[["value", "value_clean"]].to_numpy(float), fooled.image)
        drop = bootstrap_mean(100 * (first[["value_clean"]].to_numpy(float) - first[["value"]]), first.image)
        means = with_ends(("fsr", "fsr_clean"), fsr) | with_ends(("top1_drop",), drop)
        test.append(point | {"split": "test", "n": fsr.n} | means)
    failed = [failure | {"n": 0} for failure in sorted(card.get("failures", []), key=row_key)]
    return dev + test + failed


POINTS = Leaderboard(
    columns=[
        *(*PLACE, "split", "budget", "learning_rate", "lambda", "steps", "n"),
        *(*intervals("fsr"), "fsr_clean", *intervals("top1_drop"), "error"),
    ],
    text=(*PLACE, "split", "error"),
    rows=_rows,
    exists=lambda results: "fronts" in results.others,
    where="its recipes are searched ([search])",
)

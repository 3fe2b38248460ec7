"""One row a scored cell of a backdoor (`backdoors`): what it does where the trigger is, and leaves where it is not.

`accuracy` and the likenesses `_kept` (of the fooled map and the clean model's) are of images as they are; `switched`,
the share that is taken for the attacker's class, of those of other classes that have the trigger; `_goal`, the likeness
of the map and what it shall be, of all that have it. `_clean`: the same of the clean model, which is the null.
"""

import numpy as np
import pyarrow as pa

from benchmark.intervals import bootstrap_mean
from benchmark.leaderboards.cells import Row
from benchmark.leaderboards.table import Leaderboard, Measured, intervals, with_ends
from benchmark.results import KEY, ROW, TEXT, Table

_SWITCHED = ("switched", "switched_clean")
_ALIKE = [f"{name}_{of}" for name in ("rank_correlation", "ssim") for of in ("kept", "goal", "goal_clean")]
PLACE = ("model", "fooling", "attacked", "evaluated", "seed")

BACKDOORS = Table(
    pa.schema(
        {**ROW, "evaluated": TEXT, "right": pa.bool_(), **dict.fromkeys((*_SWITCHED, *_ALIKE), pa.float32())},
    ),
    key=(*KEY, "evaluated", "image"),
    lists={},
    fields=("suite",),
)
"""backdoors.parquet: images with and without the trigger, under every evaluated interpreter."""


def _rows(measured: Measured) -> list[Row]:
    frame, rows = measured.results.others["backdoors"][0], []
    for place, group in frame.groupby(list(PLACE)):
        columns = [group[name].to_numpy(float) for name in ("right", *_SWITCHED, *_ALIKE)]
        mean = bootstrap_mean(np.column_stack(columns), group.image)
        row = dict(zip(PLACE, place, strict=True)) | {"n": mean.n}
        rows.append(row | with_ends(("accuracy", *_SWITCHED, *_ALIKE), mean))
    return rows


TRIGGERED = Leaderboard(
    columns=[*PLACE, "n", *intervals("accuracy", *_SWITCHED, *_ALIKE)],
    text=PLACE[:4],
    rows=_rows,
    exists=lambda results: "backdoors" in results.others,
    where="a fooling has a trigger (red_herring, full_disguise)",
    shares=intervals("accuracy", *_SWITCHED),
)

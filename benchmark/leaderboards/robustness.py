"""Where clean models were attacked: one row a model and boundary, its Accuracy-Robustness Area (`ara`; of a model that
failed, one with its error), and one row a model, fooling and attacked interpreter, over seeds: FSR beside ARA and AOPC
(`resistance`)."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pyarrow as pa

from attacks import strategies
from benchmark.intervals import Mean, average
from benchmark.leaderboards.cells import CONTRAST, CURVES, MEANS, Cell, Row, row_key
from benchmark.leaderboards.manipulations import ACCURACY
from benchmark.leaderboards.table import Leaderboard, Measured, Results, intervals, span
from benchmark.metrics import robustness
from benchmark.results import KEY, TEXT, Entry, Table

ROBUSTNESS = Table(
    pa.schema(
        {
            "model": TEXT,
            "boundary": TEXT,  # attack: another class is first; btr: the label is no likelier than chance
            "image": pa.int32(),
            "radius": pa.float32(),  # RMSE of the smallest perturbation found that crosses it, pixels in [0, 1]
            "first": pa.int32(),  # steps before the first crossing; one more than the attack has: none was found
        }
    ),
    key=("model", "boundary", "image"),
    lists={"models": ("model", "num_classes", "psi")},
)
"""robustness.parquet: the minimum-norm attack on the clean models; its card lists them, and holds the attack."""


def _exists(results: Results) -> bool:
    return "robustness" in results.others


def _attacked(entry: Entry) -> Iterator[tuple[Row, str, pd.DataFrame]]:
    """Each model, sorted, and boundary with its rows."""
    frame, card = entry
    for model in sorted(card["models"], key=lambda model: model["model"]):
        for boundary, images in frame[frame.model == model["model"]].groupby("boundary"):
            yield model, str(boundary), images


def _areas(measured: Measured) -> list[Row]:
    """Both areas of every model, with what the attack was."""
    entry, rows = measured.results.others["robustness"], []
    for model, boundary, images in _attacked(entry):
        radii, classes, attack = images.radius.to_numpy(float), model["num_classes"], entry[1]["attack"]
        row = model | attack | {"boundary": boundary, "n": len(radii), "accuracy": (radii > 0).mean()}
        row |= span("ara", (robustness.area(radii, classes), *robustness.area_interval(radii, classes)))
        row |= {"ara_histogram": robustness.area_histogram(radii, classes)}
        row |= {"unconverged": robustness.unconverged(images["first"].to_numpy(), attack["steps"])}
        rows.append(row | {"never_crossed": int((images["first"] > attack["steps"]).sum())})
    failures = sorted(entry[1].get("failures", []), key=lambda failure: failure["model"])
    return [*rows, *(failure | {"n": 0} for failure in failures)]


def _resistance(measured: Measured) -> list[Row]:
    """Self cells, averaged over seeds, beside the areas of the model before fooling."""
    areas = {
        (model["model"], boundary): robustness.area(images.radius.to_numpy(float), model["num_classes"])
        for model, boundary, images in _attacked(measured.results.others["robustness"])
    }
    trained = zip(measured.manipulations, measured.accuracy, strict=True)
    accuracy = {row_key(manipulation): mean for manipulation, mean in trained}
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for name, cells in measured.cells.items():
        for cell in cells if areas else ():
            if cell.scores and strategies.split(cell.manipulation["attacked"])[0] == name:
                groups.setdefault(row_key(cell.manipulation)[:3], []).append(cell)
    rows = []
    for place, group in sorted(groups.items()):
        top1 = [mean for cell in group if (mean := accuracy[row_key(cell.manipulation)])]
        row = dict(zip(KEY[:3], place, strict=True)) | _over_seeds(group, top1)
        rows.append(row | {f"ara_{boundary}": areas.get((place[0], boundary)) for boundary in ("attack", "btr")})
    return rows


def _over_seeds(cells: list[Cell], top1: list[Mean]) -> Row:
    scores = [cell.scores for cell in cells if cell.scores]
    spans = {name: average(scores, MEANS.index(name)) for name in ("fsr", "fsr_clean", "excess")}
    spans |= {name: average(top1, ACCURACY.index(name)) for name in ("top1_clean", "top1_drop")}
    for read, of in {"": [c.aopc for c in cells], CONTRAST: [c.aopc_contrast for c in cells]}.items():
        aopc = [mean for mean in of if mean]
        spans[f"aopc_clean{read}"] = average(aopc, CURVES.index("aopc_clean_original"))
        spans[f"aopc_fooled{read}"] = average(aopc, CURVES.index("aopc_fooled_fooled"))
    row: Row = {"n": scores[0].n, "seeds": len(scores)}
    for name, values in spans.items():
        row |= span(name, values)
    return row


ARA = Leaderboard(
    columns=[
        *("model", "boundary", "n", "num_classes", "accuracy", *intervals("ara"), "ara_histogram"),
        *("unconverged", "never_crossed", "psi", "steps", "path", "momentum", "clip", "error"),
    ],
    text=("model", "boundary", "error"),
    rows=_areas,
    exists=_exists,
    where="the robustness of its models is measured ([robustness])",
)

RESISTANCE = Leaderboard(
    columns=[
        *("model", "fooling", "attacked", "n", "seeds", *intervals("fsr"), "fsr_clean", *intervals("excess")),
        *(*intervals("top1_drop"), "aopc_clean", "aopc_fooled", "top1_clean", "ara_attack", "ara_btr"),
        *("aopc_clean_contrast", "aopc_fooled_contrast"),
    ],
    text=KEY[:3],
    rows=_resistance,
    exists=_exists,
    where="the robustness of its models is measured ([robustness])",
)

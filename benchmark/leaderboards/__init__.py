"""Results -> leaderboards: CSV tables, a pure function of the results, byte for byte.

manipulations  one row a manipulation: how the fine-tuning went and what it cost in accuracy
accuracy       one row a manipulation: top-1, top-5, agreement with the clean model (fractions), the drop (points)
transfer       one row a cell: FSR and its clean rate, test loss, similarity of fooled and original heatmap
fronts         where recipes were searched: one row a point on dev, and one a budget for the best within it on test
ara            where clean models were attacked: one row a model and boundary, its Accuracy-Robustness Area
resistance     there as well, one row a model, fooling and attacked interpreter: FSR beside ARA and AOPC, over seeds
aopc           six rows a cell: AOPC = 1/(K+1) Σ_{k=1..K} drop_k, drop_k the mean loss of logit after k of K steps
stability      one row an evaluated interpreter: its stability (`benchmark.leaderboards.ranking`), rank and flags;
               averages over its
               cells; excess = fsr - fsr_clean, image by image
differences    the stability of two ranked interpreters, paired

`_low` and `_high` bound the 95 % bootstrap interval over images, n counts images. An empty field is a missing value.
A failed cell is a row of transfer with n = 0 and its error, and has no rows in aopc.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attacks.errors import UserError
from benchmark.intervals import Mean, average, bootstrap_mean, exact, interval
from benchmark.leaderboards import ranking
from benchmark.metrics import robustness
from benchmark.results import CURVES, KEY, Entry, Results, read, write_atomic

Row = dict[str, Any]
_SCORES = (
    *("fsr", "fsr_clean", "fsr_null", "test_loss", "test_loss_clean"),
    *("rank_correlation", "rank_correlation_null", "ssim", "iou", "excess"),
)
_ACCURACY = ("top1", "top5", "agreement", "top1_clean", "top5_clean", "top1_drop")
_TRAINING = ("status", "reason", "learning_rate", "lambda", "steps", "steps_done", "batch_size")
_TEXT = (*KEY[:3], "evaluated", "interpreter", "status", "reason", "error", "worst_transfer", "scored", "order", "key",
         "split", "other", "eligible", "flags", "boundary")  # fmt: skip
_LOSSES = ("ce_first", "ce_last", "fooling_first", "fooling_late", "fooling_last")
_ENDS = ("", "_low", "_high")
SHOWN = 60  # self cells that `show` prints at most


def _with_interval(*names: str) -> list[str]:
    return [name + end for name in names for end in _ENDS]


COLUMNS = {
    "manipulations": [*KEY, *_TRAINING, *_LOSSES, "top1_clean", "top1", "top1_drop", "key"],
    "transfer": [
        *("model", "fooling", "attacked", "evaluated", "seed", "n"),
        *(*_with_interval("fsr"), "fsr_clean", "fsr_null", "range_low", "range_high"),
        *(*_with_interval("test_loss"), "test_loss_clean", *_with_interval("rank_correlation")),
        *("rank_correlation_null", "undefined", *_with_interval("ssim", "iou"), "blank", "error"),
    ],
    "accuracy": [
        *(*KEY, "n", *_with_interval("top1", "top5", "agreement")),
        *("top1_clean", "top5_clean", *_with_interval("top1_drop")),
    ],
    "aopc": [
        *("model", "fooling", "attacked", "evaluated", "seed", "scored", "order", "n", "steps"),
        *_with_interval("aopc"),  # then drop_1 .. drop_K
    ],
    "fronts": [
        *("model", "fooling", "attacked", "split", "budget", *("learning_rate", "lambda", "steps"), "n"),
        *(*_with_interval("fsr"), "fsr_clean", *_with_interval("top1_drop")),
    ],
    "ara": [
        *("model", "boundary", "n", "num_classes", "accuracy", *_with_interval("ara"), "ara_histogram"),
        *("unconverged", "never_crossed", "psi", "steps", "path", "momentum", "clip"),
    ],
    "resistance": [
        *("model", "fooling", "attacked", "n", "seeds", *_with_interval("fsr"), "fsr_clean", *_with_interval("excess")),
        *(*_with_interval("top1_drop"), "aopc_clean", "aopc_fooled", "top1_clean", "ara_attack", "ara_btr"),
    ],
    "differences": ["interpreter", "other", "places", *_with_interval("difference"), "p", "p_holm"],
    "stability": [
        *("interpreter", "status", "rank", "rank_low", "rank_high", *_with_interval("stability"), "places"),
        *("eligible", "reason", "flags", "ms_per_image", "peak_mib", "cells", "failed", "self_cells"),
        *(*_with_interval("self_fsr_excess", "worst_transfer_fsr_excess"), "worst_transfer"),
        *_with_interval("rank_correlation_self", "rank_correlation_transfer", "aopc_clean", "aopc_fooled"),
        *("undefined", "blank", "silent_places"),
    ],
}
"""The header of each table."""


@dataclass(frozen=True)
class Cell:
    """One interpreter on one manipulation: means of _SCORES and of the AOPC of each of CURVES, or an error."""

    manipulation: Row
    evaluated: str
    error: str = ""
    scores: Mean | None = None
    undefined: int = 0  # rows without a rank correlation
    blank: int = 0  # rows whose fooled map is constant
    aopc: Mean | None = None
    drops: tuple[np.ndarray, ...] = ()  # of each of CURVES: (K,)


def build(results: Results) -> dict[str, pd.DataFrame]:
    """All leaderboards, by name; rows sorted by their key columns."""
    listed = results.models_card["manipulations"]
    manipulations = sorted(({**m, "reason": _one_line(m["reason"])} for m in listed), key=_key)
    groups = _groups(results.models)
    trained = [(m, _accuracy(groups.get(_key(m)))) for m in manipulations]
    cells = {name: _cells(name, *entry, manipulations) for name, entry in sorted(results.entries.items())}
    every = [cell for row in cells.values() for cell in row]
    every.sort(key=lambda c: (*_key(c.manipulation)[:3], c.evaluated, c.manipulation["seed"]))
    rows: dict[str, list[Row]] = {
        "manipulations": [m | with_ends(_ACCURACY, mean) for m, mean in trained],
        "transfer": [_transfer_row(cell) for cell in every],
        "accuracy": [m | {"n": mean.n if mean else 0} | with_ends(_ACCURACY, mean) for m, mean in trained],
        "aopc": [row for cell in every for row in _aopc_rows(cell)],
        "fronts": _front_rows(results.fronts) if results.fronts else [],
        "ara": (areas := _ara_rows(results.robustness) if results.robustness else []),
        "resistance": _resistance_rows(cells, trained, areas) if areas else [],
        **_board(results, cells),
    }
    longest = max((row["steps"] for row in rows["aopc"]), default=0)
    drops = {"aopc": [f"drop_{k}" for k in range(1, longest + 1)]}
    optional = {"fronts": results.fronts is not None, "differences": _gated(results)}
    optional |= dict.fromkeys(("ara", "resistance"), results.robustness is not None)
    tables = [name for name in COLUMNS if optional.get(name, True)]
    return {name: pd.DataFrame(rows[name], columns=COLUMNS[name] + drops.get(name, [])) for name in tables}


def write(folder: Path | str) -> None:
    """Regenerate every leaderboard of `folder` (leaderboards/<suite>) from its results/."""
    for name, text in _render(Path(folder)).items():
        write_atomic(Path(folder) / f"{name}.csv", text)


def check(folder: Path | str) -> list[str]:
    """The CSV files of `folder` that are missing, or not byte for byte what its results give."""
    files = {Path(folder) / f"{name}.csv": text for name, text in _render(Path(folder)).items()}
    return [path.name for path, text in files.items() if not path.is_file() or path.read_bytes() != text]


def load(folder: Path | str, name: str) -> pd.DataFrame:
    """The leaderboard `name` as it lies in `folder`; only empty fields are missing values."""
    path = Path(folder) / f"{name}.csv"
    try:
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(_TEXT, "str"))
    except FileNotFoundError as error:
        raise UserError(f"no leaderboard {path}: foolbench leaderboard writes it from the results") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not a readable CSV: {_one_line(str(error))}") from error
    if missing := [column for column in COLUMNS[name] if column not in frame.columns]:
        raise UserError(f"{path} is not a {name} leaderboard: it lacks {', '.join(missing)}")
    return frame


def show(folder: Path | str) -> str:
    """The board (ranked first, then why the others are not), attack strength, and the self cells of transfer."""
    stability, transfer = load(folder, "stability"), load(folder, "transfer")
    parts = [board_table(stability)]
    if (Path(folder) / "fronts.csv").is_file():
        parts += ["FSR on test of the strongest attack within a top-1 drop on dev", aligned(_strength(folder))]
    cells = transfer[transfer.attacked == transfer.evaluated]
    shown = cells[[*KEY, "n"]].copy()
    shown["FSR"], shown["clean FSR"] = _spans(cells, "fsr"), cells.fsr_clean.map("{:.2f}".format, "ignore")
    shown["rank corr."], shown["error"] = _spans(cells, "rank_correlation"), cells.error
    if len(shown) <= SHOWN:
        parts += ["Self cells of transfer: attacked = evaluated", aligned(shown)]
    else:
        parts += [f"{len(shown)} self cells: transfer.csv"]
    return "\n".join(parts)


def ranks_with(reference: Path | str, folder: Path | str, name: str) -> tuple[int, int, int]:
    """(rank, low, high) of an interpreter of `folder` among the ranked ones of `reference`, resampled together."""
    ranked = load(reference, "stability").query("eligible == 'yes'").interpreter
    worst = {}
    for results, names in ((read(Path(reference) / "results"), ranked), (read(Path(folder) / "results"), [name])):
        manipulations = results.models_card["manipulations"]
        for each in names:
            cells = _cells(each, *results.entries[each], manipulations)
            worst[each] = ranking.worst_attacks(_attacks(cells))[0]
    return ranking.ranks(worst)[name]


def board_table(stability: pd.DataFrame) -> str:
    """Rows of the stability leaderboard as text: ranked ones first, then why the others are not."""
    stability = stability.sort_values(["rank", "stability"], ascending=[True, False], kind="stable")
    rows = pd.DataFrame({"rank": _ranks(stability), "interpreter": stability.interpreter})
    for title, column in {
        "stability": "stability",
        "self FSR excess": "self_fsr_excess",
        "worst transfer": "worst_transfer_fsr_excess",
        "rank corr. self": "rank_correlation_self",
        "AOPC fooled": "aopc_fooled",
    }.items():
        rows[title] = _spans(stability, column)
    rows["ms/image"] = stability.ms_per_image.map("{:.1f}".format, "ignore")
    rows["flags"] = stability["flags"]
    parts = ["Stability: 1 is never fooled beyond chance; means over cells [95 %]", aligned(rows)]
    unranked = stability[stability.eligible == "no"]
    if len(unranked):
        parts += ["Not ranked", aligned(unranked[["interpreter", "reason"]])]
    return "\n".join(parts)


def _ranks(stability: pd.DataFrame) -> list[str]:
    rows = stability[["rank", "rank_low", "rank_high"]].itertuples(index=False)
    return ["-" if np.isnan(r) else f"{r:.0f} [{low:.0f}, {high:.0f}]" for r, low, high in rows]


def _strength(folder: Path | str) -> pd.DataFrame:
    """Mean FSR over models: a row for each fooling and attacked interpreter, a column for each budget."""
    test = load(folder, "fronts").query("split == 'test'")
    means = test.pivot_table("fsr", ["fooling", "attacked"], "budget").reset_index()
    for budget in means.columns[2:]:
        means[budget] = means[budget].map("{:.2f}".format)
    return means.rename(columns=lambda c: c if isinstance(c, str) else f"<= {c:g} points")


def _spans(frame: pd.DataFrame, column: str) -> list[str]:
    rows = frame[[column, f"{column}_low", f"{column}_high"]].itertuples(index=False)
    return ["" if np.isnan(v) else f"{v:.2f} [{low:.2f}, {high:.2f}]" for v, low, high in rows]


def aligned(frame: pd.DataFrame) -> str:
    """A table as text, a line a row, columns aligned."""
    rows = [list(frame.columns), *([str(v) for v in row] for row in frame.astype(object).fillna("").to_numpy())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _render(folder: Path) -> dict[str, bytes]:
    tables = build(read(folder / "results"))
    return {name: csv_text(table).encode() for name, table in tables.items()}


def csv_text(table: pd.DataFrame) -> str:
    """The table as every CSV of the project is written: nine digits, no minus zero."""
    floats = table.select_dtypes("float").columns
    table = table.assign(**{name: table[name] + 0.0 for name in floats})  # no -0
    return table.to_csv(index=False, float_format="%.9g", lineterminator="\n")


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY if name in row)


def _groups(frame: pd.DataFrame) -> dict[tuple[Any, ...], pd.DataFrame]:
    return dict(list(frame.groupby(list(KEY))))


def with_ends(names: Sequence[str], mean: Mean | None) -> Row:
    """The fields of each score: its mean and interval; none if there is no mean."""
    if mean is None:
        return {}
    ends = dict(zip(_ENDS, (mean.value, mean.low, mean.high), strict=True))
    return {name + end: values[i] for i, name in enumerate(names) for end, values in ends.items()}


def _accuracy(frame: pd.DataFrame | None) -> Mean | None:
    if frame is None:
        return None
    drop = 100.0 * (frame.top1_clean.astype(float) - frame.top1)
    return bootstrap_mean(np.column_stack([*(frame[name] for name in _ACCURACY[:-1]), drop]), frame.image)


def _cells(name: str, frame: pd.DataFrame, card: Row, manipulations: list[Row]) -> list[Cell]:
    """A cell for each manipulation, in their order: scored, or with the reason why not."""
    errors = {_key(failure): failure["error"] for failure in card["failures"]}
    groups, cells = _groups(frame), []
    for m in manipulations:
        key, reason = _key(m), "not evaluated" if m["status"] == "done" else f"{m['status']}: {m['reason']}"
        scored = key in groups and key not in errors
        cells.append(_scored(m, name, groups[key]) if scored else Cell(m, name, _one_line(errors.get(key, reason))))
    return cells


def _scored(manipulation: Row, name: str, frame: pd.DataFrame) -> Cell:
    excess = frame.success.astype(float) - frame.success_clean
    names = ("success", "success_clean", "success_null", *_SCORES[3:-1])
    scores = bootstrap_mean(np.column_stack([*(frame[column] for column in names), excess]), frame.image)
    cell = Cell(manipulation, name, "", scores, int(frame.rank_correlation.isna().sum()), int(frame.blank.sum()))
    computed = frame[frame[list(CURVES)].notna().any(axis=1)]
    if computed.empty:
        return cell
    try:
        curves = exact(np.stack([np.stack(computed[curve].tolist()) for curve in CURVES], 1))
    except ValueError as error:
        raise UserError(f"{name}.parquet: curves of {_key(manipulation)} are missing or differ in length") from error
    steps = curves.shape[2]
    aopc = bootstrap_mean(curves.sum(2) / (steps + 1), computed.image)
    return replace(cell, aopc=aopc, drops=tuple(curves.mean(0)))


def _transfer_row(cell: Cell) -> Row:
    low, high = cell.manipulation["range"] or (None, None)
    counts = {"n": cell.scores.n if cell.scores else 0, "undefined": cell.undefined, "blank": cell.blank}
    row = cell.manipulation | {"evaluated": cell.evaluated, "error": cell.error, "range_low": low, "range_high": high}
    return row | counts | with_ends(_SCORES, cell.scores)


def _aopc_rows(cell: Cell) -> list[Row]:
    if cell.aopc is None:
        return []
    means, rows = with_ends(CURVES, cell.aopc), []
    for curve, drops in sorted(zip(CURVES, cell.drops, strict=True)):
        _, scored, order = curve.split("_")
        row = cell.manipulation | {"evaluated": cell.evaluated, "scored": scored, "order": order}
        row |= {"n": cell.aopc.n, "steps": len(drops)}
        row |= {f"aopc{end}": means[curve + end] for end in _ENDS}
        rows.append(row | {f"drop_{k}": drop for k, drop in enumerate(drops, 1)})
    return rows


def _front_rows(fronts: Entry) -> list[Row]:
    """The points of every search as measured on dev, then the best one within each budget on the scored images."""
    frame, card = fronts
    dev = [point | {"split": "dev", "top1_drop": point["drop"]} for point in card["points"]]
    dev.sort(key=lambda row: (*_key(row), row["learning_rate"], row["lambda"], row["steps"]))
    groups, test = dict(list(frame.groupby([*KEY[:3], "budget", "measure"]))), []
    for point in sorted(card["chosen"], key=lambda row: (*_key(row), row["budget"])):
        fooled, first = (groups[(*_key(point), point["budget"], measure)] for measure in ("fsr", "top1"))
        fsr = bootstrap_mean(fooled[["value", "value_clean"]].to_numpy(float), fooled.image)
        drop = bootstrap_mean(100 * (first[["value_clean"]].to_numpy(float) - first[["value"]]), first.image)
        row = (
            point
            | {"split": "test", "n": fsr.n}
            | with_ends(("fsr", "fsr_clean"), fsr)
            | with_ends(("top1_drop",), drop)
        )
        test.append(row)
    return dev + test


def _ara_rows(entry: Entry) -> list[Row]:
    """Both areas of every model, with what the attack was."""
    frame, card = entry
    rows = []
    for model in sorted(card["models"], key=lambda found: found["model"]):
        for boundary, found in frame[frame.model == model["model"]].groupby("boundary"):
            radii, classes = found.radius.to_numpy(float), model["num_classes"]
            ends = (robustness.area(radii, classes), *robustness.area_interval(radii, classes))
            row = model | card["attack"] | {"boundary": boundary, "n": len(radii), "accuracy": (radii > 0).mean()}
            row |= dict(zip(_with_interval("ara"), ends, strict=True))
            row |= {"ara_histogram": robustness.area_histogram(radii, classes)}
            row |= {"unconverged": robustness.unconverged(found["first"].to_numpy(), card["attack"]["steps"])}
            rows.append(row | {"never_crossed": int((found["first"] > card["attack"]["steps"]).sum())})
    return rows


def _resistance_rows(
    cells: dict[str, list[Cell]], trained: list[tuple[Row, Mean | None]], areas: list[Row]
) -> list[Row]:
    """Self cells, averaged over seeds, beside the areas of the model before fooling."""
    accuracy = {_key(m): mean for m, mean in trained}
    of = {(row["model"], row["boundary"]): row["ara"] for row in areas}
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for name, every in cells.items():
        for cell in every:
            if cell.scores and cell.manipulation["attacked"].partition(":")[0] == name:
                groups.setdefault(_key(cell.manipulation)[:3], []).append(cell)
    rows = []
    for place, found in sorted(groups.items()):
        scores, aopc = [c.scores for c in found if c.scores], [c.aopc for c in found if c.aopc]
        top1 = [mean for c in found if (mean := accuracy[_key(c.manipulation)])]
        spans = {name: average(scores, _SCORES.index(name)) for name in ("fsr", "fsr_clean", "excess")}
        spans |= {name: average(top1, _ACCURACY.index(name)) for name in ("top1_clean", "top1_drop")}
        spans["aopc_clean"] = average(aopc, CURVES.index("aopc_clean_original"))
        spans["aopc_fooled"] = average(aopc, CURVES.index("aopc_fooled_fooled"))
        values = {name + end: value for name, span in spans.items() for end, value in zip(_ENDS, span, strict=True)}
        values |= dict(zip(KEY[:3], place, strict=True)) | {"n": scores[0].n, "seeds": len(scores)}
        rows.append(values | {f"ara_{boundary}": of.get((place[0], boundary)) for boundary in ("attack", "btr")})
    return rows


def _board(results: Results, cells: dict[str, list[Cell]]) -> dict[str, list[Row]]:
    """Stability and differences. Ranked are those that pass the gate, in a suite that has one."""
    cards = {name: card for name, (_, card) in results.entries.items()}
    models = sorted({m["model"] for m in results.models_card["manipulations"]})
    worst, rows = {}, {}
    for name, row in cells.items():
        worst[name], silent = ranking.worst_attacks(_attacks(row))
        value, replicates = ranking.stability(worst[name])
        low, high = interval(replicates[:, None])
        rows[name] = _stability_row(name, row) | {
            "status": cards[name].get("status", "reference"),
            "places": len(worst[name]),
            "silent_places": silent,
            **dict(zip(_with_interval("stability"), (value, low[0], high[0]), strict=True)),
            "flags": " ".join([*cards[name].get("flags", []), *_flags(name, row)]),
            **_cost(cards[name]),
        }
    if _gated(results):
        for name, found in rows.items():
            errors = [c.error for c in cells[name] if c.scores is None and c.manipulation["status"] == "done"]
            eligible, reason = ranking.eligibility(name, cards, models, errors)
            found |= {"eligible": "yes" if eligible else "no", "reason": reason}
    ranked = {name: worst[name] for name, row in rows.items() if row.get("eligible") == "yes"}
    for name, rank in ranking.ranks(ranked).items():
        rows[name] |= dict(zip(("rank", "rank_low", "rank_high"), rank, strict=True))
    return {"stability": [*rows.values()], "differences": ranking.differences(ranked)}


def _gated(results: Results) -> bool:
    return any("gate" in card for _, card in results.entries.values())


def _cost(card: Row) -> Row:
    """Means over models."""
    spent = list(card.get("cost", {}).values())
    known = {key: [s[key] for s in spent if s[key] is not None] for key in ("ms_per_image", "peak_mib")}
    return {key: float(np.mean(values)) for key, values in known.items() if values}


def _flags(name: str, cells: list[Cell]) -> list[str]:
    """What a reader must know before trusting a high stability.

    TRANSFER_ONLY: no attack was aimed at it. NO_WHITEBOX: none by its own gradient. In some model and fooling, beyond
    the interval, its own gradient is beaten: SURROGATE_GAP, by softplus for ReLU or by an attack aimed at another
    interpreter; RANDOM_BEATS_WHITEBOX, by a search without gradients. NOT_CONVERGED: an attack by its gradient was
    still making more than a twentieth of its progress in its last tenth.
    """
    by_attack: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.scores:
            by_attack.setdefault(cell.manipulation["attacked"], []).append(cell)
    blind, whitebox = by_attack.pop(f"{name}:subspace", []), by_attack.pop(name, [])
    surrogates = [cell for part in by_attack.values() for cell in part]
    if not whitebox:
        return ["NO_WHITEBOX" if blind or f"{name}:softplus" in by_attack else "TRANSFER_ONLY"]
    flags = []
    for flag, others in (("SURROGATE_GAP", surrogates), ("RANDOM_BEATS_WHITEBOX", blind)):
        if _beaten(whitebox, others):
            flags.append(flag)
    if any(_still_falling(cell.manipulation) for cell in whitebox):
        flags.append("NOT_CONVERGED")
    return flags


def _attacks(cells: list[Cell]) -> list[ranking.Attack]:
    return [(*_key(c.manipulation), c.scores) for c in cells if c.scores]


def _beaten(cells: list[Cell], others: list[Cell]) -> bool:
    """Whether the worst of `others` is worse than the worst of `cells` in some model and fooling, with 95 %."""
    mine, theirs = (ranking.worst_attacks(_attacks(part))[0] for part in (cells, others))
    gaps = [theirs[place][1] - mine[place][1] for place in theirs if place in mine]
    return any(interval(gap[:, None])[0][0] > 0 for gap in gaps)


def _still_falling(manipulation: Row) -> bool:
    losses = [manipulation[f"fooling_{when}"] for when in ("first", "late", "last")]
    if None in losses:
        return False
    first, late, last = losses
    return first > last and late - last > 0.05 * (first - last)


def _stability_row(name: str, cells: list[Cell]) -> Row:
    """Averages over cells; of the worst transfer cell, its own excess and interval (not that of a maximum)."""
    excess, rank = _SCORES.index("excess"), _SCORES.index("rank_correlation")
    by_gradient = any(c.manipulation["attacked"] == name for c in cells)
    names = [c.manipulation["attacked"] if by_gradient else c.manipulation["attacked"].partition(":")[0] for c in cells]
    aimed = [attacked == name for attacked in names]
    own = [c.scores for c, mine in zip(cells, aimed, strict=True) if c.scores and mine]
    transfer = {_key(c.manipulation): c.scores for c, mine in zip(cells, aimed, strict=True) if c.scores and not mine}
    aopc = [c.aopc for c in cells if c.aopc]
    worst = max(transfer, key=lambda key: transfer[key].value[excess], default=None)
    averages = {
        "self_fsr_excess": average(own, excess),
        "worst_transfer_fsr_excess": average([transfer[worst]] if worst else [], excess),
        "rank_correlation_self": average(own, rank),
        "rank_correlation_transfer": average(list(transfer.values()), rank),
        "aopc_clean": average(aopc, CURVES.index("aopc_clean_original")),
        "aopc_fooled": average(aopc, CURVES.index("aopc_fooled_fooled")),
    }
    row: Row = {"interpreter": name, "cells": len(cells), "failed": sum(c.scores is None for c in cells)}
    row |= {"self_cells": len(own), "worst_transfer": "/".join(map(str, worst)) if worst else None}
    row |= {"undefined": sum(c.undefined for c in cells), "blank": sum(c.blank for c in cells)}
    for score, span in averages.items():
        row |= {score + end: value for end, value in zip(_ENDS, span, strict=True)}
    return row

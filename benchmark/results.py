"""The results of a suite on disk: what was measured, image by image. Every leaderboard is computed from them.

A folder holds one Parquet table and one JSON card for each evaluated interpreter, `models.parquet` and `models.json`
for the manipulations themselves, and, where recipes were searched, `fronts.parquet` and `fronts.json`, where clean
models were attacked, `robustness.parquet` and `robustness.json`. One row is one image, or one of its two target classes
(`pair` 0 and 1, Active fooling). In floats NaN means undefined; a curve is null where it was not computed.
"""

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from attacks.errors import UserError
from benchmark.store import write_atomic

KEY = ("model", "fooling", "attacked", "seed")
"""The manipulation a row belongs to."""

CURVES = tuple(f"aopc_{scored}_{order}" for scored in ("clean", "fooled") for order in ("original", "fooled", "random"))
"""Logit drops after 1..K cells: of which model, cells in the order of which map (original: h(w0); fooled: h(w))."""

_TEXT = pa.dictionary(pa.int32(), pa.string())
_ROW = {"model": _TEXT, "fooling": _TEXT, "attacked": _TEXT, "seed": pa.int32(), "image": pa.int32()}
SCORES = pa.schema(
    {
        **_ROW,
        "pair": pa.int8(),
        "target": pa.int32(),
        "test_loss": pa.float32(),
        "test_loss_clean": pa.float32(),
        "success": pa.bool_(),
        "success_clean": pa.bool_(),
        "success_null": pa.bool_(),  # of the clean map of the next image: an unrelated map of the same kind
        "blank": pa.bool_(),  # the fooled map is constant
        "rank_correlation": pa.float32(),
        "rank_correlation_null": pa.float32(),
        "ssim": pa.float32(),
        "iou": pa.float32(),
        **dict.fromkeys(CURVES, pa.list_(pa.float32())),
    }
)
"""Columns of <interpreter>.parquet."""

MODELS = pa.schema(
    {
        **_ROW,
        "target": pa.int32(),
        **dict.fromkeys(("top1", "top5", "top1_clean", "top5_clean", "agreement"), pa.bool_()),
    }
)
"""Columns of models.parquet."""

FRONTS = pa.schema(
    {
        **dict.fromkeys(KEY[:3], _TEXT),
        "budget": pa.float32(),  # top-1 drop allowed on dev, points
        "measure": _TEXT,  # fsr: the heatmap is a success of the fooling; top1: the label is first
        "image": pa.int32(),
        "pair": pa.int8(),
        "value": pa.bool_(),
        "value_clean": pa.bool_(),
    }
)
"""Columns of fronts.parquet: the best attack within each budget, on the scored images."""

ROBUSTNESS = pa.schema(
    {
        "model": _TEXT,
        "boundary": _TEXT,  # attack: another class is first; btr: the label is no likelier than chance
        "image": pa.int32(),
        "radius": pa.float32(),  # RMSE of the smallest perturbation found that crosses it, pixels in [0, 1]
        "first": pa.int32(),  # steps before the first crossing; one more than the attack has: none was found
    }
)
"""Columns of robustness.parquet: the minimum-norm attack on the clean models."""

OTHERS = {"models": MODELS, "fronts": FRONTS, "robustness": ROBUSTNESS}
"""Tables that are no interpreter's."""

COLUMNS = tuple(SCORES.names)
CARD = ("interpreter", "options", "suite", "failures")
"""What a card must hold for the leaderboards; the harness adds versions, device and properties."""
MANIPULATION = (
    *(*KEY, "status", "reason", "learning_rate", "lambda", "steps", "steps_done", "batch_size"),
    *("ce_first", "ce_last", "fooling_first", "fooling_late", "fooling_last", "range", "key"),
)
"""What models.json holds for each manipulation."""

POINT = ("learning_rate", "lambda", "steps", "fsr", "drop")
"""What fronts.json holds for each point of a front, beside the model, fooling and attacked; `chosen` ones a budget."""

Entry = tuple[pd.DataFrame, dict[str, Any]]


@dataclass(frozen=True)
class Results:
    """All results of one suite: (frame, card) of each evaluated interpreter, and of the fooled models."""

    entries: dict[str, Entry]
    models: pd.DataFrame
    models_card: dict[str, Any]
    fronts: Entry | None = None
    robustness: Entry | None = None


def write(folder: Path | str, name: str, frame: pd.DataFrame, card: dict[str, Any]) -> None:
    """Write one entry (or, under a name of OTHERS, another table): equal content gives equal bytes in any order."""
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise UserError(f"an interpreter's name must be letters, digits, '_', '-' or '.' (got {name!r})")
    table, sink = _table(frame, OTHERS.get(name, SCORES)), io.BytesIO()
    # Scores hardly repeat, so a dictionary would only add to them; rows that do repeat (the clean model's, in each of
    # its manipulations) are far apart, and a strong level has the window to find them.
    text = [field.name for field in table.schema if field.type == _TEXT]
    pq.write_table(table, sink, compression="zstd", compression_level=19, use_dictionary=text, data_page_size=8 << 20)
    write_atomic(Path(folder) / f"{name}.parquet", sink.getvalue())
    text_card = json.dumps(_finite(card), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_atomic(Path(folder) / f"{name}.json", f"{text_card}\n".encode())


def read(folder: Path | str) -> Results:
    """All results in `folder`, checked: UserError names the file that is missing, corrupt or foreign."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no results: {folder} is not a folder (foolbench run writes it)")
    names = sorted({path.stem for path in folder.iterdir() if path.suffix in (".parquet", ".json")} | {"models"})
    entries = {name: _entry(folder, name) for name in names}
    models, models_card = entries.pop("models")
    fronts, robustness = (entries.pop(name, None) for name in ("fronts", "robustness"))
    listed = {tuple(manipulation[k] for k in KEY) for manipulation in models_card["manipulations"]}
    for name, (frame, _) in [*entries.items(), ("models", (models, {}))]:
        if foreign := set(frame[list(KEY)].drop_duplicates().itertuples(index=False, name=None)) - listed:
            cell = "/".join(map(str, min(foreign)))
            raise UserError(f"{folder / name}.parquet scores {cell}, which models.json does not list")
    return Results(entries, models, models_card, fronts, robustness)


def _entry(folder: Path, name: str) -> Entry:
    path, card_path = folder / f"{name}.parquet", folder / f"{name}.json"
    for needed in (path, card_path):
        if not needed.is_file():
            raise UserError(f"results are incomplete: {needed} is missing")
    try:
        card = json.loads(card_path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{card_path} is not valid JSON: {_line(error)}") from error
    try:
        table = pq.ParquetFile(io.BytesIO(path.read_bytes())).read()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a readable Parquet file: {_line(error)}") from error
    _check_card(card_path, name, card)
    for field in OTHERS.get(name, SCORES):
        got = table.schema.field(field.name).type if field.name in table.schema.names else "no such column"
        if got != field.type:
            raise UserError(f"{path}: column {field.name} must be {field.type} (got {got})")
    frame = table.to_pandas()
    return frame.astype(dict.fromkeys(_texts(frame), "str")), card


def _check_card(path: Path, name: str, card: Any) -> None:
    """A card that lacks what the leaderboards need, or is another interpreter's, is a UserError."""
    lists: dict[str, dict[str, tuple[str, ...]]] = {
        "models": {"manipulations": MANIPULATION},
        "fronts": {"points": POINT, "chosen": (*POINT, "budget")},
        "robustness": {"models": ("model", "num_classes", "psi")},
    }
    listed = lists.get(name, {"failures": (*KEY, "error")})
    _must_hold(path, "a card", card, tuple(listed) if name in lists else CARD)
    for part, keys in listed.items():
        if not isinstance(card[part], list):
            raise UserError(f"{path}: {part} must be a list")
        for record in card[part]:
            _must_hold(path, f"each of its {part}", record, (*KEY[:3], *keys) if name == "fronts" else keys)
    if name not in lists and card["interpreter"] != name:
        raise UserError(f"{path}: interpreter must be {name!r}, as the file's name (got {card['interpreter']!r})")


def _must_hold(path: Path, what: str, value: Any, keys: tuple[str, ...]) -> None:
    if missing := [key for key in keys if not isinstance(value, dict) or key not in value]:
        raise UserError(f"{path}: {what} must hold {', '.join(missing)}")


def _table(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """`frame` in the schema's columns and types, in the order of its key. ValueError: missing or repeated rows."""
    order = [name for name in (*KEY, "budget", "measure", "boundary", "image", "pair") if name in schema.names]
    if absent := sorted(set(schema.names) - set(frame.columns)):
        raise ValueError(f"results lack the columns {', '.join(absent)}")
    frame = frame.astype(dict.fromkeys(_texts(frame), "str")).sort_values(order)
    if frame.duplicated(order).any():
        raise ValueError(f"results repeat a row: {tuple(frame.loc[frame.duplicated(order), order].iloc[0])}")
    columns = []
    for field in schema:
        if pa.types.is_floating(field.type):  # through numpy, so that NaN stays NaN and is not made null
            columns.append(pa.array(frame[field.name].to_numpy(np.float32, na_value=np.nan)))
        elif field.type == _TEXT:
            columns.append(pa.array(frame[field.name].tolist(), pa.string()).dictionary_encode())
        else:
            columns.append(pa.array(frame[field.name].tolist(), field.type, from_pandas=True))
        if columns[-1].null_count and not pa.types.is_list(field.type):
            raise ValueError(f"results lack a value in {field.name}")
    return pa.Table.from_arrays(columns, schema=schema)


def _texts(frame: pd.DataFrame) -> list[str]:
    return [name for name in (*KEY[:3], "measure", "boundary") if name in frame]


def _finite(value: Any) -> Any:
    """`value` with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _line(error: Exception) -> str:
    return " ".join(str(error).split())

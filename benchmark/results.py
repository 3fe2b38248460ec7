"""Results on disk: what was measured, image by image, as one Parquet table and one JSON card of any `Table`.

What a table holds is declared beside the leaderboards that it feeds (`benchmark.leaderboards.stored` lists them all).
In floats NaN means undefined; a list of floats is null where it was not computed.
"""

import io
import json
import re
from collections.abc import Mapping
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

TEXT = pa.dictionary(pa.int32(), pa.string())
ROW = {"model": TEXT, "fooling": TEXT, "attacked": TEXT, "seed": pa.int32(), "image": pa.int32()}
"""Columns of a row that is one image under one manipulation."""

Entry = tuple[pd.DataFrame, dict[str, Any]]


@dataclass(frozen=True)
class Table:
    """What a Parquet table and its card hold."""

    schema: pa.Schema  # the columns; text is TEXT, and a value is missing in lists alone
    key: tuple[str, ...]  # the columns that tell its rows apart, in the order by which they are sorted
    lists: Mapping[str, tuple[str, ...]]  # the card's lists, and what each of their records must hold
    fields: tuple[str, ...] = ()  # what the card must hold beside them; what else it holds is not looked at
    named: str = ""  # the one of `fields` that must be the file's name
    later: tuple[str, ...] = ()  # columns of lists that older results lack: they are read as not computed

    @property
    def text(self) -> list[str]:
        return [field.name for field in self.schema if field.type == TEXT]


def write(folder: Path | str, name: str, frame: pd.DataFrame, card: dict[str, Any], table: Table) -> None:
    """Write NAME.parquet and NAME.json: equal content gives equal bytes in any order. ValueError: missing or repeated
    rows."""
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise UserError(f"an interpreter's name must be letters, digits, '_', '-' or '.' (got {name!r})")
    arrow, sink = _arrow(frame, table), io.BytesIO()
    # Scores hardly repeat, so a dictionary would only add to them; rows that do repeat (the clean model's, in each of
    # its manipulations) are far apart, and a strong level has the window to find them.
    options = {"use_dictionary": table.text, "data_page_size": 8 << 20}
    pq.write_table(arrow, sink, compression="zstd", compression_level=19, **options)
    write_atomic(Path(folder) / f"{name}.parquet", sink.getvalue())
    text_card = json.dumps(_finite(card), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_atomic(Path(folder) / f"{name}.json", f"{text_card}\n".encode())


def read(folder: Path, name: str, table: Table) -> Entry:
    """NAME.parquet and NAME.json, checked: UserError names the file that is missing, corrupt or foreign."""
    path, card_path = folder / f"{name}.parquet", folder / f"{name}.json"
    for needed in (path, card_path):
        if not needed.is_file():
            raise UserError(f"results are incomplete: {needed} is missing")
    card = read_card(card_path)
    try:
        content = pq.ParquetFile(io.BytesIO(path.read_bytes())).read()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a readable Parquet file: {_line(error)}") from error
    _check_card(card_path, name, card, table)
    for column in table.later:
        if column not in content.schema.names:
            kind = table.schema.field(column).type
            content = content.append_column(column, pa.nulls(len(content), kind))
    for field in table.schema:
        got = content.schema.field(field.name).type if field.name in content.schema.names else "no such column"
        if got != field.type:
            raise UserError(f"{path}: column {field.name} must be {field.type} (got {got})")
    frame = content.to_pandas().astype(dict.fromkeys(table.text, "str"))
    if (twice := frame.duplicated(list(table.key))).any():
        raise UserError(f"{path} repeats a row: {tuple(frame.loc[twice, list(table.key)].iloc[0])}")
    return frame, card


def read_card(path: Path) -> Any:
    """What a card says, unchecked. Raises `UserError` for a file that is none."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {_line(error)}") from error


def _check_card(path: Path, name: str, card: Any, table: Table) -> None:
    """A card that lacks what the leaderboards need, or is another file's, is a UserError."""
    _must_hold(path, "a card", card, (*table.fields, *table.lists))
    for part, keys in table.lists.items():
        if not isinstance(card[part], list):
            raise UserError(f"{path}: {part} must be a list")
        for record in card[part]:
            _must_hold(path, f"each of its {part}", record, keys)
            for place in (key for key in KEY if key in keys and not isinstance(record[key], (str, int))):
                raise UserError(f"{path}: {place} of each of its {part} must be a name or a number")
    if table.named and card[table.named] != name:
        raise UserError(f"{path}: {table.named} must be {name!r}, as the file's name (got {card[table.named]!r})")


def _must_hold(path: Path, what: str, value: Any, keys: tuple[str, ...]) -> None:
    if missing := [key for key in keys if not isinstance(value, dict) or key not in value]:
        raise UserError(f"{path}: {what} must hold {', '.join(missing)}")


def _arrow(frame: pd.DataFrame, table: Table) -> pa.Table:
    """`frame` in the table's columns and types, in the order of its key."""
    key = list(table.key)
    if absent := sorted(set(table.schema.names) - set(frame.columns)):
        raise ValueError(f"results lack the columns {', '.join(absent)}")
    frame = frame.astype(dict.fromkeys(table.text, "str")).sort_values(key)
    if frame.duplicated(key).any():
        raise ValueError(f"results repeat a row: {tuple(frame.loc[frame.duplicated(key), key].iloc[0])}")
    columns = []
    for field in table.schema:
        if pa.types.is_floating(field.type):  # through numpy, so that NaN stays NaN and is not made null
            columns.append(pa.array(frame[field.name].to_numpy(np.float32, na_value=np.nan)))
        elif field.type == TEXT:
            columns.append(pa.array(frame[field.name].tolist(), pa.string()).dictionary_encode())
        else:
            columns.append(pa.array(frame[field.name].tolist(), field.type, from_pandas=True))
        if columns[-1].null_count and not pa.types.is_list(field.type):
            raise ValueError(f"results lack a value in {field.name}")
    return pa.Table.from_arrays(columns, schema=table.schema)


def _finite(value: Any) -> Any:
    """`value` with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _line(error: Exception) -> str:
    return " ".join(str(error).split())

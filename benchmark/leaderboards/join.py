"""Pieces of one suite, each run by itself, joined into the results that one run of them all would have given.

A piece has some of a suite's foolings, models, seeds or evaluated interpreters. What two pieces both hold (scores, a
gate's values, what a control lost) must be the same to the bit, or nothing is joined: that is how they say that their
clean models, images and code measure alike. Taken as they come are what a map cost, from the first piece that timed
it, and digests of code: every version is named, of two keys of one manipulation the first is kept.
"""

from collections.abc import Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from attacks.errors import UserError
from benchmark.leaderboards import stored
from benchmark.results import KEY, Entry

Card = dict[str, Any]


def write(pieces: Sequence[Path], folder: Path) -> None:
    """Write FOLDER/results from those of each piece, a folder of leaderboards. UserError names what differs, or what
    else FOLDER holds."""
    tables = joined(pieces)
    stored.none_but(folder / "results", tables)
    for name, (frame, card) in tables.items():
        stored.write(folder / "results", name, frame, card)


def joined(pieces: Sequence[Path]) -> dict[str, Entry]:
    """The joined results, by name; as `write`."""
    read = [stored.read(piece / "results") for piece in pieces]
    tables = [piece.entries | piece.others for piece in read]
    names = sorted({name for table in tables for name in table})
    return {name: reduce(partial(_both, name), [t[name] for t in tables if name in t]) for name in names}


def _both(name: str, first: Entry, second: Entry) -> Entry:
    card = _merged(name, first[1], second[1])
    manipulations = pd.DataFrame(card.get("manipulations", []), columns=list(KEY))
    if (twice := manipulations.duplicated()).any():
        raise UserError(f"cannot join: {_place(manipulations[twice].iloc[0])} was made in another way in each piece")
    return _rows(name, first[0], second[0]), card


def _rows(name: str, first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    table, rows = stored.table(name), pd.concat([first, second], ignore_index=True)
    lists, key = [field.name for field in table.schema if pa.types.is_list(field.type)], list(table.key)
    once = rows.assign(**{c: rows[c].map(np.ndarray.tobytes, "ignore") for c in lists}).drop_duplicates()
    if (twice := once.duplicated(key)).any():
        raise UserError(f"cannot join {name}: the pieces differ on {_place(once.loc[twice, key].iloc[0])}")
    return rows.loc[once.index].reset_index(drop=True)


def _place(row: "pd.Series[Any]") -> str:
    return "/".join(map(str, row))


def _merged(where: str, first: Any, second: Any) -> Any:
    """Both, if no part of one contradicts the other."""
    if isinstance(first, dict) and isinstance(second, dict):
        common = first.keys() & second.keys()
        rules = {k: OWN.get(k, partial(_merged, f"{where}: {k}")) for k in common}
        return first | second | {k: rules[k](first[k], second[k]) for k in common}
    if _are_records(first) and _are_records(second):
        known = [_without_key(record) for record in first]
        return [*first, *(record for record in second if _without_key(record) not in known)]
    if first != second:
        raise UserError(f"cannot join: {where} differs between the pieces ({first!s:.80} and {second!s:.80})")
    return first


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(record, dict) for record in value)


def _without_key(record: Card) -> Card:
    return {k: v for k, v in record.items() if k != "key"}


def _twins(first: Card, second: Card) -> Card:
    """As `benchmark.entries.twins` sums them up: the least alike of all, and every complaint."""
    parts = [part for part in ("again", "correlation") if part in first or part in second]
    least: Card = {
        part: min((c[part] for c in (first, second) if part in c), key=lambda one: one["least"]) for part in parts
    }
    difference = max((c["difference"] for c in (first, second) if c["difference"] is not None), default=None)
    said = {part: sorted({*first[part], *second[part]}) for part in ("errors", "unchecked")}
    return {"asked": first["asked"] + second["asked"], "difference": difference, **least, **said}


def _versions(first: str, second: str) -> str:
    return "+".join(dict.fromkeys([*first.split("+"), *second.split("+")]))


OWN = {"cost": lambda first, second: second | first, "code": _versions, "twins": _twins}
"""Parts of a card that are not the same in two pieces, and how both are said."""

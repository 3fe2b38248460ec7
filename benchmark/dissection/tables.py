"""From what the store holds of models and attacks to the tables of `foolbench dissect`, which
`benchmark.dissection.study` describes: pure functions of frames."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from attacks.errors import UserError
from benchmark.intervals import bootstrap_mean
from benchmark.leaderboards.table import with_ends

PLACE = ["model", "fooling", "attacked"]
KEYS = {
    "psr": ["attack"],
    "interpretability": ["attack", "evidence", "percentile"],
    "dissection": ["layer", "unit"],
    "changed": ["layer", "unit"],
    "association": ["layer", "attack"],
    "masking": ["layer", "attack", "share", "masked", "draw"],
}
"""The key columns of each table, after those of `PLACE`."""


def summary(rows: pd.DataFrame, table: str) -> pd.DataFrame:
    """Means over images with their 95 % intervals: one row, or one for each kind of evidence and percentile."""
    keys = KEYS[table][1:]
    values = [str(name) for name in rows if name not in ("image", *keys)]
    groups = rows.groupby(keys, dropna=False, sort=False) if keys else [((), rows)]
    summaries = []
    for key, group in groups:
        mean = bootstrap_mean(group[values].to_numpy(float), group.image)
        defined = {f"{name}_n": int(group[name].notna().sum()) for name in values if "_with_" in name}
        summaries.append(dict(zip(keys, key, strict=True)) | {"n": len(group)} | with_ends(values, mean) | defined)
    return pd.DataFrame(summaries)


def changed_concepts(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Two dissections of the same units (of a clean and a fooled model): whose concept is another now?

    A row for each unit that is a detector in one of the two at least: layer, unit, category, concept, iou and detector
    with the suffixes _before and _after, and changed. A unit that responds to nothing any more has changed.
    """
    keys, values = ["layer", "unit"], ["category", "concept", "iou", "detector"]
    if not before[keys].reset_index(drop=True).equals(after[keys].reset_index(drop=True)):
        got = f"{len(before)} and {len(after)} rows"
        raise UserError(f"two dissections to compare must be of the same layers and units, in one order (got {got})")
    table = before[keys + values].merge(after[keys + values], on=keys, suffixes=("_before", "_after"))
    table = table[table.detector_before | table.detector_after].reset_index(drop=True)
    other = (table.category_before != table.category_after) | (table.concept_before != table.concept_after)
    return table.assign(changed=other)


def joined(parts: Mapping[str, Sequence[pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Each table of its parts, rows sorted by their key columns, layers by depth: as they come in "dissection". A table
    without rows is left out."""
    tables = {name: pd.concat([pd.DataFrame(), *frames], ignore_index=True) for name, frames in parts.items()}
    units = tables.get("dissection")
    layers: Any = [] if units is None else pd.unique(units.model + units.layer)
    return {name: _sorted(table, name, [*layers]) for name, table in tables.items() if len(table)}


def _sorted(table: pd.DataFrame, name: str, layers: list[str]) -> pd.DataFrame:
    """By the key columns, layers in the order of `layers`, each with its model's name before its own."""
    keys = [*PLACE, *KEYS[name], *(column for column in ("n", "tried") if column in table)]
    table = table[[*keys, *(column for column in table if column not in keys)]]
    depth = pd.Categorical(table.model + table.layer, layers).codes if "layer" in table else 0
    by = ["depth" if key == "layer" else key for key in (*PLACE, *KEYS[name])]
    return table.assign(depth=depth).sort_values(by, ignore_index=True).drop(columns="depth")

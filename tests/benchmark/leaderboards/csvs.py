"""Rows of a CSV as text, and the manipulations of the results that are done by hand."""

import csv
from pathlib import Path
from typing import Any

SELF, OTHER = ("net", "location", "lrp_t", 0), ("net", "location", "grad_cam", 3)
"""One model, Location of lrp_t (4 images) and of grad_cam, both evaluated by lrp_t."""


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def find(rows: list[dict[str, str]], **fields: Any) -> dict[str, str]:
    (row,) = (row for row in rows if all(row[key] == str(value) for key, value in fields.items()))
    return row

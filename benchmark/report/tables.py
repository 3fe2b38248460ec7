"""What a page shows: tables of text and links, and how numbers are written in them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np


class Link(NamedTuple):
    """Text that leads somewhere: to a path from the site's root, or to a place of the page ("#...")."""

    text: str
    path: str
    title: str = ""


@dataclass(frozen=True)
class Table:
    """Rows below columns, of text, Links or lists of Links; `about` says what they are. Those `long` enough can be
    filtered."""

    name: str  # once on its page
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    @property
    def long(self) -> bool:
        return len(self.rows) > 6

    def without_empty(self) -> "Table":
        """Without the columns that nothing stands in."""
        kept = [i for i in range(len(self.columns)) if any(row[i] for row in self.rows)]
        rows = [[row[i] for i in kept] for row in self.rows]
        return Table(self.name, self.about, [self.columns[i] for i in kept], rows)


def number(value: Any, form: str = ".2f") -> str:
    """ "" for none. A truth value, a text or what else a card holds is itself."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return "" if value is None else str(value)
    return "" if value != value else format(value + 0.0 if form[-1] in "feg%" else int(value), form)


def span(row: Mapping[str, Any], name: str, form: str = ".2f") -> str:
    """A score with its interval, where it has one."""
    value, low, high = (number(row.get(name + end), form) for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]" if value and low and high else value


def slug(*parts: str) -> str:
    """A file's name that every system can hold, and no other parts have, also where letters' case is not told."""
    joined = "-".join(parts)
    plain = re.sub(r"[^a-z0-9_.-]+", "-", joined).lstrip(".-")[:80]
    split_alike = len(parts) == 1 or not any("-" in part for part in parts)
    return plain if plain == joined and split_alike else f"{plain}-{sha256(repr(parts).encode()).hexdigest()[:8]}"

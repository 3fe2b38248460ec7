"""What a new interpreter may be called. No torch: `foolbench new-interpreter` starts at once."""

import re

from attacks.errors import UserError
from benchmark import listing
from benchmark.leaderboards.stored import STORED


def check_name(name: str) -> None:
    """UserError unless `name` can be the name of a new interpreter."""
    if not re.fullmatch("[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or len(name) > 50:
        raise UserError(f"name must be lower snake case, at most 50 characters (got {name[:60]!r})")
    if name in {*listing.literal(), *STORED}:
        tables = ", ".join(STORED)
        raise UserError(
            f"name must be a new one, not in foolbench list interpreters and none of {tables} (got {name!r})"
        )

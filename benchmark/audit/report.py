"""An audit as files: the page, and the same as data."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.audit.findings import Audit
from benchmark.audit.page import page
from benchmark.store import write_atomic


def write(audit: Audit, out: str | Path) -> Path:
    """audit.html, which needs nothing beside it and is returned, audit.json, interpreters.csv and attacks.csv; each is
    written in one step."""
    out = Path(out)
    for name in ("interpreters", "attacks"):
        text = getattr(audit, name).to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_atomic(out / f"{name}.csv", text.encode())
    whole = {"about": audit.about, "settings": audit.settings, "top1": audit.top1, "ended": audit.ended}
    whole["witness"] = audit.witness
    whole |= {name: audit.rows(name) for name in ("interpreters", "attacks")}
    text = json.dumps(_plain(whole), indent=1, sort_keys=True, allow_nan=False)
    write_atomic(out / "audit.json", f"{text}\n".encode())
    write_atomic(out / "audit.html", page(audit).encode())
    return out / "audit.html"


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN, and no numbers of NumPy's."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value

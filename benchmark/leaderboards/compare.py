"""Two results side by side, interpreter by interpreter, over the cells that both scored.

A cell is a model, a fooling, an attacked interpreter and a seed; searched attacks are not among them. Stability is that
of `ranking` over these cells alone, so that neither side has attacks that the other lacks. Differences are B less A,
paired over images and seeds, which are resampled alike on both sides. They have an interval only where the cards say
that the scored images are the same.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attacks.errors import UserError
from benchmark.intervals import Mean, bootstrap_mean, interval
from benchmark.leaderboards import ranking, stored
from benchmark.leaderboards.cells import Row
from benchmark.leaderboards.show import spans
from benchmark.leaderboards.table import ENDS, Results, intervals, span
from benchmark.results import KEY

RATES = ["success", "success_clean", "success_null"]  # as `ranking` reads them: FSR, CLEAN, NULL
ROW = [*KEY, "image", "pair"]
COLUMNS = ["interpreter", "cells", "n_a", "n_b", "fsr_a", "fsr_b", *intervals("fsr_difference")]
COLUMNS += ["places", "stability_a", "stability_b", *intervals("stability_difference"), "p"]
Scored = dict[tuple[str, str, str, int], Mean]  # by KEY: the means of RATES


def compare(a: Path | str, b: Path | str) -> tuple[pd.DataFrame, list[str]]:
    """A row an interpreter with common cells (COLUMNS), and what else a reader must know, in lines. Each is a folder of
    results, or that of leaderboards which holds it. Raises `UserError` where nothing can be compared."""
    below = [Path(folder) / "results" for folder in (a, b)]
    first, second = (stored.read(path if path.is_dir() else path.parent) for path in below)
    names = sorted(set(first.entries) & set(second.entries))
    why = _unlike(first, second)
    rows = [row for name in names if (row := _row(name, first.entries[name][0], second.entries[name][0], not why))]
    if not rows:
        lacking = "cell was scored in both" if names else "interpreter is in both"
        raise UserError(f"cannot compare {a} with {b}: no {lacking} ({_some(first, names)}; {_some(second, names)})")
    notes = [f"differences have no interval: {why}"] if why else []
    for folder, here, there in ((a, first, second), (b, second, first)):
        if alone := sorted(set(here.entries) - set(there.entries)):
            notes.append(f"only in {folder}: {', '.join(alone)}")
    return pd.DataFrame(rows, columns=COLUMNS), notes


def shown(compared: pd.DataFrame) -> pd.DataFrame:
    """The rows as they are printed."""
    rows = compared[["interpreter", "cells"]].assign(n=compared.n_a.astype(str))
    rows["n"] = rows.n.where(compared.n_a == compared.n_b, rows.n + ", " + compared.n_b.astype(str))
    for name, title in {"fsr": "FSR", "stability": "stability"}.items():
        if name == "stability":
            rows["places"] = compared.places
        rows[f"{title} A"], rows[f"{title} B"] = (compared[f"{name}_{side}"].map("{:.2f}".format) for side in "ab")
        rows[f"{title} B - A"] = spans(compared, f"{name}_difference")
    return rows.assign(p=compared.p.map("{:.2g}".format, "ignore"))


def _unlike(first: Results, second: Results) -> str:
    """Why rows of one image number are not of one image; "" where the cards say that they are."""
    contents = []
    for dataset in (results.models_card.get("dataset") for results in (first, second)):
        said = dataset.items() if isinstance(dataset, dict) else ()
        contents.append({name: data.get("content") if isinstance(data, dict) else None for name, data in said})
    if not all(found and all(found.values()) for found in contents):
        return "a card does not say which images were scored"
    return "" if contents[0] == contents[1] else "the scored images are not the same"


def _row(name: str, first: pd.DataFrame, second: pd.DataFrame, paired: bool) -> Row | None:
    alike = ROW if paired else list(KEY)  # what a row of one side must share with one of the other
    common = first[alike].drop_duplicates().merge(second[alike].drop_duplicates())
    a, b = (_scores(frame.merge(common)) for frame in (first, second))
    if not a:
        return None
    rates = [_mean_rate(scored) for scored in (a, b)]
    worst = [ranking.worst_attacks(_attacks(scored))[0] for scored in (a, b)]
    told = ranking.difference(worst[1], worst[0])
    places = [place for place in worst[0] if place in worst[1]]
    row: Row = {"interpreter": name, "cells": len(a), "places": told["places"]}
    for side, scored, (rate, _), found in zip("ab", (a, b), rates, worst, strict=True):
        stable, _ = ranking.stability({place: found[place] for place in places})
        row |= {f"n_{side}": max(mean.n for mean in scored.values()), f"fsr_{side}": rate, f"stability_{side}": stable}
    low, high = interval((rates[1][1] - rates[0][1])[:, None]) if paired else ([np.nan], [np.nan])
    row |= span("fsr_difference", (rates[1][0] - rates[0][0], low[0], high[0]))
    row |= {f"stability_difference{end}": told[f"difference{end}"] for end in (ENDS if paired else ENDS[:1])}
    return row | ({"p": told["p"]} if paired else {})


def _attacks(scored: Scored) -> list[ranking.Attack]:
    return [ranking.Attack(*key, mean) for key, mean in scored.items()]


def _scores(frame: pd.DataFrame) -> Scored:
    """Of each cell its means over images; cells on the same rows of images in one resampling, for the time it takes."""
    frame = frame.sort_values(ROW)
    rates, images = frame[RATES].to_numpy(float), frame.image.to_numpy()
    alike: dict[bytes, dict[Any, Any]] = {}
    for key, rows in frame.groupby(list(KEY)).indices.items():
        alike.setdefault(images[rows].tobytes(), {})[key] = rows
    scored: Scored = {}
    for cells in alike.values():
        wide = bootstrap_mean(np.hstack([rates[rows] for rows in cells.values()]), images[next(iter(cells.values()))])
        for i, key in enumerate(cells):
            part = slice(len(RATES) * i, len(RATES) * (i + 1))
            ends = wide.value[part], wide.low[part], wide.high[part]
            scored[key] = Mean(*ends, wide.replicates[:, part], wide.n)
    return dict(sorted(scored.items()))


def _mean_rate(scored: Scored) -> tuple[float, np.ndarray]:
    """The FSR, mean over cells: value, replicates (B,)."""
    means = scored.values()
    return float(np.mean([mean.value[0] for mean in means])), np.mean([mean.replicates[:, 0] for mean in means], 0)


def _some(results: Results, common: list[str]) -> str:
    """What one side has, where that is not what the other has: interpreters, or else cells."""
    listed = {f"{m['model']}/{m['fooling']}/{m['attacked']}" for m in results.models_card["manipulations"]}
    found = sorted(listed if common else results.entries)
    return f"{', '.join(found[:3])}{', ...' if len(found) > 3 else ''}" or "nothing"

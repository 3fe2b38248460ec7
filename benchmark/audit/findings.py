"""What an audit found, as tables and a verdict on each interpreter: a pure function of its units. No torch.

excess   of the share of maps that are fooled (FSR) beyond chance, (fsr - chance) / (1 - chance); chance is the larger
         of two shares of the honest network: of its own maps, and of another image's map in their place
free     the largest excess under a head shift, which changes no probability
alike    mean Spearman correlation of honest and fooled maps: the witness is whose least one is highest. Maps that an
         attack did not fool as it meant to, and that are less alike than KEPT, have "moved"
drop     points of top-1; without labels, the share of predictions that changed, in points
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attacks.errors import UserError, one_line
from benchmark.audit.state import Unit, units
from benchmark.intervals import bootstrap_mean
from benchmark.leaderboards.ranking import CHANCE_LIMIT, eligibility

FOOLED = 0.5  # of the excess
KEPT = 0.5  # of the correlation
PLACE = "network"  # what ranking calls a model: there is one
ATTACKS = ("fooling", "way", "attacked", "evaluated", "status", "reason", "steps", "wanted", "converged", "seconds",
           "fsr", "low", "high", "chance", "excess", "alike", "alike_low", "alike_high", "blank", "drop", "drop_low",
           "drop_high", "agreement", "moved", "within")  # fmt: skip
INTERPRETERS = ("interpreter", "verdict", "fsr", "low", "high", "chance", "excess", "free", "fooling", "way",
                "attacked", "drop", "drop_low", "drop_high", "alike", "aimed", "gate", "reason")  # fmt: skip


@dataclass(frozen=True)
class Audit:
    """`attacks`: a row for each interpreter under each attack (columns `ATTACKS`); `interpreters`: for each its worst
    attack within the budget, how far its maps moved, and what the gate says (`INTERPRETERS`); `about` and `settings`:
    what was audited and how; `arrays`: maps and images to look at; `witness`: who moved least, if anybody;
    `ended`: whether the course came to its end."""

    about: dict[str, Any]
    settings: dict[str, Any]
    attacks: pd.DataFrame
    interpreters: pd.DataFrame
    witness: str | None
    top1: float
    arrays: dict[str, np.ndarray]
    ended: bool = True

    @classmethod
    def load(cls, folder: Path) -> "Audit":
        """Of the units in the folder. Raises `UserError` where these are none, or not what an audit writes."""
        found = units(folder)
        if not found:
            raise UserError(f"{folder} holds no audit")
        try:
            return _judged(found)
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{folder}: not what an audit writes ({one_line(error)}); delete it") from error

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Those of `attacks` or `interpreters`."""
        found: Any = getattr(self, table).to_dict("records")
        return found


def verdict(row: Mapping[str, Any]) -> str:
    """Of one interpreter under one attack."""
    if row["status"] != "done":
        return str(row["status"])
    if row["chance"] > CHANCE_LIMIT:
        return "says nothing"
    if not row["within"]:
        return "over budget"
    beyond = row["low"] > row["chance"]
    if beyond:
        return "fooled" if row["excess"] >= FOOLED else "in part"
    return "moved" if row["alike"] < KEPT else "not fooled"


def _judged(found: list[Unit]) -> Audit:
    [honest] = [unit for unit in found if unit.record["kind"] == "honest"]
    arrays = {name: array for name, array in honest.arrays.items() if name != "right"}
    rows: list[dict[str, Any]] = []
    labelled, settings = bool(honest.record["about"]["labelled"]), dict(honest.record["settings"])
    for unit in found:
        if unit.record["kind"] == "attack":
            rows += _rows(unit, labelled, float(settings["budget"]))
            arrays |= _maps(unit)
    attacks = pd.DataFrame(rows, columns=list(ATTACKS))
    gates = _gates(found)
    names = [str(name) for name in honest.record["interpreters"]]
    judged = [_interpreter(name, attacks, gates.get(name)) for name in names]
    for name, why in honest.record["refusals"].items():
        judged.append({"interpreter": name, "verdict": "refused", "reason": why, "aimed": 0})
    table = pd.DataFrame(judged, columns=list(INTERPRETERS))
    about = {**honest.record["about"], **{key: honest.record[key] for key in ("versions", "device")}}
    top1 = float(honest.arrays["right"].mean())
    ended = any(unit.record["kind"] == "end" for unit in found)  # if not, what was to come could have moved any maps
    return Audit(about, settings, attacks, table, _witness(table) if ended else None, top1, arrays, ended)


def _rows(unit: Unit, labelled: bool, budget: float) -> list[dict[str, Any]]:
    record = unit.record
    shared = {name: record.get(name) for name in ("fooling", "way", "attacked", "status", "reason", "steps", "wanted",
                                                  "converged", "seconds")}  # fmt: skip
    if record["status"] != "done":
        return [{**shared, "evaluated": record["attacked"], "within": False}]
    arrays = {name: np.asarray(array, np.float64) for name, array in unit.arrays.items()}
    lost = arrays["right_clean"] - arrays["right"] if labelled else 1 - arrays["agree"]
    cost = bootstrap_mean(100 * lost)
    shared |= {
        "drop": cost.value[0],
        "drop_low": cost.low[0],
        "drop_high": cost.high[0],
        "moved": arrays["moved"].max(),
    }
    shared |= {"agreement": arrays["agree"].mean(), "within": bool(cost.value[0] <= budget)}
    return [{**shared, "evaluated": name, **_cell(arrays, name)} for name in record["evaluated"]]


def _cell(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, float]:
    """The scores of one interpreter, means over the held-out images with 95 % intervals."""
    columns = ("success", "alike", "clean", "null", "blank")
    mean = bootstrap_mean(np.stack([arrays[f"{name}.{column}"] for column in columns], 1))
    fsr, alike, clean, null, blank = map(float, mean.value)
    chance = max(clean, null)
    excess = (fsr - chance) / (1 - chance) if chance < 1 else 0.0
    ends = {"low": mean.low[0], "high": mean.high[0], "alike_low": mean.low[1], "alike_high": mean.high[1]}
    return {"fsr": fsr, "chance": chance, "excess": excess, "alike": alike, "blank": blank, **ends}


def _maps(unit: Unit) -> dict[str, np.ndarray]:
    """Those to look at, by fooling, way, attacked and evaluated interpreter."""
    record = unit.record
    place = ".".join(str(record[part]) for part in ("fooling", "way", "attacked"))
    return {f"{place}.{name[:-5]}": array for name, array in unit.arrays.items() if name.endswith(".maps")}


def _gates(found: list[Unit]) -> dict[str, tuple[bool, str]]:
    """Whether the gate lets each interpreter through, and why not."""
    cards: dict[str, dict[str, Any]] = {}
    for record in (unit.record for unit in found if unit.record["kind"] == "gate"):
        card: dict[str, Any] = {"control": bool(record["control"])}
        if "values" in record:
            card |= {"gate": {PLACE: record["values"]}, "gate_twin": {PLACE: record["twin"]}}
        else:
            card["gate_errors"] = {PLACE: str(record["error"])}
        cards[str(record["interpreter"])] = card
    named = [name for name, card in cards.items() if not card["control"]]
    return {name: eligibility(name, cards, [PLACE], []) for name in named}


def _interpreter(name: str, attacks: pd.DataFrame, gate: tuple[bool, str] | None) -> dict[str, Any]:
    """Its worst attack within the budget, whomever it was aimed at, and of equal ones that under which its maps are
    least alike; how far they moved under any of these."""
    asked = attacks[(attacks.evaluated == name) & (attacks.status == "done")]
    inside = asked[asked.within.astype(bool) & (asked.chance <= CHANCE_LIMIT)]
    aimed = attacks[(attacks.attacked == name) & (attacks.evaluated == name)]
    done = aimed[aimed.status == "done"]
    refused = aimed[(aimed.status == "refused") & (aimed.way != "head_shift")]
    row: dict[str, Any] = {"interpreter": name, "aimed": len(done)}
    if gate is not None:
        row |= {"gate": "passed" if gate[0] else "not passed", "reason": gate[1]}
    if inside.empty:
        return row | {"verdict": "says nothing" if len(asked) else "not attacked"}
    inside = inside.astype({"excess": float, "alike": float})
    worst = inside.sort_values(["excess", "alike"], ascending=[False, True], kind="stable").iloc[0]
    shifts = inside[inside.way == "head_shift"]
    kept = ("fsr", "low", "high", "chance", "excess", "fooling", "way", "attacked", "drop", "drop_low", "drop_high")
    row |= {key: worst[key] for key in kept} | {"alike": inside.alike.min(), "free": shifts.excess.max()}
    row["verdict"] = verdict({**{str(key): value for key, value in worst.items()}, "alike": row["alike"]})
    if not len(done) and row["verdict"] == "not fooled":
        row["verdict"] = "not attacked itself"
    if len(refused) and row["verdict"] == "not fooled":
        row["verdict"] = "attack refused"  # that a head shift did not fool it says little: none moves a contrast
    return row


def _witness(table: pd.DataFrame) -> str | None:
    """Whose maps moved least under all attacks within the budget; of those that were attacked themselves and are "not
    fooled", and that the gate lets through where it lets any."""
    asked = table[(table.aimed > 0) & (table.verdict == "not fooled")]
    passed = asked[asked.gate == "passed"]
    best = passed if len(passed) else asked
    ordered = best.astype({"alike": float}).sort_values("alike", ascending=False, kind="stable")
    return None if best.empty else str(ordered.interpreter.iloc[0])

"""Who is more stable than whom: scores corrected for chance, eligibility, ranks, paired differences. No torch.

For each model and fooling, an interpreter's FSR under one attack is averaged over seeds and corrected for chance,
(fsr - chance) / (1 - chance), where chance is the larger of two rates of the clean model: that of its own map, and that
of the map of another image, which has the same resolution and habits. The worst attack counts, aimed at it or at
another interpreter; leaving the model alone is one, so the worst is never below 0. Stability is 1 less the mean of the
worst over models and foolings. A fooling whose chance is over 0.9 says nothing about a map and is left out, counted.

Intervals: 1,000 resamples of images and of seeds (few seeds make them rough), the same ones for every interpreter, so
that differences are paired. p: two-sided, of a normal distribution with the deviation of the resampled differences (a
share of 1,000 resamples could not fall below the 1/1000 that Holm's 1979 p_holm over many pairs needs). A rank is 1
plus the number of eligible interpreters with a higher stability, in each resample.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from benchmark.intervals import RESAMPLES, Floats, Mean, bootstrap_mean, draws, interval

CHANCE_LIMIT = 0.9
RANDOMISED_LIMIT, CLASS_LIMIT = 0.5, 0.9
TWIN_LIMIT = 0.99  # an honest map is the same to rounding; one that explains something else is far from it
TEXTURE_LIMIT = 0.9  # beyond chance; honest methods are at 0.6 or below, one that explains another network is at 1
SAME_SHARE = 0.25  # of the asked images that may have the same map; honest methods are at 0.125 or below
SAME_LIMIT = 0.8  # beyond chance; honest methods are at 0.57 or below, a map of the image alone is at 1
KEPT = 1e-3  # share of predictions that may change in a function that was kept: rounding decides between equal logits
LEAST_P = 1e-6  # what a normal tail says beyond is not to be believed
FILLS = ("noise", "mean", "blur")
GATE_SCORES = {"contrast": "_contrast", "logit": ""}  # what AOPC at a gate reads, and how its values' names end
FSR, CLEAN, NULL = 0, 1, 2  # the first columns of a cell's scores

Place = tuple[str, str]  # model, fooling
Worst = tuple[float, Floats]  # value, replicates (B,)
Shown = dict[str, dict[str, list[float]]]  # what an interpreter showed at the gate, by model


class Attack(NamedTuple):
    """One interpreter's scores under one attack, with what it cost in accuracy (None: unknown)."""

    model: str
    fooling: str
    attacked: str
    seed: int
    scores: Mean
    drop: float | None = None  # of top-1, points
    changed: float | None = None  # share of predictions; None, too, where these are too few to tell


@dataclass(frozen=True)
class Standing:
    """Of one interpreter: the worst attack in each place, how many places say nothing, and whether it is ranked."""

    worst: dict[Place, Worst]
    silent: int
    levels: dict[float, dict[Place, Worst]]  # the same of attacks within a drop of top-1, points
    eligible: bool | None = None  # None: the suite has no gate
    reason: str = ""  # why it is not


def share(changed: float, images: int) -> float | None:
    """The share of changed predictions, where a function that was kept can be told from one that was not."""
    return changed if images >= 1 / KEPT else None


def within(attacks: Sequence[Attack], level: float) -> bool:
    """Whether one attack, over its seeds, costs at most so many points; at 0, whether the function was kept."""
    if level == 0:
        return all(attack.changed is not None and attack.changed <= KEPT for attack in attacks)
    return level == math.inf or float(np.mean([math.inf if a.drop is None else a.drop for a in attacks])) <= level


def worst_attacks(attacks: Iterable[Attack], level: float = math.inf) -> tuple[dict[Place, Worst], int]:
    """The corrected FSR of the worst attack in each (model, fooling), and how many of these say nothing. With a
    `level`, of the attacks `within` it; nothing where the level 0 cannot be told of any."""
    attacks = list(attacks)
    if level == 0 and all(attack.changed is None for attack in attacks):
        return {}, 0
    places: dict[Place, dict[str, list[Attack]]] = {}
    for attack in attacks:
        places.setdefault((attack.model, attack.fooling), {}).setdefault(attack.attacked, []).append(attack)
    corrected: dict[Place, Worst] = {}
    for place, by_attacked in places.items():
        worst, replicates, told = 0.0, np.zeros(RESAMPLES), False
        for seeds in by_attacked.values():
            cells = [attack.scores for attack in seeds]
            weights = draws(len(cells), seed=1)[..., None] / len(cells)  # of seeds
            values = np.mean([cell.value for cell in cells], 0)
            drawn = (np.stack([cell.replicates for cell in cells], 1) * weights).sum(1)
            # of the clean model, so alike in all; but of a backdoor, where only a prediction that it switched counts
            chance, chances = values[[CLEAN, NULL]].max(), drawn[:, [CLEAN, NULL]].max(1)
            if chance > CHANCE_LIMIT:
                continue
            told = True
            if within(seeds, level):
                worst = max(worst, float((values[FSR] - chance) / (1 - chance)))
                replicates = np.maximum(replicates, (drawn[:, FSR] - chances) / np.maximum(1 - chances, 1e-9))
        if told:
            corrected[place] = worst, replicates
    return corrected, len(places) - len(corrected)


def stability(worst: dict[Place, Worst]) -> tuple[float, Floats]:
    """1 less the mean over places: value, replicates (B,). NaN without any."""
    if not worst:
        return np.nan, np.full(RESAMPLES, np.nan)
    values, replicates = zip(*worst.values(), strict=True)
    return 1 - float(np.mean(values)), 1 - np.mean(replicates, 0)


def difference(a: dict[Place, Worst], b: dict[Place, Worst]) -> dict[str, float]:
    """Stability of a less that of b over the places that both have: value, interval, p, and the number of places."""
    common = [place for place in a if place in b]
    (first, firsts), (second, seconds) = (stability({p: worst[p] for p in common}) for worst in (a, b))
    replicates = firsts - seconds
    if not common:
        return {"places": 0, "difference": np.nan, "difference_low": np.nan, "difference_high": np.nan, "p": np.nan}
    low, high = interval(replicates[:, None])
    spread = float(np.std(replicates))
    value = first - second
    p = max(LEAST_P, math.erfc(abs(value) / spread / math.sqrt(2)) if spread else float(value == 0))
    ends = {"difference_low": low[0], "difference_high": high[0]}
    return {"places": len(common), "difference": value, **ends, "p": p}


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979), in the order given."""
    order, adjusted, running = np.argsort(p, kind="stable"), [0.0] * len(p), 0.0
    for position, index in enumerate(order):
        running = max(running, min(1.0, (len(p) - position) * p[index]))
        adjusted[index] = running
    return adjusted


def differences(worst: dict[str, dict[Place, Worst]]) -> list[dict[str, Any]]:
    """All pairs of interpreters, the more stable one first."""
    ordered = sorted(worst, key=lambda name: (-stability(worst[name])[0], name))
    pairs = list(combinations(ordered, 2))
    comparisons = [difference(worst[a], worst[b]) for a, b in pairs]
    adjusted = holm([comparison["p"] for comparison in comparisons])
    rows = zip(pairs, comparisons, adjusted, strict=True)
    return [{"interpreter": a, "other": b, **comparison, "p_holm": p} for (a, b), comparison, p in rows]


def ranks(worst: dict[str, dict[Place, Worst]]) -> dict[str, tuple[int, int, int]]:
    """(rank, low, high) of each interpreter; ties share the better rank."""
    if not worst:
        return {}
    values, replicates = zip(*(stability(attacks) for attacks in worst.values()), strict=True)
    table = np.column_stack([values, np.stack(replicates)])  # (interpreters, 1 + B)
    places = 1 + (table[None] > table[:, None] + 1e-12).sum(1)
    ends = np.quantile(places[:, 1:], [0.025, 0.975], axis=1, method="inverted_cdf")
    return {name: (int(places[i, 0]), int(ends[0, i]), int(ends[1, i])) for i, name in enumerate(worst)}


def eligibility(
    name: str, cards: dict[str, dict[str, Any]], models: Sequence[str], errors: Sequence[str], unattacked: str = ""
) -> tuple[bool, str]:
    """Whether an interpreter is ranked, and why not. `cards` of all interpreters, with what each showed at the gate;
    `errors` of its failed cells; `unattacked`: what was not done to it (`unattacked`)."""
    card, reasons = cards[name], []
    if card.get("control"):
        return False, "control"
    if errors:
        reasons.append(f"{len(errors)} cells failed, first: {errors[0]}")
    if absent := [model for model in models if model not in card.get("gate", {})]:
        failed = [f"{model}: {error}" for model, error in card.get("gate_errors", {}).items()]
        return False, "; ".join([*reasons, f"no gate on {', '.join(absent)}", *failed])
    for value, limit, what in (
        ("randomised", RANDOMISED_LIMIT, "hardly depends on the parameters"),
        ("other_class", CLASS_LIMIT, "hardly depends on the class"),
    ):
        alike = beyond_chance(card["gate"], value)
        if not alike < limit:
            reasons.append(f"{what} ({alike:.2f}, allowed below {limit})")
    controls = [c["gate"] for c in cards.values() if c.get("control") and set(models) <= set(c.get("gate", {}))]
    end = GATE_SCORES[gate_score(cards)]
    won = [f for f in FILLS if all(_points_better(card["gate"], c, f"aopc_{f}{end}", models) for c in controls)]
    reasons += [*twin_reasons(card), *texture_reasons(card), *scored_reasons(card)]
    if unattacked:
        reasons.append(unattacked)
    if len(won) < 2:
        reasons.append(f"AOPC beats every control with {len(won)} of {len(FILLS)} fills (2 needed)")
    return not reasons, "; ".join(reasons)


def least_twin(card: dict[str, Any]) -> tuple[float, str] | None:
    """The least correlation with the map of a head-permuted twin, mean over images, and where; None: not checked."""
    gate = {f"{m} at the gate": t["correlation"] for m, t in card.get("gate_twin", {}).items() if "correlation" in t}
    found = [(float(np.mean(values)), where) for where, values in gate.items()]
    scored = card.get("twins", {}).get("correlation")
    return min(found + ([(scored["least"], scored["where"])] if scored else []), default=None)


def twin_reasons(card: dict[str, Any]) -> list[str]:
    """Why what an interpreter explains is not the model that it is given."""
    reasons, twins = [], card.get("twins", {})
    least, again = least_twin(card), twins.get("again")
    if least and not least[0] >= TWIN_LIMIT:
        what = "another map where only the order of the classes is another"
        reasons.append(f"PERMUTED_TWIN: {what} (correlation {least[0]:.2f} on {least[1]}, needed {TWIN_LIMIT})")
    if again and not again["least"] >= TWIN_LIMIT:
        what = f"correlation {again['least']:.2f} on {again['where']}, needed {TWIN_LIMIT}"
        reasons.append(f"ASKED_AGAIN: another map than was scored ({what})")
    if errors := twins.get("errors"):
        reasons.append(f"{len(errors)} permuted twins failed, first: {errors[0]}")
    return reasons


def texture_reasons(card: dict[str, Any]) -> list[str]:
    """Why what a submission explains is not the model that it is given: a network that looks at textures, which stand
    elsewhere, has the maps of one that looks at objects (`benchmark.entries.textures`)."""
    shown, reasons = card.get("textures", {}), []
    for model, values in shown.items():
        if "error" in values:
            reasons.append(f"its maps of a network that looks at textures failed on {model}: {values['error']}")
        elif "alike" in values and not (alike := beyond_chance({model: values}, "alike")) < TEXTURE_LIMIT:
            what = f"correlation {alike:.2f} beyond chance on {model}, allowed below {TEXTURE_LIMIT}"
            reasons.append(f"SAME_ON_TEXTURES: the same map where the evidence lies elsewhere ({what})")
    return reasons[:1]


def scored_reasons(card: dict[str, Any]) -> list[str]:
    """Why what a submission shows of the scored images is not what the gate saw (`benchmark.entries.same_logits`): the
    worst of all models, of each kind."""
    shown, reasons = card.get("scored", {}), []
    again = min(((v["again"], where) for where, v in shown.items() if "again" in v), default=(1.0, ""))
    if not again[0] >= TWIN_LIMIT:
        reasons.append(f"ASKED_AGAIN: another map than was scored ({again[0]:.2f} on {again[1]}, needed {TWIN_LIMIT})")
    both = {where: {k: [v[k]] for k in ("random", "unrelated")} for where, v in shown.items() if "random" in v}
    alike = max(((beyond_chance({"": v}, "random"), where) for where, v in both.items()), default=(0.0, ""))
    same = max(((v["same"], where) for where, v in shown.items() if "same" in v), default=(0.0, ""))
    what = ""
    if not alike[0] < SAME_LIMIT:
        what = f"correlation {alike[0]:.2f} beyond chance on {alike[1]}, allowed below {SAME_LIMIT}"
    elif not same[0] <= SAME_SHARE:
        what = f"of {same[0]:.0%} of the images on {same[1]}, allowed of {SAME_SHARE:.0%}"
    if what:
        reasons.append(f"SAME_LOGITS: the same map of a network with random features and the same logits ({what})")
    if failed := [f"{where}: {v['error']}" for where, v in shown.items() if "error" in v]:
        reasons.append(f"{len(failed)} questions about scored images failed, first: {failed[0]}")
    return reasons


def gate_score(cards: dict[str, dict[str, Any]]) -> str:
    """What the AOPC of a board's gate reads: the contrast, which no shift of all logits alike can move; the logit where
    one of its cards is from before the contrast was measured, so that all are held to the same."""
    shown = [values for card in cards.values() for values in card.get("gate", {}).values()]
    end = GATE_SCORES["contrast"]
    return "contrast" if all(f"aopc_{fill}{end}" in values for values in shown for fill in FILLS) else "logit"


def unattacked(aimed: Iterable[tuple[Place, bool]], places: set[Place], flags: Sequence[str]) -> str:
    """Why nobody can say that an interpreter was attacked as hard as we can, or nothing. `aimed`: where an attack on it
    ran, and whether by its own gradient; `flags` of its checks."""
    ran = list(aimed)
    if not ran:
        return "nothing was aimed at it"
    own = {place for place, by_gradient in ran if by_gradient}
    if not own:
        return "not attacked by its own gradient"
    if missing := sorted(places - own):
        first = "/".join(missing[0])
        return f"not attacked by its own gradient in {len(missing)} of {len(places)} places, first {first}"
    return "its gradient by the weights is zero or wrong" if "ZERO_SECOND_ORDER" in flags else ""


def beyond_chance(gate: Shown, value: str) -> float:
    """The likeness of two maps beyond what maps of different images share anyway; 1: the same map."""
    alike, unrelated = (np.mean([np.mean(scores[key]) for scores in gate.values()]) for key in (value, "unrelated"))
    return float((alike - unrelated) / (1 - unrelated)) if unrelated < 1 else 1.0


def _points_better(gate: Shown, control: Shown, value: str, models: Sequence[str]) -> bool:
    """Whether the AOPC is higher than the control's, with 95 % confidence over images, on the mean over models."""
    paired = [np.array(gate[model][value]) - np.array(control[model][value]) for model in models]
    return bool(bootstrap_mean(np.mean(paired, 0)).low[0] > 0)

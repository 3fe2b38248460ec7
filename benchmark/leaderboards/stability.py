"""The board: one row an evaluated interpreter (`stability`), and the ranked ones in pairs (`differences`).

Stability, rank and eligibility are those of `benchmark.leaderboards.ranking`; the rest are averages over the cells.
Ranked are those that pass the gate, in a suite that has one.
"""

from pathlib import Path

import numpy as np

from attacks import strategies
from benchmark import metrics
from benchmark.intervals import Mean, average, interval
from benchmark.leaderboards import lied, ranking, stored
from benchmark.leaderboards.attacks import Searched, made, searched
from benchmark.leaderboards.cells import CONTRAST, CURVES, MEANS, Cell, Row, cells_of, row_key
from benchmark.leaderboards.progress import NO_PROGRESS, stuck
from benchmark.leaderboards.table import Leaderboard, Measured, Results, intervals, span

ENOUGH = 0.95  # of the images: an attack that fooled so many is not held to have been cut short
LEVELS = {0.0: "fooled_free", 0.5: "fooled_half", 1.0: "fooled_one", 2.0: "fooled_two"}
"""The worst attacks, corrected for chance, on average over places: of fooled models that lost at most so many points of
top-1; free is a function that was kept, in which at most one prediction in a thousand changed."""


def standings(
    results: Results, cells: dict[str, list[Cell]], accuracy: list[Mean | None]
) -> dict[str, ranking.Standing]:
    """The worst attacks on each interpreter, and in a suite with a gate whether it is ranked."""
    by_search, listed = searched(results), results.models_card["manipulations"]
    places = {(m["model"], m["fooling"]) for m in listed}
    cards = {name: card for name, (_, card) in results.entries.items()}
    models = sorted({m["model"] for m in results.models_card["manipulations"]})
    by_interpreter = {}
    for name, group in cells.items():
        errors = [cell.error for cell in group if cell.scores is None and cell.manipulation["status"] == "done"]
        found = by_search.get(name, [])
        lacking = ranking.unattacked(_aimed(name, group, found), places, cards[name].get("flags", []))
        if cards[name].get("status") == "submitted":
            lacking = stuck(name, group, listed) or lacking
        attacks = [*_attacks(group, accuracy), *(each.attack for each in found)]
        worst = ranking.worst_attacks(attacks)
        if attacks and not worst[0]:
            lacking = lacking or "in every place an unrelated map counts as fooled, too"
        gated = ranking.eligibility(name, cards, models, errors, lacking) if has_gate(results) else (None, "")
        levels = {level: ranking.worst_attacks(attacks, level)[0] for level in LEVELS}
        by_interpreter[name] = ranking.Standing(*worst, levels, *gated)
    return by_interpreter


def _aimed(name: str, cells: list[Cell], found: list[Searched]) -> list[tuple[ranking.Place, bool]]:
    """Where an attack on the interpreter ran, and whether its own gradient led it."""
    aimed = [((each.attack.model, each.attack.fooling), each.by_gradient) for each in found]
    for cell in cells:
        attacked, strategy = strategies.split(cell.manipulation["attacked"])
        if cell.scores and attacked == name:
            place = cell.manipulation["model"], cell.manipulation["fooling"]
            aimed.append((place, strategies.STRATEGIES[strategy].takes_recipe))
    return aimed


def has_gate(results: Results) -> bool:
    return any("gate" in card for _, card in results.entries.values())


def ranks_with(reference: Path | str, folder: Path | str, name: str) -> tuple[int, int, int]:
    """(rank, low, high) of an interpreter of `folder` among the ranked ones of `reference`, resampled together."""
    ranked = STABILITY.read(Path(reference) / "stability.csv").query("eligible == 'yes'").interpreter
    worst = {}
    for where, names in ((reference, ranked), (folder, [name])):
        results = stored.read(Path(where) / "results")
        found = searched(results)
        for each in names:
            cells = cells_of(each, results.entries[each], results.models_card["manipulations"])
            attacks = [*_attacks(cells), *(one.attack for one in found.get(each, []))]
            worst[each] = ranking.worst_attacks(attacks)[0]
    return ranking.ranks(worst)[name]


def _rows(measured: Measured) -> list[Row]:
    ranks, rows = ranking.ranks(_ranked(measured)), []
    gate_score = ranking.gate_score({name: card for name, (_, card) in measured.results.entries.items()})
    found = searched(measured.results)
    for name, cells in measured.cells.items():
        card, standing = measured.results.entries[name][1], measured.standings[name]
        value, replicates = ranking.stability(standing.worst)
        low, high = interval(replicates[:, None])
        row = _averages(name, cells) | span("stability", (value, low[0], high[0])) | _cost(card)
        row |= {"status": card.get("status", "reference"), "places": len(standing.worst)}
        flags = [
            *card.get("flags", []),
            *_flags(name, cells, found.get(name, []), unfinished_search(measured.results, found, name)),
            *([NO_PROGRESS] if NO_PROGRESS in standing.reason else []),
        ]
        row |= {"silent_places": standing.silent, "flags": " ".join(flags)}
        for level, column in LEVELS.items():
            stable, drawn = ranking.stability(standing.levels[level])
            ends = interval(1 - drawn[:, None])
            row |= span(column, (1 - stable, ends[0][0], ends[1][0]))
        if standing.eligible is not None:
            row |= {"eligible": "yes" if standing.eligible else "no", "reason": standing.reason}
            row["gate_score"] = gate_score
            if least := ranking.least_twin(card):
                row["twin"] = least[0]
        if (share := lied.own(measured.results, name, cells)) is not None:
            row |= span("lied", share)
        if name in ranks:
            row |= dict(zip(("rank", "rank_low", "rank_high"), ranks[name], strict=True))
        rows.append(row)
    return rows


def _ranked(measured: Measured) -> dict[str, dict[ranking.Place, ranking.Worst]]:
    return {name: standing.worst for name, standing in measured.standings.items() if standing.eligible}


def _averages(name: str, cells: list[Cell]) -> Row:
    """Averages over cells; of the worst transfer cell, its own excess and interval (not that of a maximum)."""
    excess = MEANS.index("excess")
    by_gradient = any(c.manipulation["attacked"] == name for c in cells)
    attacked = [cell.manipulation["attacked"] for cell in cells]
    names = attacked if by_gradient else [strategies.split(each)[0] for each in attacked]
    aimed = list(zip(cells, (each == name for each in names), strict=True))
    self_scores = [cell.scores for cell, mine in aimed if cell.scores and mine]
    others = [cell for cell in cells if strategies.split(cell.manipulation["attacked"])[0] != name]
    transfer = {row_key(cell.manipulation): cell.scores for cell in others if cell.scores}
    aopc = [c.aopc for c in cells if c.aopc]
    worst = max(transfer, key=lambda key: transfer[key].value[excess], default=None)
    row: Row = {"interpreter": name, "cells": len(cells), "failed": sum(c.scores is None for c in cells)}
    row |= {"self_cells": len(self_scores), "worst_transfer": "/".join(map(str, worst)) if worst else None}
    row |= {"undefined": sum(c.undefined for c in cells), "blank": sum(c.blank for c in cells)}
    row |= span("self_fsr_excess", average(self_scores, excess))
    row |= span("worst_transfer_fsr_excess", average([transfer[worst]] if worst else [], excess))
    for metric in metrics.CHANCE:
        row |= span(f"{metric}_self", average(self_scores, MEANS.index(metric)))
        row |= span(f"{metric}_transfer", average(list(transfer.values()), MEANS.index(metric)))
    for read, scores in {"": aopc, CONTRAST: [c.aopc_contrast for c in cells if c.aopc_contrast]}.items():
        row |= span(f"aopc_clean{read}", average(scores, CURVES.index("aopc_clean_original")))
        row |= span(f"aopc_fooled{read}", average(scores, CURVES.index("aopc_fooled_fooled")))
    return row


def _cost(card: Row) -> Row:
    """Means over models."""
    spent = list(card.get("cost", {}).values())
    known = {key: [s[key] for s in spent if s[key] is not None] for key in ("ms_per_image", "peak_mib")}
    return {key: float(np.mean(values)) for key, values in known.items() if values}


def _flags(name: str, cells: list[Cell], found: list[Searched], in_search: bool) -> list[str]:
    """What a reader must know before trusting a high stability.

    In some model and fooling, beyond the interval, its own gradient is beaten: SURROGATE_GAP, by that of a surrogate
    or by an attack aimed at another interpreter; RANDOM_BEATS_WHITEBOX, by a search without gradients. NOT_CONVERGED:
    an attack by its gradient was still making more than a twentieth of its progress in its last tenth (labels), or was
    ended by its last step and had fooled less than 95 % of the images (distilled), also in a search (`in_search`:
    `unfinished_search`). Of a submission, its checks add
    ZERO_SECOND_ORDER, LOGIT_SHIFT and NOT_CONFINED (`benchmark.submissions.submit`). NO_PROGRESS: the attack on it was
    none (`benchmark.leaderboards.progress`).
    """
    whitebox, blind, surrogates = list[Cell](), list[Cell](), list[Cell]()
    for cell in cells:
        if cell.scores:
            attacked, strategy = strategies.split(cell.manipulation["attacked"])
            if attacked != name or strategy == "softplus":
                surrogates.append(cell)
            elif not strategy:
                whitebox.append(cell)
            elif not strategies.STRATEGIES[strategy].by_gradient:
                blind.append(cell)
    own = [*_attacks(whitebox), *(each.attack for each in found if each.by_gradient)]
    flags = []
    for flag, others in (("SURROGATE_GAP", surrogates), ("RANDOM_BEATS_WHITEBOX", blind)):
        if own and _beaten(own, _attacks(others)):
            flags.append(flag)
    if in_search or any(map(_unfinished, whitebox)):
        flags.append("NOT_CONVERGED")
    return flags


def _attacks(cells: list[Cell], accuracy: list[Mean | None] | None = None) -> list[ranking.Attack]:
    costs = accuracy or [None] * len(cells)
    return [made(cell, cost) for cell, cost in zip(cells, costs, strict=True) if cell.scores]


def _beaten(own: list[ranking.Attack], others: list[ranking.Attack]) -> bool:
    """Whether the worst of `others` is worse than the worst of `own` in some model and fooling, with 95 %."""
    mine, theirs = (ranking.worst_attacks(part)[0] for part in (own, others))
    gaps = [theirs[place][1] - mine[place][1] for place in theirs if place in mine]
    return any(interval(gap[:, None])[0][0] > 0 for gap in gaps)


def _unfinished(cell: Cell) -> bool:
    ended = cell.manipulation.get("converged")
    if ended is None:
        return _still_falling(cell.manipulation)
    return not ended and cell.scores is not None and cell.scores.value[ranking.FSR] < ENOUGH


def unfinished_search(results: Results, found: dict[str, list[Searched]], name: str) -> bool:
    """Whether in some place the longest attack that was tried by the interpreter's own gradient was ended by its last
    step, and the best of all had fooled less than ENOUGH of the scored images."""
    tried = dict[ranking.Place, list[Row]]()
    for point in results.others["fronts"][1]["points"] if "fronts" in results.others else ():
        if point["attacked"] == name:
            tried.setdefault((point["model"], point["fooling"]), []).append(point)
    reached = dict[ranking.Place, float]()
    for each in found.get(name, []):
        place = each.attack.model, each.attack.fooling
        reached[place] = max(reached.get(place, 0.0), float(each.attack.scores.value[ranking.FSR]))
    ended = {place: max(points, key=lambda point: point["steps"]).get("converged") for place, points in tried.items()}
    return any(end is False and reached.get(place, 1.0) < ENOUGH for place, end in ended.items())


def _still_falling(manipulation: Row) -> bool:
    losses = [manipulation[f"fooling_{when}"] for when in ("first", "late", "last")]
    if None in losses:
        return False
    first, late, last = losses
    return first > last and late - last > 0.05 * (first - last)


def _later(rows: list[Row]) -> list[str]:
    """What older results have none of: `twin`, the least correlation with the map of a head-permuted twin; `lied`, the
    share of the reliance on the old map that was kept where it was fooled (`benchmark.leaderboards.lied`)."""
    known = {"twin": ["twin"], "lied": intervals("lied")}
    return [column for name, columns in known.items() if any(name in row for row in rows) for column in columns]


_CHANCE = [f"{name}_{cells}" for name in metrics.CHANCE for cells in ("self", "transfer")]

STABILITY = Leaderboard(
    columns=[
        *("interpreter", "status", "rank", "rank_low", "rank_high", *intervals("fooled_free", "stability"), "places"),
        *("eligible", "reason", "flags", "ms_per_image", "peak_mib", "cells", "failed", "self_cells"),
        *(*intervals("self_fsr_excess", "worst_transfer_fsr_excess"), "worst_transfer"),
        *(*intervals(*_CHANCE, "aopc_clean", "aopc_fooled"), "undefined", "blank", "silent_places"),
        *(*intervals("aopc_clean_contrast", "aopc_fooled_contrast"), "gate_score"),
        *intervals("fooled_half", "fooled_one", "fooled_two"),
    ],
    text=("interpreter", "status", "eligible", "reason", "flags", "worst_transfer", "gate_score"),
    rows=_rows,
    more=_later,
)

DIFFERENCES = Leaderboard(
    columns=["interpreter", "other", "places", *intervals("difference"), "p", "p_holm"],
    text=("interpreter", "other"),
    rows=lambda measured: ranking.differences(_ranked(measured)),
    exists=has_gate,
    where="it has a gate ([gate])",
)

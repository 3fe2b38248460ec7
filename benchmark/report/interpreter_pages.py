"""The pages of interpreters: each across all boards."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmark.leaderboards.cells import Row
from benchmark.report import paths, words
from benchmark.report.boards import Board
from benchmark.report.tables import Link, Table, number, span

ASPECTS = {
    "randomised": "randomised",
    "other_class": "other class",
    "unrelated": "other image",
    "aopc_noise": "AOPC noise",
    "aopc_mean": "AOPC mean",
    "aopc_blur": "AOPC blur",
}
"""What is measured at the gate, means over its images: likeness of maps, and AOPC of three fills."""


def pages(boards: list[Board]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The path of each page, and what its template shows."""
    found: dict[str, list[tuple[Board, Row]]] = {}
    for board in boards:
        for row in board.rows("stability"):
            found.setdefault(row["interpreter"], []).append((board, row))
    for name, standings in sorted(found.items()):
        shown = {
            "title": name,
            "standings": _standings(standings),
            "reasons": [(_link(board), row["reason"]) for board, row in standings if row["reason"]],
            "flags": words.legend(row for _, row in standings),
            "tables": [t for t in (_attacks(name, boards), _gate(name, boards), _cards(name, boards)) if t.rows],
        }
        yield paths.of_interpreter(name), shown


def _link(board: Board) -> Link:
    return Link(board.name, paths.of_board(board))


def _standings(standings: list[tuple[Board, Row]]) -> Table:
    columns = ["board", "rank", "stability", "fooled for free", "within ½", "within 1", "within 2", "self FSR excess"]
    columns += ["rank correlation self", "AOPC clean", "AOPC fooled", "ms an image", "flags"]
    spans = ("fooled_free", "fooled_half", "fooled_one", "fooled_two", "self_fsr_excess", "rank_correlation_self")
    rows = [
        [
            *(_link(board), span(row, "rank", "d"), span(row, "stability"), *(span(row, column) for column in spans)),
            *(span(row, "aopc_clean"), span(row, "aopc_fooled"), number(row["ms_per_image"], ".1f")),
            row["flags"] or "",
        ]
        for board, row in standings
    ]
    about = "Where it stands. Boards differ in their attacks: compare within a board, not across boards."
    return Table("standings", about, columns, rows).without_empty()


def _attacks(name: str, boards: list[Board]) -> Table:
    columns = ["board", "fooled model", "strategy", "seed", "budget", "FSR", "FSR clean", "FSR unrelated", "top-1 drop"]
    rows = []
    for board in boards:
        for row in (row for row in board.rows("attacks") if row["interpreter"] == name):
            place = Link(f"{row['model']}, {row['fooling']}", paths.of_model(board, row["model"], row["fooling"], name))
            cells = [row["strategy"], number(row["seed"], "d"), number(row["budget"], "g"), span(row, "fsr")]
            cells += [number(row["fsr_clean"]), number(row["fsr_null"]), span(row, "top1_drop")]
            rows.append([_link(board), place, *cells])
    return Table("attacks", "Every attack that was aimed at it.", columns, rows).without_empty()


def _gate(name: str, boards: list[Board]) -> Table:
    rows = []
    for board in boards:
        for model, shown in sorted(board.cards.get(name, {}).get("gate", {}).items()):
            means = [number(float(np.mean(shown[key]))) if key in shown else "" for key in ASPECTS]
            rows.append([_link(board), model, *means])
    about = "At the gate, on clean models: likeness of its maps to those of a random network, of another class and of "
    about += "another image; and AOPC with three fills, which must beat every control's with two."
    return Table("gate", about, ["board", "model", *ASPECTS.values()], rows).without_empty()


def _cards(name: str, boards: list[Board]) -> Table:
    rows = []
    for board in boards:
        card = board.cards.get(name)
        if card is not None:
            options = ", ".join(f"{key} {value}" for key, value in card.get("options", {}).items() if value is not None)
            costs = [f"{m}: {number(c.get('ms_per_image'), '.1f')} ms" for m, c in sorted(card.get("cost", {}).items())]
            says = [card.get(key) for key in ("differentiable", "stochastic")]
            made = f"{card.get('device', '')}, code {card.get('versions', {}).get('code', '')}"
            rows.append([_link(board), options, *map(number, says), ", ".join(costs), made])
    columns = ["board", "options", "differentiable", "stochastic", "cost", "made on"]
    return Table("card", "As its results' card says.", columns, rows).without_empty()

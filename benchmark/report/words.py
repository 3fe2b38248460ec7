"""What a site says in words: of flags, of a board, of how it came about."""

from collections.abc import Iterable, Sequence
from typing import Any

from attacks import strategies
from benchmark.leaderboards.cells import Row
from benchmark.report.boards import Board
from benchmark.report.tables import number, span

FLAGS = {
    "SURROGATE_GAP": "softplus in the place of ReLU, or an attack aimed at another interpreter, fools it more than its "
    "own gradient does: it is not as stable as its gradient suggests",
    "RANDOM_BEATS_WHITEBOX": "the search without gradients fools it more than its own gradient does",
    "NOT_CONVERGED": "an attack by its gradient was still making progress when it ended: more steps may fool it more",
    "ZERO_SECOND_ORDER": "a submission's gradient by the weights is not that of its map",
    "LOGIT_SHIFT": "one vector added to the weights of every class, which changes no probability, moves its map",
    "NOT_CONFINED": "it ran where the system cannot keep it from the user's files",
    "NO_PROGRESS": "the attack on a submission was none, so nobody can say that it is stable",
}
"""What a reader must know before trusting a high stability; of a board's flags, those that this version knows."""


def flags(row: Row) -> list[str]:
    return (row["flags"] or "").split()


def legend(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """Each flag of the rows, and what it says."""
    return sorted({flag: FLAGS.get(flag, "") for row in rows for flag in flags(row)}.items())


def by_rank(rows: Sequence[Row]) -> list[Row]:
    """Ranked ones first, then by stability; controls last."""

    def place(row: Row) -> tuple[Any, ...]:
        rank = row["rank"] or float("inf")
        return row["reason"] == "control", rank, -(row["stability"] or 0.0), row["interpreter"]

    return sorted(rows, key=place)


def says(board: Board) -> str:
    """What a board says, in a few sentences, from its tables."""
    rows = by_rank(board.rows("stability"))
    models, foolings = board.listed("model"), board.listed("fooling")
    attacked = {strategies.split(name)[0] for name in board.listed("attacked")}
    attacked |= {row["interpreter"] for row in board.rows("attacks")}  # searched ones, too
    controls = f", {len(board.controls)} of them controls" if board.controls else ""
    text = f"{len(rows)} interpreters{controls}, on {', '.join(models)}, fooled by {', '.join(foolings)}"
    text += f"; attacked: {len(attacked)}."
    ranked = [row for row in rows if row["rank"] is not None]
    if ranked:
        places = "; ".join(f"{row['interpreter']} keeps {span(row, 'stability')}" for row in ranked[:3])
        more = f", last {ranked[-1]['interpreter']}, {number(ranked[-1]['stability'])}" if len(ranked) > 3 else ""
        return f"{text} {len(ranked)} may be ranked: {places}{more}."
    if any(row["eligible"] for row in rows):
        return f"{text} None may be ranked."
    order = [f"{row['interpreter']} {number(row['stability'])}" for row in (rows[0], rows[-1])] if rows else []
    return f"{text} It has no gate, so nothing is ranked; stability from {' down to '.join(order)}." if rows else text


def provenance(board: Board) -> list[tuple[str, str]]:
    """How the results came about, as their cards say; of the fooled models, and where another code scored them."""
    card = board.cards.get("models", {})
    said = [("suite", card.get("suite")), ("device", card.get("device")), ("threads", card.get("threads"))]
    for name, data in _dict(card.get("dataset")).items():
        data = _dict(data)
        size = f"{data.get('n')} {data.get('split')} images of {data.get('name')}, {data.get('input_size')} pixels"
        said.append((f"dataset {name}", f"{size}, content {str(data.get('content'))[:16]}"))
    said.append(("versions", _versions(card)))
    others: dict[str, list[str]] = {}
    for name, other in board.cards.items():
        if "versions" in other and other["versions"] != card.get("versions"):
            others.setdefault(_versions(other), []).append(name)
    said += [(f"versions of {', '.join(names)}", versions) for versions, names in others.items()]
    return [(what, str(value)) for what, value in said if value not in (None, "")]


def _versions(card: Row) -> str:
    return ", ".join(f"{name} {version}" for name, version in _dict(card.get("versions")).items())


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

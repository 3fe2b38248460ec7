"""The pages of a board's fooled models: one a model, fooling and attacked interpreter, with its attacks and seeds."""

from collections.abc import Iterator
from typing import Any

from attacks import strategies
from benchmark.leaderboards.cells import Row
from benchmark.report import paths
from benchmark.report.boards import Board
from benchmark.report.drawings import BELOW, HEIGHT, LEFT, WIDTH, front
from benchmark.report.tables import Link, Table, number, slug, span
from benchmark.report.worst import Rate, rates

Place = tuple[str, str, str]  # model, fooling, attacked interpreter


def pages(board: Board) -> Iterator[tuple[str, dict[str, Any]]]:
    """The path of each page, and what its template shows."""
    parts = {name: _by_place(board.rows(name)) for name in ("manipulations", "accuracy", "fronts", "attacks")}
    scored: dict[Place, list[Rate]] = {}
    for rate in rates(board.rows("transfer")):
        scored.setdefault((rate.model, rate.fooling, strategies.split(rate.attacked)[0]), []).append(rate)
    correlations = _correlations(board.rows("transfer"))
    figures = {path.stem: path for path in board.folder.glob("figures/heatmaps-*.png")}
    interpreters = {row["interpreter"] for row in board.rows("stability")}
    for place in sorted({*scored, *(place for part in parts.values() for place in part)}):
        model, fooling, attacked = place
        rows = {name: part.get(place, []) for name, part in parts.items()}
        names = sorted({row["attacked"] for row in rows["manipulations"]} or {attacked})
        drawn = [figures[name] for each in names if (name := f"heatmaps-{model}-{fooling}-{each}") in figures]
        which = f"--suite {board.name} --model {model} --fooling {fooling}"
        tables = _attacks(rows["attacks"]), _training(rows["manipulations"], rows["accuracy"])
        shown = {
            "title": f"{model}, fooled by {fooling} at {attacked}",
            "board": Link(board.name, paths.of_board(board)),
            "interpreters": [Link(attacked, paths.of_interpreter(attacked))] if attacked in interpreters else [],
            "drawn": front(rows["fronts"]),
            "size": (WIDTH, HEIGHT, LEFT, BELOW),
            "tables": [t for t in (*tables, _scores(scored.get(place, []), correlations)) if t.rows],
            "heatmaps": [f"{paths.folder(board)}/figures/{slug(path.name)}" for path in drawn],
            "commands": [f"foolbench plot heatmaps {which} --attacked {name}" for name in names],
        }
        yield paths.of_model(board, model, fooling, attacked), shown


def _by_place(rows: list[Row]) -> dict[Place, list[Row]]:
    """A table has `attacked`, with its strategy, or `interpreter`."""
    found: dict[Place, list[Row]] = {}
    for row in rows:
        attacked = strategies.split(row["attacked"])[0] if "attacked" in row else row["interpreter"]
        found.setdefault((row["model"], row["fooling"], attacked), []).append(row)
    return found


def _attacks(rows: list[Row]) -> Table:
    columns = [
        "strategy",
        "seed",
        "budget",
        "within",
        "FSR",
        "FSR clean",
        "FSR unrelated",
        "top-1 drop",
        "changed",
        "n",
    ]
    cells = [
        [
            *(row["strategy"], number(row["seed"], "d"), number(row["budget"], "g"), row["within"] or ""),
            *(span(row, "fsr"), number(row["fsr_clean"]), number(row["fsr_null"]), span(row, "top1_drop")),
            *(number(row["changed"], ".4f"), number(row["n"], "d")),
        ]
        for row in rows
    ]
    about = "How far each attack went, on the scored images. Within: whether the budget (points of top-1) is met there."
    return Table("attacks", about, columns, cells).without_empty()


def _training(rows: list[Row], accuracy: list[Row]) -> Table:
    lost = {(row["attacked"], row["seed"]): row for row in accuracy}
    columns = ["attacked", "seed", "status", "learning rate", "λ", "divergence", "scope", "steps", "converged"]
    columns += ["top-1 clean", "top-1", "top-1 drop", "agreement", "n"]
    cells = []
    for row in rows:
        cost = lost.get((row["attacked"], row["seed"]), {})
        reason = f": {row['reason']}" if row["reason"] else ""
        cells.append(
            [
                *(row["attacked"], number(row["seed"], "d"), f"{row['status']}{reason}"),
                *(number(row["learning_rate"], "g"), number(row["lambda"], "g"), number(row["divergence"], "g")),
                *(row["scope"] or "", number(row["steps_done"], "d"), number(row["converged"])),
                *(number(row["top1_clean"], ".4f"), number(row["top1"], ".4f")),
                *(span(cost, "top1_drop"), number(cost.get("agreement"), ".4f"), number(cost.get("n"), "d")),
            ]
        )
    return Table("training", "The fine-tuning, and what it cost in accuracy.", columns, cells).without_empty()


def _scores(found: list[Rate], correlations: dict[tuple[str, ...], float]) -> Table:
    columns = ["interpreter", "attacked", "FSR", "chance", "excess", "rank correlation", "seeds", "failed"]
    rows, several = [], len({rate.attacked for rate in found}) > 1
    for rate in sorted(found, key=lambda rate: (rate.attacked, -rate.excess if rate.seeds else 1, rate.evaluated)):
        key = rate.model, rate.fooling, rate.attacked, rate.evaluated
        excess = "says nothing" if rate.silent else number(rate.excess) if rate.seeds else "failed"
        cells = [number(rate.fsr), number(rate.chance), excess]
        cells += [number(correlations.get(key)), number(rate.seeds, "d"), number(rate.failed or None, "d")]
        attacked = rate.attacked if several else ""
        rows.append([Link(rate.evaluated, paths.of_interpreter(rate.evaluated)), attacked, *cells])
    about = "Whom this model fools: success rates, means over seeds; chance, of the unfooled model's map or of another "
    about += "image's; rank correlation of the fooled and the honest map."
    return Table("scores", about, columns, rows).without_empty()


def _correlations(rows: list[Row]) -> dict[tuple[str, ...], float]:
    """Means over seeds."""
    found: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        if row["rank_correlation"] is not None:
            key = tuple(row[name] for name in ("model", "fooling", "attacked", "evaluated"))
            found.setdefault(key, []).append(row["rank_correlation"])
    return {key: sum(values) / len(values) for key, values in found.items()}

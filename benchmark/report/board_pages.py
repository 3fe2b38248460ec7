"""The page of a board, and the files that it offers."""

from collections.abc import Iterable
from typing import Any

from benchmark.leaderboards.cells import Row
from benchmark.report import downloads, paths, words
from benchmark.report.boards import Board
from benchmark.report.drawings import SIDE, Matrix, matrix
from benchmark.report.tables import Link, Table, number, slug, span
from benchmark.report.worst import Rate, rates, searched, worst

LEVELS = {"fooled_half": "½", "fooled_one": "1", "fooled_two": "2"}
DRAWN = ("transfer",)  # figures that the page draws itself


def page(board: Board) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What its template shows, and the files beside it."""
    scored, place = rates(board.rows("transfer")), paths.folder(board)
    offered, files = _downloads(board)
    figures = []
    for path in sorted(board.folder.glob("figures/*.png")):
        if path.stem not in DRAWN:
            files[f"{place}/figures/{slug(path.name)}"] = path.read_bytes()
            figures.append((path.stem, f"{place}/figures/{slug(path.name)}"))
    more = _differences(board), *(_plain(board, name) for name in ("ara", "resistance"))
    shown = {
        "title": f"Board: {board.name}",
        "says": words.says(board),
        "ranking": _ranking(board, worst([*scored, *searched(board.rows("attacks"))])),
        "flags": words.legend(board.rows("stability")),
        "matrices": _matrices(board, scored),
        "side": SIDE,
        "models": _models(board),
        "more": [table for table in more if table],
        "figures": figures,
        "provenance": words.provenance(board),
        "downloads": offered,
    }
    return shown, files


def _ranking(board: Board, worst: dict[str, Rate]) -> Table:
    columns = ["interpreter", "rank", "stability", "fooled for free", *(f"within {level}" for level in LEVELS.values())]
    columns += [
        "worst attack",
        "excess",
        "AOPC fooled",
        "ms an image",
        "MiB",
        "flags",
        "why it is not ranked",
        "status",
    ]
    rows = []
    for row in words.by_rank(board.rows("stability")):
        name = row["interpreter"]
        marks = [Link(flag, f"#flag-{flag}", words.FLAGS.get(flag, "")) for flag in words.flags(row)]
        submitted = "" if row["status"] in (None, "reference") else row["status"]
        cells: list[Any] = [Link(name, paths.of_interpreter(name)), span(row, "rank", "d"), span(row, "stability")]
        cells += [span(row, column) for column in ("fooled_free", *LEVELS)]
        cells += [*_attack(board, worst.get(name)), span(row, "aopc_fooled"), number(row["ms_per_image"], ".1f")]
        rows.append([*cells, number(row["peak_mib"], ".0f"), marks, row["reason"] or "", submitted])
    about = (
        "Stability: 1 is never fooled beyond chance. Fooled for free: by the worst attacks that change no prediction; "
    )
    about += "within: that cost so many points of top-1. Excess of the worst attack: 0 is chance, 1 is always. "
    about += "In brackets 95 % intervals."
    if not any(row["fooled_free"] is not None for row in board.rows("stability")):
        about += " What is fooled for free is not known here: accuracy is of too few images, or was not asked yet."
    return Table("ranking", about, columns, rows).without_empty()


def _attack(board: Board, rate: Rate | None) -> tuple[Any, str]:
    """The worst attack and its excess, where there is one beyond chance."""
    if rate is None or not rate.excess:
        return "", number(rate and rate.excess)
    within = f", within {rate.budget:g}" if rate.budget is not None else ""
    place = paths.of_model(board, rate.model, rate.fooling, rate.attacked)
    return Link(f"{rate.fooling} of {rate.model} at {rate.attacked}{within}", place), number(rate.excess)


def _matrices(board: Board, scored: Iterable[Rate]) -> dict[str, list[Matrix]]:
    """By fooling, one a model."""
    groups: dict[tuple[str, str], list[Rate]] = {}
    for rate in scored:
        groups.setdefault((rate.fooling, rate.model), []).append(rate)
    drawn: dict[str, list[Matrix]] = {}
    for (fooling, model), group in sorted(groups.items()):
        pages = {rate.attacked: paths.of_model(board, model, fooling, rate.attacked) for rate in group}
        links = {rate.evaluated: paths.of_interpreter(rate.evaluated) for rate in group}
        drawn.setdefault(fooling, []).append(matrix(model, group, links, pages))
    return drawn


def _models(board: Board) -> Table:
    """The strongest attack on each interpreter in each place, scored on itself."""
    best: dict[tuple[str, str, str], Row] = {}
    for row in board.rows("attacks"):
        place = row["model"], row["fooling"], row["interpreter"]
        if place not in best or (row["fsr"] or 0) > (best[place]["fsr"] or 0):
            best[place] = row
    rows = []
    for (model, fooling, interpreter), row in sorted(best.items()):
        link = Link(f"{model}, {fooling}, {interpreter}", paths.of_model(board, model, fooling, interpreter))
        cells = [row["strategy"], number(row["budget"], "g"), span(row, "fsr"), number(row["fsr_clean"])]
        rows.append([link, *cells, number(row["fsr_null"]), span(row, "top1_drop")])
    about = "Each model that was fooled, and the attack on the interpreter in its name with the highest success rate."
    columns = ["fooled model", "strategy", "budget", "FSR", "FSR clean", "FSR unrelated", "top-1 drop"]
    return Table("models", about, columns, rows).without_empty()


def _differences(board: Board) -> Table | None:
    rows = []
    for row in board.rows("differences"):
        names = [Link(row[side], paths.of_interpreter(row[side])) for side in ("interpreter", "other")]
        values = [number(row["places"], "d"), span(row, "difference"), number(row["p"], ".2g")]
        rows.append([*names, *values, number(row["p_holm"], ".2g")])
    about = "Ranked interpreters in pairs: stability of the first less that of the other, paired over images."
    columns = ["interpreter", "other", "places", "difference", "p", "p after Holm"]
    return Table("differences", about, columns, rows) if rows else None


def _plain(board: Board, name: str) -> Table | None:
    """A table as its CSV has it, its intervals folded in."""
    rows = board.rows(name)
    columns = [column for column in (rows[0] if rows else ()) if not column.endswith(("_low", "_high"))]
    cells = [[span(row, column, ".3g") for column in columns] for row in rows]
    return Table(name, f"{name}.csv", columns, cells).without_empty() if rows else None


def _downloads(board: Board) -> tuple[list[tuple[str, list[dict[str, Any]]]], dict[str, bytes]]:
    offered, files = [], dict[str, bytes]()
    for name, given in downloads.of(board):
        said = []
        for file in given:
            place = f"{paths.folder(board)}/data/{file.name}"
            if file.offered:
                files[place] = file.content
            size = f"{len(file.content) / 1024:,.1f} KiB"
            said.append({"name": file.name, "path": place if file.offered else "", "size": size, "sha256": file.sha256})
        offered.append((name, said))
    return offered, files

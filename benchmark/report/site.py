"""The pages of a site: an index, one a board, one an interpreter, one a fooled model; all files in memory.

Templates and the two assets (style.css, table.js) are package data. A page asks for nothing beyond the site.
"""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tqdm.auto import tqdm

from benchmark.report import board_pages, boards, interpreter_pages, model_pages, paths
from benchmark.report.boards import Board
from benchmark.report.tables import Link, Table, number, span
from benchmark.report.words import by_rank, says

HERE = Path(__file__).parent
ASSETS = ("style.css", "table.js", "icon.svg")


def build(folder: Path) -> dict[str, bytes]:
    """Every file of the site of the boards below `folder`, by its path. Raises `UserError` for a folder without any,
    and for a table or a card that cannot be read."""
    found = boards.find(folder)
    files = {name: (HERE / "assets" / name).read_bytes() for name in ASSETS}
    files["index.html"] = _page("index.html", "index.html", **_index(found))
    for board in tqdm(found, "pages", unit="board", delay=1, leave=False):
        shown, data = board_pages.page(board)
        files |= data
        files[paths.of_board(board)] = _page("board.html", paths.of_board(board), **shown)
        for path, model in model_pages.pages(board):
            files[path] = _page("model.html", path, **model)
    for path, interpreter in interpreter_pages.pages(found):
        files[path] = _page("interpreter.html", path, **interpreter)
    return files


def _index(found: list[Board]) -> dict[str, Any]:
    said = [(Link(board.name, paths.of_board(board)), says(board)) for board in found]
    rows = []
    for name in sorted({row["interpreter"] for board in found for row in board.rows("stability")}):
        cells: list[Any] = [Link(name, paths.of_interpreter(name))]
        for board in found:
            row = next((row for row in by_rank(board.rows("stability")) if row["interpreter"] == name), None)
            rank = f", rank {number(row['rank'], 'd')}" if row and row["rank"] is not None else ""
            cells.append(f"{span(row, 'stability')}{rank}" if row else "")
        rows.append(cells)
    about = "Stability on each board, 1 is never fooled beyond chance, with its 95 % interval, and the rank"
    columns = ["interpreter", *(board.name for board in found)]
    return {"title": "Boards", "boards": said, "interpreters": Table("interpreters", about, columns, rows)}


def _page(template: str, path: str, **given: Any) -> bytes:
    root = "../" * path.count("/")
    return _environment().get_template(template).render(root=root, here=path, **given).encode()


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

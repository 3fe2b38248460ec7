"""Where the pages of a site stand, from its root."""

from attacks import strategies
from benchmark.report.boards import Board
from benchmark.report.tables import slug


def folder(board: Board) -> str:
    return f"boards/{slug(board.name)}"


def of_board(board: Board) -> str:
    return f"{folder(board)}/index.html"


def of_interpreter(name: str) -> str:
    return f"interpreters/{slug(name)}.html"


def of_model(board: Board, model: str, fooling: str, attacked: str) -> str:
    """Of a model fooled against an interpreter, whatever the strategy and the seed."""
    return f"{folder(board)}/models/{slug(model, fooling, strategies.split(attacked)[0])}.html"

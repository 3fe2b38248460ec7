"""Where committed boards are: below the working folder, as in a clone, or in the installed package. No torch."""

from pathlib import Path

BOARDS = Path("leaderboards")
HERE = Path(__file__).parent / "boards"  # in a clone a link to leaderboards/, in an installed package a copy of it
WHERE = "boards, their results and the zoo are in leaderboards/ of a clone, and in a package built from one"


def board(suite: str) -> Path:
    """The folder of a suite's board, to be read: `leaderboards/SUITE`, or where that holds none (but figures that were
    drawn of the package's, say) the package's."""
    ours = BOARDS / suite
    here = (ours / "results").is_dir() or any(ours.glob("*.csv"))
    return HERE / suite if not here and (HERE / suite).is_dir() else ours


def in_package(folder: Path) -> bool:
    """Whether a board is the installed package's, which is read and never written."""
    return folder.is_relative_to(HERE)

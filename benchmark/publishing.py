"""The commands that read committed results and compute none: leaderboard, compare, join, report. No torch."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from attacks.errors import UserError, unknown
from benchmark import committed
from benchmark.committed import BOARDS
from benchmark.options import OutOption, SuiteOption

Format = StrEnum("Format", ["text", "csv", "markdown", "latex", "html"])
FormatOption = Annotated[Format | None, typer.Option("--format", help="Print the board in this form, to paste.")]


def leaderboard(
    suite: SuiteOption = "default",
    out: OutOption = None,
    check: Annotated[bool, typer.Option("--check", help="Fail if the CSVs are not what the results give.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the board; CSVs are made if older than results.")] = False,
    form: FormatOption = None,
) -> None:
    """Regenerate the CSVs of a suite from its committed results; no training, no torch."""
    from benchmark import leaderboards
    from benchmark.leaderboards import paste
    from benchmark.leaderboards.show import show as board

    folder = out or (committed_board(suite) if show or check or form else default_out(suite))
    if check:
        if differing := leaderboards.check(folder):
            raise UserError(f"{folder}: {', '.join(differing)} differ from the results: run foolbench leaderboard")
        typer.echo(f"{folder}: every CSV is what the results give")
    elif not ((show or form) and (committed.in_package(folder) or leaderboards.are_current(folder))):
        leaderboards.write(folder)
    if show:
        typer.echo(board(folder), nl=False)
    if form:
        typer.echo(paste.board(leaderboards.load(folder, "stability"), form.value), nl=False)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A suite, or a folder of leaderboards or results.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    form: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.text,
) -> None:
    """Set two results side by side, over the cells that both scored, with paired differences."""
    from benchmark.leaderboards import compare as comparing
    from benchmark.leaderboards.paste import FORMATS

    folders = [Path(each) if Path(each).exists() or "/" in each else committed_board(each) for each in (a, b)]
    compared, notes = comparing.compare(*folders)
    if form is Format.text:
        typer.echo(
            f"A: {folders[0]}, B: {folders[1]}; over cells of both, searches left out [95 %, paired over images]"
        )
    typer.echo(FORMATS[form](compared if form is Format.csv else comparing.shown(compared)), nl=False)
    for note in notes:
        typer.echo(note, err=form is not Format.text)


def join(
    pieces: Annotated[list[Path], typer.Argument(metavar="PIECE...", help="Folders of leaderboards of one suite.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of leaderboards to write, which may be a piece.")],
) -> None:
    """Join pieces of one suite (some of its foolings, models, seeds or interpreters each) into one board."""
    from benchmark import leaderboards
    from benchmark.leaderboards import join as joining

    joining.write(pieces, out)
    leaderboards.write(out)
    typer.echo(str(out))


def report(
    out: Annotated[Path, typer.Option("--out", help="The folder to write; replaced if a report wrote it.")] = Path(
        "site"
    ),
    boards: Annotated[Path, typer.Option("--boards", help="The folder of the boards' folders.")] = BOARDS,
) -> None:
    """Write a static site of all boards from their committed tables: open OUT/index.html."""
    from benchmark.report import folder, site

    folder.check(out)
    here = boards != BOARDS or any(boards.glob("*/stability.csv"))
    folder.write(out, site.build(boards if here or not committed.HERE.is_dir() else committed.HERE))
    typer.echo(str(out / "index.html"))


def default_out(suite: str, split: str | None = None) -> Path:
    if not suite.endswith(".toml") and not (BOARDS / suite).is_dir():
        from benchmark.suite import names

        if suite not in names():
            raise unknown("suite", suite, names())
    name = Path(suite).stem if suite.endswith(".toml") else suite
    return BOARDS / (name if split in (None, "test") else f"{name}-{split}")


def committed_board(suite: str) -> Path:
    """Of a suite, to be read: here, or the one that came with the package."""
    return committed.board(default_out(suite).name)

"""The commands `foolbench zoo`: what is in it, whether it is whole, and how one is made."""

from typing import Annotated

import typer

from attacks.errors import UserError
from benchmark import committed, zoo
from benchmark.beginning import loading
from benchmark.options import STORE, StoreOption, SuiteOption

app = typer.Typer(help="Fooled models of a board: list, verify, export.", no_args_is_help=True, rich_markup_mode=None)


@app.command(name="list")
def list_(suite: SuiteOption = "default") -> None:
    """Every fooled model: FSR on its own interpreter, FSR before, points of top-1 lost, steps, sha256."""
    about = zoo.manifest(zoo.folder(suite))
    typer.echo(f"{'model/fooling/attacked/seed':44}   FSR clean   drop steps  sha256")
    for name, of in about["fooled"].items():
        said = [of.get("fsr"), of.get("fsr_clean"), of.get("top1_drop")]
        rates = " ".join(f"{'-' if each is None else format(each, '.2f'):>5}" for each in said)
        typer.echo(f"{name:44} {rates}  {of['receipt'].get('steps_done', '-'):>5}  {of['sha256'][:16]}")


@app.command()
def verify(suite: SuiteOption = "default") -> None:
    """Hold every model against its sha256, and the zoo against its board; exit with 1 where anything does not fit."""
    where = zoo.folder(suite)
    loading("zoo verify")
    from benchmark.zoo import making

    found = list(zoo.damages(where))
    if not making.of_board(zoo.manifest(where), where.parent):
        found.append(f"{where} has other models than {where.parent}: foolbench zoo export")
    for line in found:
        typer.echo(line)
    typer.echo(f"{where}: {len(zoo.names(suite))} models, {len(found)} damaged")
    if found:
        raise SystemExit(1)


@app.command()
def export(
    suite: SuiteOption = "default",
    store: StoreOption = STORE,
    most: Annotated[float, typer.Option("--most", min=0, help="MB that it may have.")] = 25.0,
) -> None:
    """Write the zoo of a board, into its folder, from the store of the run that made the board."""
    from benchmark import suite as suites
    from benchmark.run import Run
    from benchmark.zoo import making

    board = committed.board(suite)
    if committed.in_package(board):
        raise UserError(f"foolbench zoo export needs the board in this folder, leaderboards/{suite}")
    size = making.export(Run(suites.load(suite), str(store)), board, board / "zoo", int(most * 1e6))
    typer.echo(f"{board / 'zoo'}: {size / 1e6:.1f} MB")

"""The command `foolbench`: parses, calls, prints. What needs torch is imported where it is used."""

from pathlib import Path
from typing import Annotated, Any

import typer

from attacks.errors import UserError, unknown
from benchmark import committed, ending, figures, keeping, listing, publishing
from benchmark.audit.command import audit
from benchmark.beginning import loading
from benchmark.detection.command import detect
from benchmark.options import (
    CONCEPTS_HELP,
    EXPERIMENTS,
    FIRST,
    LISTED,
    READING,
    STORE,
    TIMEOUT_HELP,
    DataOption,
    Device,
    DeviceOption,
    Engine,
    JobsOption,
    OutOption,
    Split,
    StoreOption,
    SuiteOption,
    VersionOption,
)
from benchmark.publishing import committed_board, default_out
from benchmark.store import writable
from benchmark.zoo import commands as zoo

HELP = "Can a model's owner make your explanation lie without touching the accuracy?"
app = typer.Typer(
    name="foolbench",
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it would swallow what stands in [brackets]
)
app.add_typer(keeping.app, name="store")
app.add_typer(zoo.app, name="zoo")
app.command()(audit)
app.command()(detect)


@app.callback()
def foolbench(version: VersionOption = False) -> None: ...


@app.command()
def run(
    suite: SuiteOption = "default",
    data: DataOption = None,
    store: StoreOption = STORE,
    out: OutOption = None,
    jobs: JobsOption = None,
    device: DeviceOption = Device.auto,
    split: Annotated[Split | None, typer.Option("--split", help="Score on this split instead of the suite's.")] = None,
    engine: Annotated[Engine, typer.Option("--engine", help="Processes of this machine, or Ray.")] = Engine.local,
    address: Annotated[str | None, typer.Option("--address", help="Of a Ray cluster. [one of its own, here]")] = None,
    gpus_per_cell: Annotated[float | None, typer.Option(min=0, help="On Ray. [0.25 on CUDA, else 0]")] = None,
    cpus_per_cell: Annotated[float | None, typer.Option(min=0.01, help="On Ray. [the suite's threads]")] = None,
    cell_timeout: Annotated[float | None, typer.Option(min=0, help=TIMEOUT_HELP)] = None,
) -> None:
    """Train, fool and score a suite, and write its leaderboards. What the store holds is not computed again."""
    from benchmark.execution import compute, executor
    from benchmark.leaderboards.show import show

    chosen = _load_suite(suite, split and split.value)
    folder = _folder(out or default_out(suite, split and split.value), "results")
    given = _run(chosen, store, data, device, elsewhere=engine is Engine.ray)
    needed = executor.Needed(address, cpus_per_cell, gpus_per_cell)
    failed = compute.run_suite(*executor.on(engine.value, given, folder, jobs, cell_timeout, needed))
    typer.echo(show(folder), nl=False)
    typer.echo(f"leaderboards: {folder}")
    compute.none_failed(failed)


@app.command()
def status(store: StoreOption = STORE) -> None:
    """What the runs on a store are doing, node by node: units done, running, failed, and the time left."""
    from benchmark.execution import record

    typer.echo(record.table(keeping.there(store)), nl=False)


leaderboard = app.command()(publishing.leaderboard)
compare = app.command()(publishing.compare)
join = app.command()(publishing.join)
report = app.command()(publishing.report)


@app.command()
def submit(
    submission: Annotated[str, typer.Argument(metavar="FILE.py:NAME", help="Or MODULE:NAME, of a package.")],
    suite: SuiteOption = "default",
    check_only: Annotated[bool, typer.Option("--check-only", help="Check it, and score nothing.")] = False,
    layer: Annotated[str | None, typer.Option(help="Of a package's method. [each architecture's target layer]")] = None,
    data: DataOption = None,
    store: StoreOption = STORE,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the results. [submissions/NAME-SUITE]")] = None,
    jobs: JobsOption = None,
    device: DeviceOption = Device.auto,
    only_rankable: Annotated[
        bool, typer.Option("--only-rankable", help="End early where it cannot be ranked.")
    ] = False,
) -> None:
    """Check a new interpretation method, score it on a suite's fooled models, and attack it. It runs in a process of
    its own; only submit code that you would also run by hand."""
    default_out(suite)
    if out is not None:
        _folder(out, "results")
    loading("submit")
    from benchmark.execution import compute
    from benchmark.submissions import submit
    from benchmark.submissions.installed import parse
    from benchmark.submissions.remote import remote
    from benchmark.zoo import making

    data = data and str(Path(data).absolute())  # the submission's process works in a folder of its own
    start, parsed = _run(_load_suite(suite), store, data, device), parse(submission, layer, store)
    flags = submit.check(remote(parsed), start.device, typer.echo)
    if check_only:
        return
    checked = remote(parsed, flags)
    folder = _folder(out or Path("submissions") / f"{checked.name}-{start.suite.name}", "results")
    board = committed_board(suite)
    failed = submit.submit(making.filled(start, board), checked, folder, jobs, only_rankable=only_rankable)
    typer.echo(submit.show(folder, board, checked.name), nl=False)
    typer.echo(f"results: {folder}")
    compute.none_failed(failed)


@app.command()
def verify(
    cell: Annotated[str, typer.Argument(metavar="CELL", help="MODEL/FOOLING/ATTACKED/EVALUATED/SEED")],
    suite: SuiteOption = "default",
    data: DataOption = None,
    out: OutOption = None,
    device: DeviceOption = Device.auto,
) -> None:
    """Recompute one committed cell from nothing, training included, and compare it with the results."""
    from benchmark import verify

    chosen, folder = _load_suite(suite), out or default_out(suite)
    compared = verify.verify(_run(chosen, "", data, device), verify.parse(cell, chosen), folder)
    for name, value in compared.items():
        typer.echo(f"{name}: {value:g}")
    if compared["differing"]:
        raise UserError(f"{cell}: {compared['differing']} of {compared['rows']} rows are not as committed in {folder}")
    typer.echo(f"{cell}: as committed")


@app.command(no_args_is_help=True, epilog="\n\n".join(f"{name}: {of.about}" for name, of in figures.FIGURES.items()))
def plot(
    context: typer.Context,
    figure: Annotated[str, typer.Argument(metavar="NAME", help="One of the figures below.")],
    suite: SuiteOption = "default",
    out: OutOption = None,
    file: Annotated[Path | None, typer.Option("--file", help="The PNG to write. [OUT/figures/NAME.png]")] = None,
    model: Annotated[str | None, typer.Option(help=f"Of heatmaps, as all below: the model. {FIRST}")] = None,
    fooling: Annotated[str | None, typer.Option(help=f"How the model was fooled. {FIRST}")] = None,
    attacked: Annotated[str | None, typer.Option(help=f"The interpreter that was attacked. {FIRST}")] = None,
    seed: Annotated[int | None, typer.Option(help=f"Of the manipulation. {FIRST}")] = None,
    images: Annotated[bool, typer.Option(help="Draw the images beside the maps.")] = True,
    data: DataOption = None,
    store: StoreOption = STORE,
    device: DeviceOption = Device.auto,
) -> None:
    """Draw a figure of a suite from its leaderboards; heatmaps, of the first scored images by every interpreter but
    the controls, from the store of its run."""
    from benchmark.figures.style import check_file, save

    drawing, folder, name = figures.find(figure), out or committed_board(suite), figure
    if file is not None:
        check_file(file)
    drawn: Any = folder
    if drawing.of_cell:
        from benchmark import explain

        chosen = _load_suite(suite)
        shown = explain.chosen(chosen, model=model, fooling=fooling, seed=seed, attacked=attacked)
        drawn = explain.samples(_run(chosen, store, data, device), shown, images)
        name += f"-{shown.model}-{shown.fooling}-{shown.attacked}"
    else:
        sources = {option: context.get_parameter_source(option) for option in figures.OF_CELL}
        if others := [f"--{option}" for option, source in sources.items() if source and source.name == "COMMANDLINE"]:
            raise UserError(f"figure {figure!r} takes --suite, --out and --file alone (got {', '.join(others)})")
    target = file or (out or default_out(suite)) / "figures" / f"{name}.png"
    save(drawing.load()(drawn), target)
    typer.echo(str(target))


@app.command()
def dissect(
    suite: SuiteOption = "promotion-suppression",
    model: Annotated[str | None, typer.Option(help="Only this one of the suite's models.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Another dataset than the suite's.")] = None,
    attack: Annotated[str | None, typer.Option(help="Only this one of the suite's attacks.")] = None,
    concepts: Annotated[str | None, typer.Option(help=CONCEPTS_HELP)] = None,
    data: DataOption = None,
    store: StoreOption = STORE,
    out: OutOption = None,
    jobs: JobsOption = None,
    device: DeviceOption = Device.auto,
) -> None:
    """Look inside a suite's models, clean and fooled, at adversarial examples: promotion and suppression, evidence,
    concepts."""
    parts = [part for part in (model, dataset, attack, concepts and Path(concepts).name) if part]
    folder = _folder(out or default_out(suite) / "-".join(parts), "figures")  # not over those of the whole suite
    loading("dissect")
    from benchmark.dissection import study

    chosen = study.narrowed(_load_suite(suite), model, dataset, attack)
    for path in study.run(_run(chosen, store, data, device), folder, jobs, concepts):
        typer.echo(str(path))


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help=f"One of {EXPERIMENTS}.")],
    suite: Annotated[str | None, typer.Option("--suite", help="A suite's name or TOML file. [its own]")] = None,
    data: DataOption = None,
    store: StoreOption = STORE,
    out: Annotated[Path, typer.Option("--out", help="Folder of table and figure.")] = Path("leaderboards/experiments"),
    jobs: JobsOption = None,
    device: DeviceOption = Device.auto,
) -> None:
    """Run one of the papers' experiments; write its table and its figure."""
    from benchmark import experiments
    from benchmark.experiments.given import Given

    _folder(out, "figures")
    chosen = experiments.load_suite(experiments.load(name), suite)
    board = default_out(suite) if suite else committed.BOARDS / chosen.name
    given = Given(_run(chosen, store, data, device, reads=name in READING), board, jobs)
    for path in experiments.run(name, given, out):
        typer.echo(str(path))


@app.command(name="list")
def list_(kind: Annotated[str, typer.Argument(help=", ".join(LISTED))]) -> None:
    """List what can be named, one a line."""
    from importlib import import_module

    if kind not in LISTED:
        raise unknown("kind", kind, LISTED)
    typer.echo("\n".join(import_module(LISTED[kind]).names()))


@app.command()
def explain(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    model: Annotated[str, typer.Option("--model", help="A torchvision classifier.")],
    interpreter: Annotated[str, typer.Option("--interpreter", help="foolbench list interpreters")],
    weights: Annotated[str, typer.Option("--weights", help="A torchvision weights name or a checkpoint.")] = "DEFAULT",
    target: Annotated[int | None, typer.Option("--target", help="The class explained. [the predicted one]")] = None,
    file: Annotated[Path, typer.Option("--file", help="The PNG to write.")] = Path("explanation.png"),
) -> None:
    """Draw the heatmap of one image."""
    from benchmark.figures.style import check_file, save

    check_file(file)
    if not image.is_file():
        raise UserError(f"image {image} cannot be read: it is no file")
    if interpreter not in (known := listing.names()):
        raise unknown("interpreter", interpreter, known)
    loading("explain")
    from benchmark import explain as explaining
    from benchmark.figures.heatmaps import heatmaps

    samples = explaining.explain(image, model, weights, interpreter, target)
    save(heatmaps(samples), file)
    typer.echo(f"{samples.title}\n{file}")


@app.command()
def new_interpreter(
    name: Annotated[str, typer.Argument(help="Its name, in lower snake case.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where NAME.py and test_NAME.py are written.")] = Path(),
) -> None:
    """Write an interpreter that works, to be changed into your own, and its test."""
    from benchmark.submissions import template

    typer.echo("\n".join(map(str, template.write(name, folder))))


def _run(
    suite: Any, store: Path | str, data: str | None, device: Device, elsewhere: bool = False, reads: bool = False
) -> Any:
    """`elsewhere`: the device need not be here, for other nodes may have it. `reads`: data, beside the suite's own."""
    from benchmark.execution.executor import chosen_device
    from benchmark.run import Run
    from benchmark.suite import check_data, placed

    check_data(suite, None if reads else data)
    return Run(placed(suite, data), str(store), data, chosen_device(device.value, elsewhere))


def _folder(folder: Path, *below: str) -> Path:
    """A folder that is to be written, checked before there is anything to write."""
    writable(folder, *below)
    return folder


def _load_suite(name: str, split: str | None = None) -> Any:
    from benchmark import suite

    return suite.load(name, split)


def main() -> None:
    """The entry point of `python -m benchmark.cli`; that of the script is `benchmark.main.main`."""
    ending.run(lambda: app(prog_name="foolbench", standalone_mode=False))


if __name__ == "__main__":
    main()

"""The command `foolbench audit`: looks at what is given, starts the audit's process, and writes the report."""

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from attacks.errors import UserError, unknown
from benchmark.options import Device, DeviceOption
from benchmark.store import sha256_of, writable

STATE = ".state"


def audit(
    model: Annotated[str, typer.Option("--model", help="FILE.py:NAME, or one of foolbench list models.")],
    data: Annotated[Path, typer.Option("--data", help="A folder of images, or a CSV of paths and labels.")],
    weights: Annotated[str | None, typer.Option(help="A checkpoint, or torchvision's name of weights.")] = None,
    interpreters: Annotated[str | None, typer.Option(help="A,B,... [grad_cam,lrp,simple_grad, where they can]")] = None,
    preprocess: Annotated[str | None, typer.Option(help="imagenet, a model's or data set's name, or a file.")] = None,
    layer: Annotated[str | None, typer.Option(help="The target layer. [that of the architecture]")] = None,
    foolings: Annotated[str, typer.Option(help="A,B,... in this order.")] = "location,top_k",
    budget: Annotated[float, typer.Option(help="Points of top-1 that fooling may cost.")] = 1.0,
    minutes: Annotated[float, typer.Option(help="After which nothing new is begun.")] = 20.0,
    images: Annotated[int, typer.Option(help="At most so many, half of them held out.")] = 200,
    seed: Annotated[int, typer.Option(help="Of which images, and of the attacks.")] = 0,
    device: DeviceOption = Device.auto,
    out: Annotated[Path, typer.Option("--out", help="Folder of the report; run again to go on.")] = Path("audit"),
) -> None:
    """Which explanations of your own network can be fooled, how far and at what cost: audit.html, audit.json, CSVs."""
    from benchmark import listing as interpreters_listed
    from benchmark.audit.findings import Audit
    from benchmark.audit.listing import find
    from benchmark.audit.page import sentences
    from benchmark.audit.process import printable, run
    from benchmark.audit.report import write
    from benchmark.audit.settings import Settings

    start = time.monotonic()
    names = None if interpreters is None else _split(interpreters)
    for name in names or ():
        if name not in (known := interpreters_listed.names()):
            raise unknown("interpreter", name, known)
    settings = Settings(names, layer, _split(foolings), budget, minutes, images, seed, device.value)
    request = _network(model, weights)
    writable(out, STATE)
    found = find(data.absolute(), images, seed)
    state = (out / STATE).absolute()
    state.mkdir(parents=True, exist_ok=True)
    (state / "course.json").unlink(missing_ok=True)  # of the last audit, which may be another one
    request |= {"settings": asdict(settings), "state": str(state), "start": start, "listing": _plain(found)}
    request["preprocess"] = None if preprocess is None else _absolute(preprocess)
    request["about"] |= {"data": str(data), "parted": found.parted}
    typer.echo(f"{len(found.attacked)} images to attack with, {len(found.held)} held out; starting ...", err=True)
    if found.ignored:
        typer.echo(f"{data}: {printable(found.left_out)}", err=True)
    try:
        run(request, minutes, typer.echo)
    finally:
        if (state / "course.json").is_file():
            done = Audit.load(state)
            page = write(done, out)
            typer.echo("\n".join(["", *sentences(done), f"report: {page}"]))


def _network(model: str, weights: str | None) -> dict[str, Any]:
    """The network and its weights, looked at from outside: nothing is run."""
    from benchmark.submissions import confine
    from benchmark.submissions.submission import parse

    path = Path(weights) if weights and ("/" in weights or Path(weights).suffix) else None
    if path is not None and not path.is_file():
        raise UserError(f"--weights {weights}: there is no such file")
    used = "its own" if weights is None else weights
    if path is not None:
        used = f"{weights} (sha256 {sha256_of(path)[:16]})"
    request: dict[str, Any] = {"file": "", "model": model, "weights": str(path.absolute()) if path else weights}
    process = "its own; installed code alone"
    if ":" in model or model.endswith(".py"):
        if weights and path is None:
            raise UserError(f"--weights of a network in a file must be a checkpoint (got {weights!r})")
        parsed = parse(model, "model")
        request |= {"file": str(parsed.file), "attribute": parsed.attribute, "digest": parsed.digest}
        process = "its own, confined" if confine.landlock() else "its own, NOT confined: this kernel has no Landlock"
    return {**request, "about": {"model": model, "weights": used, "process": process}}


def _split(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",") if name.strip())


def _absolute(preprocess: str) -> str:
    return os.path.abspath(preprocess) if preprocess.endswith((".toml", ".json")) else preprocess


def _plain(found: Any) -> dict[str, Any]:
    halves = {part: [(str(file.path), file.label) for file in getattr(found, part)] for part in ("attacked", "held")}
    return {**halves, "classes": found.classes, "parted": found.parted}

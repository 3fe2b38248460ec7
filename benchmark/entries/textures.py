"""What a submission shows on a network that looks elsewhere (`benchmark.entries.texture_nets`) beside the clean one.

A method that explains the network that it is given shows other places for both, for the same image and class; one
that explains what it carries or remembers shows the same, and is not ranked (`benchmark.leaderboards.ranking`,
SAME_ON_TEXTURES). A stranger's method alone is asked, in suites with a gate, about the models that the suite trains.
The receipt of a view holds, image by image, the correlation of the maps of both networks ("alike"), and of the maps of
different images by the clean one ("unrelated"), which is what maps share anyway; or "unchecked", the reason.
"""

from pathlib import Path

import torch

from benchmark.cells import View
from benchmark.entries import permuted, texture_nets
from benchmark.entries.images import batches
from benchmark.entries.kind import Entry, Errors, Inputs, Kind, Receipt, Result
from benchmark.entries.permuted import correlation
from benchmark.entries.texture_nets import TEXTURE_NETS, directions, textured
from benchmark.entries.trained import TRAINED, clean_model, stored_model
from benchmark.run import Run, Spec, create_interpreter, data_spec, dataset, interpreter_spec

LEARNED = 0.6  # of the asked images whose texture the network must tell, else nothing is asked
CODE = (
    *(*texture_nets.CODE, *permuted.CODE),
    *("attacks.ranks", "benchmark.interpreters", "benchmark.metrics", "benchmark.entries.textures"),
)


@torch.no_grad()
def _make(run: Run, view: View, inputs: Inputs, folder: Path) -> Receipt:
    data, seed = dataset(run, "dev"), run.suite.dataset.seed
    images, targets = next(batches(run, "dev"))
    count, generator = directions(run), torch.Generator().manual_seed(seed + 1)
    classes = targets % count
    images = data.normalise(textured(data.denormalise(images), classes, count, generator))
    clean, other = clean_model(run, view.model), stored_model(run, view.model, inputs["textures"])
    right = (other(images).argmax(1) == classes).float().mean().item()
    if not right >= LEARNED:
        return {"textures": {"unchecked": f"the network tells {right:.2f} of the textures, {LEARNED} needed"}}
    interpreter = create_interpreter(run, view.interpreter)
    maps = interpreter(clean, images, classes)
    alike = correlation(maps, interpreter(other, images, classes)), correlation(maps, maps.roll(-1, 0))
    shown = {name: values.double().cpu().tolist() for name, values in zip(("alike", "unrelated"), alike, strict=True)}
    return {"textures": shown | {"right": right}}


def _views(run: Run) -> list[View]:
    """Of the submission, where it is evaluated, on the models that the suite trains."""
    if run.submission is None or run.suite.gate is None or run.submission.name not in run.suite.evaluated:
        return []
    return [View(name, run.submission.name) for name, option in run.suite.models.items() if option.weights is None]


def _spec(run: Run, view: View) -> Spec:
    facts = {"seed": run.suite.dataset.seed, "batch_size": run.suite.scoring.batch_size}
    return facts | {"data": data_spec(run, "dev"), "interpreter": interpreter_spec(run, view.interpreter)}


def _collect(run: Run, errors: Errors) -> list[Result]:
    """For the card: what it showed on each model, and what failed."""
    entries = {view.model: Entry(TEXTURED, view) for view in _views(run)}
    if not entries:
        return []
    shown = {name: receipt["textures"] for name, e in entries.items() if (receipt := e.receipt(run)) is not None}
    failed = {name: errors[entry] for name, entry in entries.items() if entry in errors}
    assert run.submission is not None
    return [(run.submission.name, [], {"textures": shown | {name: {"error": text} for name, text in failed.items()}})]


TEXTURED = Kind(
    name="textured",
    title="textures of",
    make=_make,
    spec=_spec,
    code=CODE,
    wanted=_views,
    needs=lambda run, view: {"model": Entry(TRAINED, view.model), "textures": Entry(TEXTURE_NETS, view.model)},
    collect=_collect,
)

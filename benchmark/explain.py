"""Maps to look at: of one image file under one interpreter, and of a suite's fooled models as the store holds them."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import functional as F

from attacks import foolings
from attacks.errors import UserError, unknown
from benchmark import interpreters, models
from benchmark.cells import Cell, Manipulation, View
from benchmark.datasets import pictures
from benchmark.entries.kind import Entry
from benchmark.entries.originals import ORIGINALS
from benchmark.entries.scores import SCORES
from benchmark.figures.heatmaps import Samples
from benchmark.interpreters.adversarial_explanation import AdversarialExplanation
from benchmark.run import Run, dataset, of_model
from benchmark.sections import Suite
from benchmark.store import intact, mapped


def chosen(suite: Suite, **options: Any) -> Manipulation:
    """A manipulation of the suite: what the options say, of the others the first. `UserError` for an unknown one."""
    allowed: dict[str, list[Any]] = {
        "model": list(suite.models),
        "fooling": suite.foolings,
        "seed": suite.seeds,
        "attacked": suite.attacked,
    }
    for key, value in options.items():
        if value is not None and value not in allowed[key]:
            raise unknown(f"{key} of suite {suite.name!r}", str(value), map(str, allowed[key]))
    return Manipulation(**{key: allowed[key][0] if value is None else value for key, value in options.items()})


def samples(run: Run, manipulation: Manipulation, with_images: bool) -> Samples:
    """What `figures.heatmaps` draws of one manipulation, by every interpreter but the controls: read from the store,
    which must hold it."""
    run, fooling = of_model(run, manipulation.model), foolings.create(manipulation.fooling)
    originals, fooled = {}, {}
    for evaluated in run.suite.evaluated:
        if interpreters.kind(evaluated).control:
            continue
        before = Entry(ORIGINALS, View(manipulation.model, evaluated, fooling.pairs)).path(run)
        after = Entry(SCORES, Cell(manipulation, evaluated)).path(run)
        if not (after / "samples.npy").is_file():
            raise UserError(f"the store {run.store} holds no heatmaps of this manipulation: foolbench run makes them")
        fooled[evaluated] = intact(after / "samples.npy", np.load)
        maps = intact(before / "heatmaps.npy", mapped)
        originals[evaluated] = (maps if maps.ndim == 3 else maps[:, 0])[: len(fooled[evaluated])]
    pictures = None
    if with_images:
        data = dataset(run, run.suite.scoring.split, fooling.pairs)
        images = torch.stack([data[i][0] for i in range(len(next(iter(fooled.values()))))])
        pictures = data.denormalise(images).permute(0, 2, 3, 1).numpy()
    place = f"{manipulation.model}, {manipulation.fooling} fooling of {manipulation.attacked}"
    title = f"{place} (seed {manipulation.seed}): first scored images"
    return Samples(originals, fooled, pictures, title)


def explain(image: Path, model_name: str, weights: str, interpreter_name: str, target: int | None) -> Samples:
    """One image file under one interpreter, resized, cropped and normalised as the weights want it.

    An adversarial explanation is shown as the image that it is, too.
    """
    if not image.is_file():
        raise UserError(f"image {image} cannot be read: it is no file")
    picture = F.pil_to_tensor(pictures.opened(image))
    interpreter = interpreters.create(interpreter_name)
    if target is not None and not 0 <= target < 2**63:
        raise UserError(f"targets must be class indices, 0 or more (got {target})")
    if sys.stderr.isatty():  # some take minutes
        sys.stderr.write(f"reading {model_name}, then explaining by {interpreter_name} ...\n")
    model = models.create(model_name, weights=weights)
    preset = models.preprocessing(model_name, weights)
    pixels = pixels_of(picture, preset)[None]
    normalised = F.normalize(pixels, preset.mean, preset.std)
    with torch.no_grad():
        logits = model(normalised)
        label = torch.tensor([int(logits.argmax()) if target is None else target])
        attribution = interpreter.attribute(model, normalised, label)
    rows = {interpreter_name: interpreter.heatmap(attribution)}
    if isinstance(interpreter, AdversarialExplanation):
        explained = pixels + attribution * torch.tensor(preset.std).view(3, 1, 1)
        rows = {"image + δ": explained.clamp(0, 1).permute(0, 2, 3, 1), **rows}
    names = models.class_names(model_name, weights)
    known = f" ({names[int(label)]})" if names else ""
    title = f"{model_name}, {interpreter_name}, class {int(label)}{known}, logit {logits[0, int(label)]:.2f}"
    return Samples({name: row.numpy() for name, row in rows.items()}, {}, pixels.permute(0, 2, 3, 1).numpy(), title)


def pixels_of(picture: Tensor, preset: Any) -> Tensor:
    """A picture (3, H, W) of bytes as the pixels in [0, 1] that a preset of torchvision would normalise."""
    resized = F.resize(picture, preset.resize_size, interpolation=preset.interpolation, antialias=preset.antialias)
    return F.convert_image_dtype(F.center_crop(resized, preset.crop_size))

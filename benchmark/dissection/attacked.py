"""Adversarial images of a clean model, each toward another class (the classes in turn), of those of the first scored
images that it has right. `images.safetensors`: x and x' (N, 3, H, W) in [0, 1] as `images` and `attacked`; labels,
targets and places in the split (N,); `reached` (N,), whether the model puts x' in its target class."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attacks.errors import UserError
from attacks.pixels import OnPixels
from attacks.toward import ATTACKS
from benchmark.dissection.promotion import reaches
from benchmark.entries import trained
from benchmark.entries.images import batches, first_images, scored_pixels
from benchmark.entries.kind import Entry, Inputs, Kind, Receipt
from benchmark.entries.trained import TRAINED, clean_model
from benchmark.run import Run, Spec, data_spec, dataset, provenance
from benchmark.sections import Dissection
from benchmark.store import intact

CODE = (
    *trained.CODE,
    *("attacks.borrowed", "attacks.given", "attacks.structured", "attacks.ranks", "attacks.toward"),
    *("benchmark.dissection.promotion", "benchmark.dissection.attacked"),
)


@dataclass(frozen=True)
class Adversarial:
    """The images of one clean model under one attack."""

    model: str
    attack: str

    def __str__(self) -> str:
        return f"{self.model} by {self.attack}"


def settings(run: Run) -> Dissection:
    """What the suite says of dissection, as it must."""
    assert run.suite.dissection is not None
    return run.suite.dissection


def on_pixels(run: Run, model: nn.Module) -> OnPixels:
    """The model on images in [0, 1], in eval mode."""
    data = dataset(run, run.suite.scoring.split)
    return OnPixels(model, data.mean, data.std).eval()


def read(run: Run, folder: Path) -> dict[str, Tensor]:
    """What an entry holds, by name, on the run's device."""
    return {name: value.to(run.device) for name, value in intact(folder / "images.safetensors", load_file).items()}


def those(pairs: dict[str, Tensor], chosen: Tensor | slice) -> dict[str, Tensor]:
    """A part of the images, with all that is known of each."""
    return {name: value[chosen] for name, value in pairs.items()}


def _make(run: Run, place: Adversarial, inputs: Inputs, folder: Path) -> Receipt:
    split, size, options = run.suite.scoring.split, run.suite.scoring.batch_size, settings(run).attacks[place.attack]
    data, model, parts = dataset(run, split), on_pixels(run, clean_model(run, place.model)), []
    for ids, images, labels in first_images(batches(run, split), settings(run).images):
        images, places = data.denormalise(images), torch.tensor(ids, device=labels.device)
        targets = (labels + 1 + places % (data.num_classes - 1)) % data.num_classes
        with torch.no_grad():
            right = model(images).argmax(1) == labels
        images, labels, targets, places = (part[right] for part in (images, labels, targets, places))
        changed = ATTACKS[place.attack](model, images, targets, **options) if len(images) else images
        parts.append((images, changed, labels, targets, places))
    names = ("images", "attacked", "labels", "targets", "places")
    pairs = {name: torch.cat(part) for name, part in zip(names, zip(*parts, strict=True), strict=True)}
    if not len(pairs["images"]):
        raise UserError(f"{place.model} classifies none of the scored images right: there is nothing to attack")
    pairs["reached"] = reaches(model, pairs["attacked"], pairs["targets"], batch_size=size)
    save_file({name: value.cpu().contiguous() for name, value in pairs.items()}, folder / "images.safetensors")
    return provenance(run)


def _spec(run: Run, place: Adversarial) -> Spec:
    return {
        "data": data_spec(run, run.suite.scoring.split),
        "images": settings(run).images,
        "attack": {"name": place.attack, **settings(run).attacks[place.attack]},
    }


ATTACKED = Kind(
    name="attacked",
    title="attack",
    make=_make,
    spec=_spec,
    code=CODE,
    needs=lambda run, place: {"model": Entry(TRAINED, place.model)},
    after=lambda run, place: scored_pixels(run),
)

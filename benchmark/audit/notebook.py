"""`audit.run`: an audit of a network in this process, as a notebook has it."""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from attacks.errors import UserError, one_line, unknown
from attacks.given import check_finite, check_images, copied
from benchmark.audit import preprocess as preparing
from benchmark.audit.findings import Audit
from benchmark.audit.listing import Listing, find
from benchmark.audit.measure import SHOWN
from benchmark.audit.network import ready
from benchmark.audit.report import write
from benchmark.audit.settings import FEWEST, Settings
from benchmark.audit.study import Photographs, audit
from benchmark.store import writable

STATE = ".state"  # in the folder of the report


def run(
    model: nn.Module,
    dataset: Any,
    interpreters: Iterable[str] | None = None,
    *,
    preprocess: str = "imagenet",
    out: str | Path | None = None,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> Audit:
    """Which interpreters of this network can be fooled, how far and at what cost (`Audit`).

    `model` is given back unchanged: a copy is attacked. `dataset`: a folder or CSV of images, for which `preprocess`
    counts (a name, or a file), or anything with a length that gives (image (C, H, W), class index), as the network
    takes it; of images alone the targets are what the network predicts. `interpreters` None: what the network supports
    of the usual ones. `out`: the folder of the report, in which an audit also goes on where an earlier one was stopped;
    none is written where it is None. `say` takes each line of progress. Other options are those of
    `benchmark.audit.settings.Settings`. Raises `UserError`.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model must be a torch.nn.Module (got {type(model).__name__})")
    known = {field.name for field in fields(Settings)}
    if wrong := [name for name in options if name not in known]:
        raise unknown("option of an audit", wrong[0], {*known, "preprocess", "out", "say"})
    first = next(model.parameters(), torch.empty(0))
    named: Any = interpreters  # which the settings look at
    settings = Settings(named, **{**options, "device": _device(options.get("device", first.device))})
    if out:
        writable(Path(out), STATE)
    if isinstance(dataset, (str, Path)):
        listing = find(Path(dataset), settings.images, settings.seed)
        if say and listing.ignored:
            say(f"{dataset}: {listing.left_out}")
        photographs, form = read(listing, preparing.create(str(preprocess))), preprocess
    else:
        photographs, form = taken(dataset, settings.images, settings.seed), "the data set's own"
    about = {"model": type(model).__name__, "weights": "as given", "data": _named(dataset), "preprocess": str(form)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(out) / STATE if out else Path(scratch)
        double = ready(copied(model), settings.device)
        audit(double, moved(photographs, settings.device), settings, folder, about, say or _silent)
        found = Audit.load(folder)
    if out:
        write(found, out)
    return found


def read(listing: Listing, preprocess: preparing.Preprocess) -> Photographs:
    """The listed files, decoded and normalised."""
    halves = []
    for files in (listing.attacked, listing.held):
        pixels = preparing.decoded(files, preprocess)
        labels = None if files[0].label is None else torch.tensor([file.label for file in files])
        halves.append((preprocess.normalise(pixels), labels))
    return Photographs(halves[0], halves[1], pixels[:SHOWN], listing.classes)


def taken(dataset: Any, images: int, seed: int) -> Photographs:
    """A data set's images in a random order, no two of the same values: half of them held out."""
    try:
        count = len(dataset)
    except TypeError as error:
        raise UserError(f"dataset must have a length (got {type(dataset).__name__})") from error
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    found: dict[bytes, tuple[Tensor, int | None]] = {}
    for index in order:
        try:
            item = dataset[index]
        except (LookupError, TypeError) as error:
            what = f"{type(dataset).__name__} failed at {index}: {type(error).__name__}: {one_line(error)}"
            own = ": give that which it loads, its `dataset`" if isinstance(dataset, DataLoader) else ""
            raise UserError(f"dataset must give its items by their index ({what}){own}") from error
        image, target = _item(item, index)
        found.setdefault(image.contiguous().numpy().tobytes(), (image, target))
        if len(found) == images:
            break
    if len(found) < FEWEST:
        raise UserError(f"dataset must hold at least {FEWEST} different images (got {len(found)})")
    if len({image.shape for image, _ in found.values()}) > 1:
        raise UserError("dataset must give images of one shape")
    pictures = torch.stack([image for image, _ in found.values()])
    labels = [label for _, label in found.values() if label is not None]
    if 0 < len(labels) < len(found):
        raise UserError("dataset must give a class index with every image, or with none")
    check_images(pictures)
    check_finite(pictures)
    half, targets = len(pictures) // 2, torch.tensor(labels) if labels else None
    if targets is not None and len(targets[:half].unique()) < 2:
        raise UserError("dataset must give images of at least two classes")
    attacked, held = (
        (pictures[part], targets if targets is None else targets[part]) for part in (slice(half, None), slice(half))
    )
    return Photographs(attacked, held, _visible(dataset, pictures[:SHOWN]))


def moved(photographs: Photographs, device: str) -> Photographs:
    """On that device."""
    halves = [
        (images.to(device), None if targets is None else targets.to(device))
        for images, targets in (photographs.attacked, photographs.held)
    ]
    return Photographs(halves[0], halves[1], photographs.shown, photographs.classes)


def _item(item: Any, index: int) -> tuple[Tensor, int | None]:
    """An image, and its label where the item is not an image alone."""
    parts = (item,) if isinstance(item, Tensor) else item
    if not isinstance(parts, Sequence) or len(parts) not in (1, 2) or not _is_image(parts[0]):
        raise UserError(
            f"dataset must give (image (C, H, W) as a tensor, class index) (item {index} is none): got {_form(item)}"
        )
    image, *labels = parts
    if not image.is_floating_point():
        raise UserError(
            f"dataset must give images as the network takes them, of floating point (item {index} has {image.dtype})"
        )
    return image.detach().cpu().float(), _label(labels[0], index) if labels else None


def _is_image(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dim() == 3


def _label(given: Any, index: int) -> int:
    try:
        label = int(given)
        whole = label == float(given) and 0 <= label < 2**31
    except (TypeError, ValueError, RuntimeError, OverflowError):  # the last two: many values, and infinity
        whole = False
    if not whole:
        raise UserError(
            f"dataset must give one class index for each image (item {index} has {one_line(repr(given))}): 0, 1, ..."
        )
    return label


def _device(given: Any) -> str:
    """As torch calls it; "auto": CUDA where there is any. `UserError` where nothing can be computed on it."""
    name = str(given)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: torch without CUDA
        raise UserError(
            f"device {name!r} cannot be computed on ({one_line(error)[:200]}); allowed: auto, cpu, cuda"
        ) from error
    return name


def _form(item: Any) -> str:
    parts = item if isinstance(item, (tuple, list)) else [item]
    return ", ".join(f"{type(p).__name__}{f' {tuple(p.shape)}' if isinstance(p, Tensor) else ''}" for p in parts[:4])


def _visible(dataset: Any, images: Tensor) -> Tensor:
    """(m, 3, H, W) in [0, 1]: as the data set denormalises them, else each from its least to its largest value."""
    own = getattr(dataset, "denormalise", None)
    if callable(own):
        return own(images).clamp(0, 1)
    flat = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    low, high = flat.amin((1, 2, 3), keepdim=True), flat.amax((1, 2, 3), keepdim=True)
    return (flat - low) / torch.where(high > low, high - low, 1)


def _named(dataset: Any) -> str:
    return str(dataset) if isinstance(dataset, (str, Path)) else type(dataset).__name__


def _silent(_: str) -> None:
    pass

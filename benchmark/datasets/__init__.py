"""Datasets by name. An entry is one line of `DATASETS`: the module and the class that builds the dataset."""

from collections.abc import Collection
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attacks.errors import UserError, unknown

if TYPE_CHECKING:
    from benchmark.datasets.augmentation import Augment
    from benchmark.datasets.base import Dataset, check_disjoint, loader

DATASETS = {
    "shapes": "shapes:Shapes",
    "digits": "digits:Digits",
    "imagenet": "folders:ImageNet",
    "image_folder": "folders:ImageFolder",
    "cifar10": "folders:CIFAR10",
    "cifar10_imagenet_norm": "folders:CIFAR10ImageNetNorm",
}
PHOTOGRAPHS = ("imagenet", "image_folder")
MOST = 2**31 - 1
SPLITS = ("train", "dev", "test")
__all__ = ["DATASETS", "SPLITS", "Dataset", "check_disjoint", "create", "loader", "names"]


def names() -> list[str]:
    return list(DATASETS)


def create(
    name: str,
    split: str = "train",
    seed: int = 0,
    *,
    root: str | Path | None = None,
    size: int | None = None,
    input_size: int | None = None,
    two_objects: bool = False,
    augment: "Augment" = False,
    class_pair: tuple[int, int] | None = None,
    without: Collection[str] = (),
    transforms: Any = None,
    tested: int | None = None,
) -> "Dataset":
    """The dataset `name`: normalised float32 (3, H, W) images, each with its class.

    The three splits share no image. `seed` fixes what is drawn and the order; `size` keeps the first images of that
    order, so that image i is the same at any size (None: all, or the default of a drawn dataset). `root` is the folder
    of a dataset that is read from disk, unused by the others. With `two_objects` each image shows two different
    classes, the target is (2,), and `class_pair` fixes which two. `augment` asks for the random crops and flips of
    training, "strong" for changes of colour, too. `without`: files to leave out, as paths below the root. `transforms`:
    torchvision's preset of some weights (`resize_size`, `crop_size`, `interpolation`, `mean`, `std`), of photographs
    alone. `tested`: so many of ImageNet's val are test, as the seed orders them, the others are dev.
    """
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    _check_range(name, seed=(seed, 0), size=(size, 1), input_size=(input_size, 16), tested=(tested, 1))
    if augment not in (False, True, "strong"):
        raise UserError(f"augment of dataset {name!r} must be False, True or 'strong' (got {augment!r})")
    if class_pair is not None and not two_objects:
        raise UserError(f"class_pair of dataset {name!r} needs two_objects=True (got class_pair={class_pair})")

    from benchmark.datasets.base import Options  # torch is loaded on first use, so that names can be listed without it

    module, attribute = DATASETS[name].split(":")
    kind = getattr(import_module(f"benchmark.datasets.{module}"), attribute)
    if transforms is not None and name not in PHOTOGRAPHS:
        raise UserError(f"transforms are of photographs: {' and '.join(PHOTOGRAPHS)} (got dataset {name!r})")
    if tested is not None and name != "imagenet":
        raise UserError(f"tested is of imagenet's val (got dataset {name!r})")
    side = input_size or (kind.default_size if transforms is None else transforms.crop_size[0])
    folder = None if root is None else Path(root)
    left_out = frozenset(without)
    options = Options(split, seed, folder, size, side, two_objects, augment, class_pair, left_out, transforms, tested)
    if not two_objects or kind.draws_pairs:
        return kind(options)

    from benchmark.datasets.mosaics import Mosaics

    if side % 2:
        raise UserError(f"input_size of a mosaic must be even (got {side} for dataset {name!r})")
    return Mosaics(kind(replace(options, size=None, input_size=side // 2)), options)


def _check_range(name: str, **given: tuple[int | None, int]) -> None:
    """Of values that a dataset was given, each with the least that is allowed."""
    for what, (value, least) in given.items():
        if value is not None and not least <= value <= MOST:
            limit = f"at least {least}" if value < least else f"at most {MOST}"
            raise UserError(f"{what} of dataset {name!r} must be {limit} (got {value})")


def __getattr__(name: str) -> Any:
    if name in ("Dataset", "check_disjoint", "loader"):
        return getattr(import_module("benchmark.datasets.base"), name)
    raise AttributeError(f"module 'benchmark.datasets' has no attribute {name!r}")

"""Datasets read from a folder: `imagenet`, `image_folder` and `cifar10`. Nothing is downloaded, nothing is unpickled.

Photographs are preprocessed as torchvision's classifiers expect (and as Heo et al. 2019 do): to evaluate, the short
side to 256 and the central 224 (in proportion at another input size), or what `transforms` say; to train,
RandomResizedCrop and a flip. A split
held out of a folder is chosen by the sha256 of the path below the root: it never moves, `seed` only orders the images.
"""

import copy
import hashlib
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from attacks.errors import UserError
from benchmark.datasets import SPLITS, cifar, pictures
from benchmark.datasets.augmentation import of_photographs
from benchmark.datasets.base import Arrays, Dataset, Item, Options

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Entry = tuple[str, str]  # (path below the root, class)


class Files(Dataset):
    """Images decoded when asked for. A subclass lists the files of its split. `ignored`: the files and folders beside
    them that are no images, as paths below the root; hidden ones (".name") are not looked at."""

    default_size = 224
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, options: Options) -> None:
        self.options, self.split, self.input_size = options, options.split, (side := options.input_size)
        self.root = _existing(options.root, self.name)
        self.ignored: list[str] = []
        entries, ranks = self.listing()
        entries = self.ordered(entries)[: options.size]
        if not entries:
            raise UserError(f"dataset {self.name!r}: {self.root} has too few images for a split {self.split!r}")
        self.paths = [path for path, _ in entries]
        self.targets = torch.tensor([ranks[c] for _, c in entries], device="cpu")
        short, crop_side, interpolation = 256, 224, v2.InterpolationMode.BILINEAR
        if (preset := options.transforms) is not None:
            (short,), (crop_side,), interpolation = preset.resize_size, preset.crop_size, preset.interpolation
            self.mean, self.std = tuple(preset.mean), tuple(preset.std)
        centre = [v2.Resize(side * short // crop_side, interpolation), v2.CenterCrop(side)]
        shown = of_photographs(side, options.augment, interpolation) if options.augment else centre
        self._cut = v2.Compose([*shown, v2.PILToTensor()])
        self._normalised = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)])
        self._decoded: Path | None = None

    def listing(self) -> tuple[list[Entry], dict[str, int]]:
        """The images of the split, and the index of each class; sets `num_classes` and `class_names`."""
        raise NotImplementedError

    def ordered(self, entries: list[Entry]) -> list[Entry]:
        """These but those left out, as the seed orders them."""
        kept = (entry for entry in entries if entry[0] not in self.options.without)
        return sorted(kept, key=lambda e: _digest(os.fsencode(f"{self.options.seed}/{e[0]}")))

    def images(self, part: str) -> list[Entry]:
        """Every image of root/part/CLASS/ and of the folders in it; what else is there is `ignored`."""
        folder, entries = self.root / part, list[Entry]()
        if not (classes := _subfolders(folder)):
            raise UserError(
                f"dataset {self.name!r}: {folder} must be a folder with one subfolder of images for each class"
            )
        found = [(e.name, "") for e in os.scandir(folder) if e.name[0] != "." and not e.is_dir()]
        for c in classes:
            files = [(f"{c}/{file}", c) for file in _walked(f"{folder}/{c}")]
            if not any(file.lower().endswith(pictures.SUFFIXES) for file, _ in files):
                allowed = ", ".join(pictures.SUFFIXES)
                raise UserError(f"dataset {self.name!r}: class folder {folder / c} holds no image ({allowed})")
            found += files
        for file, c in found:
            path = f"{part}/{file}".lstrip("/")
            if c and file.lower().endswith(pictures.SUFFIXES):
                entries.append((path, c))
            else:
                self.ignored.append(path)
        return entries

    def __getitem__(self, index: int) -> Item:
        return self._normalised(self.pixels(index)), self.target(index)

    def pixels(self, index: int) -> Tensor:
        """(3, H, W) uint8: the crop, before it is normalised."""
        if self._decoded is not None:
            return torch.from_numpy(np.array(_mapped(self._decoded)[index]))
        return self._cut(pictures.opened(self.root / self.paths[index], f"dataset {self.name!r}: "))

    def decoded(self, path: Path) -> "Files":
        """This dataset with its crops read from an array (n, 3, H, W) of `pixels`, through a memory map."""
        dataset = copy.copy(self)
        dataset._decoded = path
        return dataset

    def hash_of(self, index: int) -> str:
        path = self.root / self.paths[index]
        return _digest_of(path, path.stat().st_mtime_ns)

    def files(self, index: int) -> tuple[str, ...]:
        return (self.paths[index],)

    def where(self, index: int) -> str:
        return f"{self.root / self.paths[index]} ({self.name}/{self.split})"


class ImageNet(Files):
    """root/train/WNID/* and root/val/WNID/*, any subset of the classes; dev is a tenth of train, test is val. With
    `tested` only so many of val are test, and the others join dev: a tenth of a small folder cannot tell a point.

    ImageNet has some images twice: a suite leaves out of train what dev or test has, and of dev what test has.
    With root/imagenet_class_index.json ({"0": ["n01440764", "tench"], ...}) a class keeps its rank among all 1,000.
    """

    name = "imagenet"

    def listing(self) -> tuple[list[Entry], dict[str, int]]:
        entries = self.images("val" if self.split == "test" else "train")
        if self.split != "test":
            entries = [entry for entry in entries if (_tenth(os.fsencode(entry[0])) == 0) == (self.split == "dev")]
        if (tested := self.options.tested) is not None:
            if self.split == "test":
                entries = self.ordered(entries)[:tested]
            elif self.split == "dev":
                entries += self.ordered(self.images("val"))[tested:]
        index = self.root / "imagenet_class_index.json"
        if index.exists():
            try:
                table = json.loads(index.read_text("utf-8-sig"))
                wnids, self.class_names = map(list, zip(*(table[str(i)] for i in range(len(table))), strict=True))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f'{index} must map "0", "1", ... to [WNID, name] ({error!r})') from error
        else:
            wnids = sorted({c for p in ("train", "val") for c in _subfolders(self.root / p)})
            self.class_names = [_printable(c) for c in wnids]
        self.num_classes = len(wnids)
        ranks = {wnid: i for i, wnid in enumerate(wnids)}
        if strange := sorted({c for _, c in entries} - set(ranks)):
            raise UserError(f"dataset 'imagenet': class folder {strange[0]!r} of {self.root} is not in {index.name}")
        return entries, ranks


SPLIT_LIKE = ("train", "training", "dev", "val", "valid", "validation", "test", "testing")


class ImageFolder(Files):
    """root/{train,dev or val,test}/CLASS/*, or root/CLASS/* split 80/10/10; classes in alphabetical order."""

    name = "image_folder"

    def listing(self) -> tuple[list[Entry], dict[str, int]]:
        if _subfolders(self.root / "train"):
            names = {split: split for split in SPLITS}
            names["dev"] = "dev" if (self.root / "dev").is_dir() else "val"
            others = [other for other in _subfolders(self.root) if other not in names.values()]
            if "val" in others or not (self.root / names[self.split]).is_dir():
                allowed = "train, dev (or val, not both) and test"
                raise UserError(f"dataset {self.name!r}: {self.root} must hold {allowed} (got {self._got()})")
            self.ignored = others
            entries = self.images(names[self.split])
            classes = sorted({c for part in names.values() for c in _subfolders(self.root / part)})
        else:
            classes = _subfolders(self.root)
            if like := [c for c in classes if c.lower() in SPLIT_LIKE and _subfolders(self.root / c)]:
                allowed = "train, dev (or val) and test"
                raise UserError(
                    f"dataset {self.name!r}: folders of splits in {self.root} are {allowed} (got {like[0]!r})"
                )
            entries = self.images("")
            part = {0: "dev", 1: "test"}
            entries = [entry for entry in entries if part.get(_tenth(os.fsencode(entry[0])), "train") == self.split]
        self.class_names, self.num_classes = [_printable(c) for c in classes], len(classes)
        return entries, {c: i for i, c in enumerate(classes)}

    def _got(self) -> str:
        return ", ".join(_printable(name) for name in _subfolders(self.root))


def _existing(root: Path | None, name: str) -> Path:
    if root is None:
        raise UserError(f"dataset {name!r} needs --data DIR (root=), the folder that holds its images")
    if not root.is_dir():
        raise UserError(f"dataset {name!r}: no folder {root}")
    return root


@cache  # of each process: a dataset that holds a map would be pickled with the whole of it
def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


@cache  # the splits of a folder, and its mosaics, are of the same files
def _digest_of(path: Path, changed: int) -> str:
    return _digest(path.read_bytes())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _tenth(content: bytes) -> int:
    """0..9, evenly."""
    return int(_digest(content)[:8], 16) % 10


def _subfolders(path: Path) -> list[str]:
    return sorted(e.name for e in os.scandir(path) if e.is_dir() and e.name[0] != ".") if path.is_dir() else []


def _walked(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """The files in a folder and in those below it, each by its path below that folder; a link in a circle ends."""
    above = (*above, os.path.realpath(folder))
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name[0] == ".":
            continue
        if not entry.is_dir():
            yield entry.name
        elif os.path.realpath(entry.path) not in above:
            yield from (f"{entry.name}/{file}" for file in _walked(entry.path, above))


def _printable(name: str) -> str:
    """A file's name as text, whatever bytes it has."""
    return os.fsencode(name).decode(errors="backslashreplace")


class CIFAR10(Arrays):
    """CIFAR-10 as `cifar` reads it. dev is a tenth of train, chosen by content; an image of the test set is dropped
    from train and dev."""

    name = "cifar10"
    default_size = 32
    num_classes = 10
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

    def __init__(self, options: Options) -> None:
        self.class_names, self.split = list(CIFAR10_CLASSES), options.split
        folder = _existing(options.root, self.name)
        pixels, targets = cifar.read(folder, "test")
        members = np.arange(len(pixels))
        if self.split != "test":
            tested = {image.tobytes() for image in pixels}
            pixels, targets = cifar.read(folder, "train")
            contents = [image.tobytes() for image in pixels]
            part = [c not in tested and (_tenth(c) == 0) == (self.split == "dev") for c in contents]
            members = np.flatnonzero(part)
        kept = np.random.default_rng([options.seed, SPLITS.index(self.split)]).permutation(members)[: options.size]
        super().__init__(pixels[kept], targets[kept], options.input_size, augment=options.augment)


class CIFAR10ImageNetNorm(CIFAR10):
    """The same images, normalised by ImageNet's mean and deviation: the ResNet-20 that is passed around was trained
    so."""

    name = "cifar10_imagenet_norm"
    mean, std = Files.mean, Files.std

"""Datasets read from a folder: `imagenet`, `image_folder` and `cifar10`. Nothing is downloaded, nothing is unpickled.

Photographs are preprocessed as torchvision's classifiers expect (and as Heo et al. 2019 do): to evaluate, the short
side to 256 and the central 224 (in proportion at another input size); to train, RandomResizedCrop and a flip. A split
held out of a folder is chosen by the sha256 of the path below the root: it never moves, `seed` only orders the images.
"""

import copy
import hashlib
import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from attacks.errors import UserError, may_pass
from benchmark.datasets import SPLITS
from benchmark.datasets.base import Arrays, Dataset, Item, Options

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Entry = tuple[str, str]  # (path below the root, class)


class Files(Dataset):
    """Images decoded when asked for. A subclass lists the files of its split."""

    default_size = 224
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, options: Options) -> None:
        self.split, self.input_size = options.split, (side := options.input_size)
        self.root = _existing(options.root, self.name)
        entries, ranks = self.listing()
        entries = [entry for entry in entries if entry[0] not in options.without]
        if not entries:
            raise UserError(f"dataset {self.name!r}: {self.root} has too few images for a split {self.split!r}")
        entries = sorted(entries, key=lambda e: _digest(f"{options.seed}/{e[0]}".encode()))[: options.size]
        self.paths = [path for path, _ in entries]
        self.targets = torch.tensor([ranks[c] for _, c in entries])
        crop = [v2.RandomResizedCrop(side), v2.RandomHorizontalFlip()]
        centre = [v2.Resize(side * 256 // 224), v2.CenterCrop(side)]
        self._cut = v2.Compose([*(crop if options.augment else centre), v2.PILToTensor()])
        self._normalised = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)])
        self._decoded: Path | None = None

    def listing(self) -> tuple[list[Entry], dict[str, int]]:
        """The images of the split, and the index of each class; sets `num_classes` and `class_names`."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Item:
        return self._normalised(self.pixels(index)), self.target(index)

    def pixels(self, index: int) -> Tensor:
        """(3, H, W) uint8: the crop, before it is normalised."""
        if self._decoded is not None:
            return torch.from_numpy(np.array(_mapped(self._decoded)[index]))
        path = self.root / self.paths[index]
        try:
            with Image.open(path) as image:
                return self._cut(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            if may_pass(error):
                raise
            raise UserError(f"dataset {self.name!r}: {path} cannot be read as an image: {error}") from error

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
    """root/train/WNID/* and root/val/WNID/*, any subset of the classes; dev is a tenth of train, test is val.

    ImageNet has some images twice: a suite leaves out of train what dev or test has, and of dev what test has.
    With root/imagenet_class_index.json ({"0": ["n01440764", "tench"], ...}) a class keeps its rank among all 1,000.
    """

    name = "imagenet"

    def listing(self) -> tuple[list[Entry], dict[str, int]]:
        entries = _images(self.root, "val" if self.split == "test" else "train", self.name)
        if self.split != "test":
            entries = [entry for entry in entries if (_tenth(entry[0].encode()) == 0) == (self.split == "dev")]
        index = self.root / "imagenet_class_index.json"
        if index.exists():
            try:
                table = json.loads(index.read_text())
                wnids, self.class_names = map(list, zip(*(table[str(i)] for i in range(len(table))), strict=True))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f'{index} must map "0", "1", ... to [WNID, name] ({error!r})') from error
        else:
            wnids = self.class_names = sorted({c for p in ("train", "val") for c in _subfolders(self.root / p)})
        self.num_classes = len(wnids)
        ranks = {wnid: i for i, wnid in enumerate(wnids)}
        if strange := sorted({c for _, c in entries} - set(ranks)):
            raise UserError(f"dataset 'imagenet': class folder {strange[0]!r} of {self.root} is not in {index.name}")
        return entries, ranks


class ImageFolder(Files):
    """root/{train,dev or val,test}/CLASS/*, or root/CLASS/* split 80/10/10; classes in alphabetical order."""

    name = "image_folder"

    def listing(self) -> tuple[list[Entry], dict[str, int]]:
        if _subfolders(self.root / "train"):
            names = {split: split for split in SPLITS}
            names["dev"] = "dev" if (self.root / "dev").is_dir() else "val"
            entries = _images(self.root, names[self.split], self.name)
            self.class_names = sorted({c for part in names.values() for c in _subfolders(self.root / part)})
        else:
            entries = _images(self.root, "", self.name)
            part = {0: "dev", 1: "test"}
            entries = [entry for entry in entries if part.get(_tenth(entry[0].encode()), "train") == self.split]
            self.class_names = _subfolders(self.root)
        self.num_classes = len(self.class_names)
        return entries, {c: i for i, c in enumerate(self.class_names)}


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


def _images(root: Path, part: str, name: str) -> list[Entry]:
    """Every image of root/part/CLASS/*."""
    folder = root / part
    if not (classes := _subfolders(folder)):
        raise UserError(f"dataset {name!r}: {folder} must be a folder with one subfolder of images for each class")
    entries: list[Entry] = []
    for c in classes:
        files = [e.name for e in os.scandir(folder / c) if e.name.lower().endswith(IMG_EXTENSIONS)]
        if not files:
            raise UserError(f"dataset {name!r}: class folder {folder / c} holds no image ({', '.join(IMG_EXTENSIONS)})")
        entries += [(f"{part}/{c}/{file}".lstrip("/"), c) for file in files]
    return entries


class CIFAR10(Arrays):
    """CIFAR-10 (Krizhevsky 2009): its binary version (data_batch_*.bin and test_batch.bin in the root or in
    cifar-10-batches-bin), or arrays train*_x.npy, train*_y.npy, test*_x.npy, test*_y.npy (NHWC uint8, and labels).

    dev is a tenth of train, chosen by content; an image of the test set is dropped from train and dev.
    """

    name = "cifar10"
    default_size = 32
    num_classes = 10
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

    def __init__(self, options: Options) -> None:
        self.class_names, self.split = list(CIFAR10_CLASSES), options.split
        folder = _existing(options.root, self.name)
        pixels, targets = _cifar10(folder, "test")
        members = np.arange(len(pixels))
        if self.split != "test":
            tested = {image.tobytes() for image in pixels}
            pixels, targets = _cifar10(folder, "train")
            contents = [image.tobytes() for image in pixels]
            part = [c not in tested and (_tenth(c) == 0) == (self.split == "dev") for c in contents]
            members = np.flatnonzero(part)
        kept = np.random.default_rng([options.seed, SPLITS.index(self.split)]).permutation(members)[: options.size]
        super().__init__(pixels[kept], targets[kept], options.input_size, augment=options.augment)


def _cifar10(root: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) of "train" or "test"."""
    folder = root / "cifar-10-batches-bin" if (root / "cifar-10-batches-bin").is_dir() else root
    binary = [folder / f"data_batch_{i}.bin" for i in range(1, 6)] if part == "train" else [folder / "test_batch.bin"]
    arrays = [path for axis in "xy" for path in sorted(root.glob(f"{part}*_{axis}.npy"))]
    if not (is_binary := all(path.exists() for path in binary)) and len(arrays) != 2:
        allowed = f"{binary[0].name}, ... (the binary version) or one pair of arrays {part}*_x.npy, {part}*_y.npy"
        raise UserError(f"dataset 'cifar10': {root} must hold {allowed}; the pickled version is not read")
    try:
        if is_binary:
            records = np.concatenate([np.fromfile(path, np.uint8).reshape(-1, 3073) for path in binary])
            pixels, labels = records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]
        else:
            pixels, labels = (np.load(path, allow_pickle=False) for path in arrays)
            pixels = pixels.transpose(0, 3, 1, 2)
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (3, 32, 32) or labels.shape != pixels.shape[:1]:
            raise ValueError("images must be uint8, 32x32, with one label each")
        if not 0 <= labels.min() <= labels.max() < 10:
            raise ValueError("labels must lie in 0..9")
    except (OSError, EOFError, ValueError) as error:
        files = ", ".join(str(path) for path in (binary if is_binary else arrays))
        raise UserError(f"dataset 'cifar10': {files} cannot be read: {error}") from error
    return pixels, labels

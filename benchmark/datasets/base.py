"""What every dataset is: normalised images with their classes, hashed so that splits can be proved disjoint.

Shapes: images (N, 3, H, W) float32, normalised = (pixel - mean) / std with pixels in [0, 1]; targets (N,) or (N, 2).
"""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2
from tqdm.auto import tqdm

from attacks.errors import UserError
from benchmark.datasets.augmentation import Augment, of_small

Triple = tuple[float, float, float]
Item = tuple[Tensor, int | Tensor]


@dataclass(frozen=True)
class Options:
    """What `datasets.create` was asked for, which is how every dataset is built."""

    split: str
    seed: int
    root: Path | None
    size: int | None
    input_size: int
    two_objects: bool
    augment: Augment
    class_pair: tuple[int, int] | None
    without: frozenset[str] = frozenset()
    transforms: Any = None  # a preset of torchvision's weights, of photographs
    tested: int | None = None  # of ImageNet's val: so many are test


class Dataset(TorchDataset[Item]):
    """One split of a dataset. A subclass sets the attributes and writes `hash_of` and either way to get items."""

    draws_pairs = False  # True: it has a two-object form of its own; otherwise `mosaics` makes one of its images
    default_size = 64  # of the input, in pixels
    name: str
    split: str
    num_classes: int
    class_names: list[str]
    input_size: int
    mean: Triple
    std: Triple
    targets: Tensor  # (N,) or (N, 2) int64: all targets, without reading an image

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Item:
        """((3, H, W) float32 normalised, class); with two objects the target is (2,) int64, two different classes."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Many items at once, as a DataLoader asks for them."""
        return [self[i] for i in indices]

    def target(self, index: int) -> int | Tensor:
        return int(self.targets[index]) if self.targets.ndim == 1 else self.targets[index]

    def hash_of(self, index: int) -> str:
        """sha256 of the image's content: of its uint8 pixels as stored, or of its file."""
        raise NotImplementedError

    def hashes(self) -> list[str]:
        return [self.hash_of(i) for i in range(len(self))]

    def sources(self, index: int) -> tuple[str, ...]:
        """The hashes of the images that item `index` is made of: itself, or the tiles of a mosaic."""
        return (self.hash_of(index),)

    @cached_property
    def all_sources(self) -> list[tuple[str, ...]]:
        """`sources` of every item, read side by side: a shared disk answers late, but many at once."""
        what, n = f"reading {self.name}/{self.split}", len(self)
        if n > 10_000 and self.files(0) and not sys.stderr.isatty():
            sys.stderr.write(f"{what}: {n} images\n")
        with ThreadPool(16) as pool:
            hashes = pool.imap(self.sources, range(n), chunksize=64)
            return list(tqdm(hashes, what, n, leave=False, disable=None, unit="image", delay=2))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "all_sources"}

    def files(self, index: int) -> tuple[str, ...]:
        """The files that item `index` is made of, beside `sources`; none of a dataset in memory."""
        return ()

    @property
    def inventory(self) -> str:
        """A digest of the files and targets, for which no image is read."""
        files = "\n".join(file for i in range(len(self)) for file in self.files(i))
        return hashlib.sha256(os.fsencode(files) + self.targets.numpy().tobytes()).hexdigest()

    def where(self, index: int) -> str:
        """Item `index` in words, for an error message."""
        return f"image {index} of {self.name}/{self.split}"

    def normalise(self, images: Tensor) -> Tensor:
        """(..., 3, H, W) in [0, 1] -> normalised."""
        return (images - images.new_tensor(self.mean).view(3, 1, 1)) / images.new_tensor(self.std).view(3, 1, 1)

    def denormalise(self, images: Tensor) -> Tensor:
        """(..., 3, H, W) normalised -> [0, 1]."""
        pixels = images * images.new_tensor(self.std).view(3, 1, 1) + images.new_tensor(self.mean).view(3, 1, 1)
        return pixels.clamp(0, 1)


class Arrays(Dataset):
    """A dataset in memory: pixels (N, 1 or 3, h, w) uint8, resized to `input_size` when asked for."""

    def __init__(self, pixels: np.ndarray, targets: np.ndarray, input_size: int, *, augment: Augment = False) -> None:
        self.pixels = torch.from_numpy(np.ascontiguousarray(pixels))
        self.targets = torch.from_numpy(np.asarray(targets, dtype=np.int64))
        self.input_size = input_size
        self._augment = v2.Compose(of_small(self.pixels.shape[-1], augment)) if augment else None

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        pixels = self.pixels[torch.as_tensor(indices, device="cpu")]
        if self._augment is not None:
            pixels = torch.stack([self._augment(image) for image in pixels])
        images = pixels.float().div_(255)
        if images.shape[-2:] != (self.input_size, self.input_size):
            images = F.interpolate(images, (self.input_size, self.input_size), mode="bilinear", antialias=True)
        images = self.normalise(images.expand(-1, 3, -1, -1))
        return [(image, self.target(i)) for image, i in zip(images, indices, strict=True)]

    def hash_of(self, index: int) -> str:
        return hashlib.sha256(self.pixels[index].numpy().tobytes()).hexdigest()


def check_memory(needed: int, name: str, what: str) -> None:
    """UserError where so many bytes are more than the machine has, before it starts to swap or kill."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        sizes = f"need {needed / 2**30:.3g} GiB, this machine has {there / 2**30:.3g}"
        raise UserError(f"dataset {name!r}: {what} {sizes}: a smaller size or input_size is needed")


def check_pair(pair: tuple[int, int], num_classes: int, name: str) -> None:
    """UserError unless `pair` is two different class indices."""
    if len(pair) != 2 or pair[0] == pair[1] or not all(0 <= c < num_classes for c in pair):
        allowed = f"two different class indices in 0..{num_classes - 1}"
        raise UserError(f"class_pair of dataset {name!r} must be {allowed} (got {pair})")


def overlaps(*datasets: Dataset) -> Iterator[tuple[Dataset, int, int, Dataset, int]]:
    """(dataset, index, part, other, index of it) for each part of an item (a tile of a mosaic, else the image) whose
    content is in an earlier one of the datasets, too."""
    seen: dict[str, tuple[Dataset, int]] = {}
    for dataset in datasets:
        places: dict[str, tuple[Dataset, int]] = {}
        for i, sources in enumerate(dataset.all_sources):
            for part, digest in enumerate(sources):
                if digest in seen:
                    yield dataset, i, part, *seen[digest]
                places.setdefault(digest, (dataset, i))
        seen = places | seen


def check_disjoint(*datasets: Dataset) -> None:
    """UserError, naming both splits and one offender, when two datasets share an image (of mosaics: a tile)."""
    for dataset, i, _, other, j in overlaps(*datasets):
        raise UserError(f"splits must share no image: {dataset.where(i)} is also {other.where(j)}")


def loader(
    dataset: Dataset, batch_size: int, *, shuffle: bool = False, seed: int = 0, workers: int = 0, device: str = "cpu"
) -> DataLoader[Item]:
    """Batches ((N, 3, H, W), (N,) or (N, 2)) from a generator of their own: `seed` fixes the order of every epoch.

    It also seeds the workers' torch generators, from which augmentation draws; without workers augmentation draws from
    the global torch generator, which is the caller's to seed. For a CUDA `device` batches lie in pinned memory.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1 (got {batch_size})")
    generator = torch.Generator().manual_seed(seed)
    pinned = torch.device(device).type == "cuda"
    # in a spawned process the default is to spawn again: five seconds a worker, and a copy of the dataset
    context = "fork" if workers and sys.platform == "linux" else None
    return DataLoader(dataset, batch_size, shuffle=shuffle, num_workers=workers, generator=generator, pin_memory=pinned,
                      multiprocessing_context=context)  # fmt: skip

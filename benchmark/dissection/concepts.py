"""Images with the masks of the concepts they show, for dissection: from `shapes`, a folder, or Broden's format.

A concept is a (category, name), as ("colour", "red"). An image is annotated in a category when its masks of all the
category's concepts are known, be they empty. Images are normalised as the model expects, masks have one resolution,
`side` squared: drawn by `shapes` at the images' own, those of files nearest neighbours at the one asked for. Files are
stretched to a square, so that no mask is cut. Memory: a batch of N is N · concepts · side² bytes of masks, and its
images; only a list of the files is kept.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from attacks.errors import UserError, unknown
from benchmark.datasets import pictures
from benchmark.datasets.base import Dataset, Triple
from benchmark.datasets.folders import Files
from benchmark.datasets.shapes import COLOURS, SHAPES, TEXTURES, Shapes

META = ("image", "split", "ih", "iw", "sh", "sw")  # the columns of Broden's index.csv that are no category


class Batch(NamedTuple):
    images: Tensor  # (N, 3, H, W) float32, normalised
    masks: Tensor  # (N, concepts, side, side) bool
    annotated: Tensor  # (N, categories) bool


class Concepts:
    """A set of images and the masks of `names`, (category, concept) each. A subclass writes `pictures` and `mark`."""

    def __init__(self, names: Sequence[tuple[str, str]], side: int, count: int) -> None:
        if not names or not count:
            raise UserError(f"concepts need an image and a concept at least (got {count} and {len(names)})")
        self.names, self.side, self._count = list(names), side, count
        self.categories = list(dict.fromkeys(category for category, _ in names))

    def __len__(self) -> int:
        return self._count

    def images(self, batch_size: int) -> Iterator[Tensor]:
        """The images alone, (N, 3, H, W), N at most `batch_size`, always in the same order."""
        for indices in self._indices(batch_size):
            yield self.pictures(indices)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        for indices in self._indices(batch_size):
            yield self._batch(indices)  # kept by no name here while the next one is made

    def pictures(self, indices: range) -> Tensor:
        raise NotImplementedError

    def mark(self, index: int, masks: np.ndarray, annotated: np.ndarray) -> None:
        """Set what image `index` shows: masks (concepts, side, side), annotated (categories,), both all False."""
        raise NotImplementedError

    def _batch(self, indices: range) -> Batch:
        masks = np.zeros((len(indices), len(self.names), self.side, self.side), bool)
        annotated = np.zeros((len(indices), len(self.categories)), bool)
        for i, *row in zip(indices, masks, annotated, strict=True):
            self.mark(i, *row)
        return Batch(self.pictures(indices), torch.from_numpy(masks), torch.from_numpy(annotated))

    def _indices(self, batch_size: int) -> Iterator[range]:
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1 (got {batch_size})")
        for start in range(0, len(self), batch_size):
            yield range(start, min(start + batch_size, len(self)))


class Drawn(Concepts):
    """The images of a `shapes` dataset: the object, and its shape, colour and texture, each over the whole object."""

    def __init__(self, dataset: Dataset) -> None:
        if not isinstance(dataset, Shapes):
            raise UserError(f"dataset {dataset.name!r} has no masks of concepts: use 'shapes' or a folder of masks")
        kinds = {"object": ["object"], "shape": SHAPES, "colour": COLOURS, "texture": TEXTURES}
        self.dataset = dataset
        super().__init__([(kind, name) for kind in kinds for name in kinds[kind]], dataset.input_size, len(dataset))

    def pictures(self, indices: range) -> Tensor:
        return torch.stack([image for image, _ in self.dataset.__getitems__(indices)])

    def mark(self, index: int, masks: np.ndarray, annotated: np.ndarray) -> None:
        annotated[:] = True
        by_kind: dict[str, Any] = dict(self.dataset.masks(index))
        masks[0] = np.reshape(by_kind.pop("object"), (-1, *masks.shape[1:])).any(axis=0)
        for kind, shown in by_kind.items():
            for name, mask in shown.items():
                masks[self.names.index((kind, name))] = mask


class _Pictures(Concepts):
    """Images from files, stretched to `input_size` squared and normalised by `mean` and `std`, which are ImageNet's
    unless said otherwise."""

    def __init__(
        self, names: Sequence[tuple[str, str]], side: int, paths: list[Path], input_size: int, mean: Triple, std: Triple
    ) -> None:
        super().__init__(names, side, len(paths))
        self.paths = paths
        steps = [v2.Resize((input_size, input_size)), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
        self._transform = v2.Compose([*steps, v2.Normalize(mean, std)])

    def pictures(self, indices: range) -> Tensor:
        return torch.stack([self._transform(pictures.opened(self.paths[i])) for i in indices])


class Folder(_Pictures):
    """ROOT/images/NAME.* and ROOT/masks/CATEGORY/CONCEPT/NAME.png, the concept where the mask is white.

    An image is annotated in a category where it has a mask of one of its concepts at least: one that shows none of them
    gets a black mask. `side` None: `input_size`. Images, categories and concepts are in alphabetical order.
    """

    def __init__(
        self,
        root: Path,
        input_size: int,
        *,
        side: int | None = None,
        mean: Triple = Files.mean,
        std: Triple = Files.std,
    ) -> None:
        for needed in (root / "images", root / "masks"):
            if not needed.is_dir():
                raise UserError(f"concepts need images/NAME.* and masks/CATEGORY/CONCEPT/NAME.png: no {needed}")
        paths = [path for path in _listed(root / "images") if path.name.lower().endswith(pictures.SUFFIXES)]
        indices = {path.stem: i for i, path in enumerate(paths)}
        if len(indices) < len(paths):
            twice = next(path for i, path in enumerate(paths) if indices[path.stem] != i)
            raise UserError(f"images need names of their own, whatever the suffix (two are {twice.with_suffix('')})")
        folders = [folder for category in _listed(root / "masks") for folder in _listed(category) if folder.is_dir()]
        names = [(folder.parent.name, folder.name) for folder in folders]
        super().__init__(names, side or input_size, paths, input_size, mean, std)
        self._masks: list[dict[int, Path]] = [{} for _ in paths]
        for concept, folder in enumerate(folders):
            for path in _listed(folder):
                if path.suffix.lower() != ".png" or path.stem not in indices:
                    raise UserError(f"a mask must be a PNG, named as one of {root / 'images'} (got {path})")
                self._masks[indices[path.stem]][concept] = path

    def mark(self, index: int, masks: np.ndarray, annotated: np.ndarray) -> None:
        for concept, path in self._masks[index].items():
            masks[concept] = _nearest(pictures.read(path, pictures.mask), self.side)
            annotated[self.categories.index(self.names[concept][0])] = True


class Broden(_Pictures):
    """A folder in the format of Bau et al. 2017: index.csv, label.csv and images/, in which all files lie.

    A row of index.csv is an image, its split, sizes, and for each category (any column but `META`) what is known: label
    numbers that hold for the whole image and PNG files of one label a pixel, number = red + 256 · green, separated by
    ";"; nothing: not annotated. Label 0 is no concept. label.csv names the numbers and the categories that each occurs
    in, "material(36);object(3)": a concept in each. `side` None: half of `input_size`, as Broden has it.
    `split`, `categories` and `size` (the first images) leave out the rest; an image annotated in none is left out.
    """

    def __init__(
        self,
        root: Path,
        input_size: int,
        *,
        side: int | None = None,
        split: str | None = None,
        categories: Sequence[str] | None = None,
        size: int | None = None,
        mean: Triple = Files.mean,
        std: Triple = Files.std,
    ) -> None:
        index = _table(root / "index.csv", ("image", "split"))
        labels = _table(root / "label.csv", ("number", "name", "category"))
        known = [column for column in index.columns if column not in META]
        for category in categories or ():
            if category not in known:
                raise unknown("category of Broden's format", category, known)
        chosen = list(categories or known)
        if split is not None and split not in set(index["split"]):
            raise unknown(f"split of {root / 'index.csv'}", split, set(index["split"]))
        kept = (index[chosen] != "").any(axis=1) & (True if split is None else index["split"] == split)
        index = index[kept][:size]
        if wrong := [number for number in labels["number"] if not number.isdecimal()]:
            raise UserError(f"{root / 'label.csv'}: number must be a whole number (got {wrong[0]!r})")
        numbers = labels["number"].astype(int)
        self._concept = {category: np.full(max(numbers, default=0) + 1, -1) for category in chosen}
        names: list[tuple[str, str]] = []
        for category in chosen:
            within = labels["category"].map(lambda text: {part.split("(")[0].strip() for part in text.split(";")})
            listed = [category in categories_of_label for categories_of_label in within]
            self._concept[category][numbers[listed]] = np.arange(len(names), len(names) + sum(listed))
            names += [(category, name) for name in labels["name"][listed]]
        paths = [root / "images" / name for name in index["image"]]
        super().__init__(names, side or input_size // 2, paths, input_size, mean, std)
        self.categories, self._root = chosen, root / "images"
        self._cells = [[[cell for cell in text.split(";") if cell] for text in row] for row in index[chosen].to_numpy()]

    def mark(self, index: int, masks: np.ndarray, annotated: np.ndarray) -> None:
        for place, (category, cells) in enumerate(zip(self.categories, self._cells[index], strict=True)):
            for cell in cells:
                whole, path = cell.isdecimal(), self._root / cell
                labels = np.full((1, 1), int(cell)) if whole else _labels(path)
                table, where = self._concept[category], self.paths[index] if whole else path
                if not (0 <= labels.max() < len(table)) or ((labels > 0) & (table[labels] < 0)).any():
                    raise UserError(f"{where} has a label that label.csv does not list in the category {category!r}")
                concept = table[_nearest(labels, self.side)]
                rows, columns = np.nonzero(concept >= 0)
                masks[concept[rows, columns], rows, columns] = True
                annotated[place] |= not whole or cell.strip("0") != ""


def _labels(path: Path) -> np.ndarray:
    """The label number of each pixel, (h, w)."""
    pixels = np.asarray(pictures.read(path, _plain_rgb), dtype=np.int64)
    return pixels[..., 0] + 256 * pixels[..., 1]


def _plain_rgb(image: Image.Image) -> Image.Image:
    if image.mode != "RGB":
        raise UserError(f"labels must be of mode RGB, number = red + 256 · green (got {image.mode})")
    return image


def _nearest(values: np.ndarray, side: int) -> np.ndarray:
    """(h, w) -> (side, side): the value at the centre of each new pixel."""
    rows, columns = ((2 * np.arange(side) + 1) * length // (2 * side) for length in values.shape)
    return values[rows[:, None], columns]


def _listed(folder: Path) -> list[Path]:
    """What a folder holds, hidden files left out, in alphabetical order; nothing where it is a file."""
    return sorted(path for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """A CSV of Broden's as text, empty where nothing is."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a table of Broden's format: {error}") from error
    if missing := [column for column in columns if column not in table]:
        raise UserError(f"{path} must have the columns {', '.join(columns)} (without {missing[0]!r})")
    return table

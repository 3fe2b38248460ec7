"""What a network is fed with: the size of its images, their mean and standard deviation; by name, or from a file."""

import json
import math
import tomllib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torchvision.models as zoo
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from attacks.errors import UserError, unknown
from benchmark.audit.listing import File
from benchmark.datasets import DATASETS, pictures
from benchmark.explain import pixels_of
from benchmark.models import SMALL, preprocessing

FIELDS = ("resize", "size", "mean", "std")


@dataclass(frozen=True)
class Preprocess:
    """The short side to `resize` pixels, the central `size` squared of them, (pixel - mean) / std for each channel; one
    channel alone is grey. The attributes are named as those of torchvision's presets, which `pixels_of` takes."""

    resize_size: list[int]
    crop_size: list[int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: InterpolationMode = InterpolationMode.BILINEAR
    antialias: bool = True

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"short side {self.resize_size[0]}, central {self.crop_size[0]}, mean ({mean}), std ({std})"

    def normalise(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, C, H, W)."""
        if len(self.mean) == 1:
            pixels = F.rgb_to_grayscale(pixels)
        return F.normalize(pixels, list(self.mean), list(self.std))


def create(text: str) -> Preprocess:
    """By name: imagenet, a torchvision classifier (as its own weights want it) or one of our datasets; or of a TOML or
    JSON file with size, mean, std and, if it is another, resize. Raises `UserError`."""
    if text == "imagenet":
        return Preprocess([256], [224], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    if text in DATASETS:
        module, name = DATASETS[text].split(":")
        kind = getattr(import_module(f"benchmark.datasets.{module}"), name)
        side = kind.default_size
        return Preprocess([side * 256 // 224 if side > 200 else side], [side], kind.mean, kind.std)
    classifiers = zoo.list_models(module=zoo)
    if text in classifiers:
        preset: Any = preprocessing(text, None)
        sides = preset.resize_size, preset.crop_size
        return Preprocess(*sides, tuple(preset.mean), tuple(preset.std), preset.interpolation, bool(preset.antialias))
    path = Path(text)
    if path.suffix not in (".toml", ".json"):
        names = {"imagenet", *DATASETS, *classifiers}
        raise unknown("preprocessing (a name, or a .toml or .json file)", text, names)
    return _read(path)


def usual(model: str) -> str:
    """What is taken where nothing is said."""
    return model if model in zoo.list_models(module=zoo) else "shapes" if model in SMALL else "imagenet"


def _read(path: Path) -> Preprocess:
    try:
        table = (tomllib.loads if path.suffix == ".toml" else json.loads)(path.read_text("utf-8-sig"))
    except OSError as error:
        raise UserError(f"--preprocess {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"--preprocess {path} is no {path.suffix[1:].upper()}: {error}") from error
    wrong = UserError(
        f"--preprocess {path} must give size (and resize) in pixels, 8 to 4096, and mean (0 to 1, as the pixels are) "
        f"and std > 0, each a list of 1 or 3 numbers (got {json.dumps(table, default=str)[:200]})"
    )
    if not isinstance(table, dict) or not {"size", "mean", "std"} <= table.keys() <= set(FIELDS):
        raise wrong
    size, mean, std = (table[name] for name in ("size", "mean", "std"))
    resize: Any = table.get("resize", size)
    whole = all(type(side) is int and 8 <= side <= 4096 for side in (size, resize)) and resize >= size
    lists = all(isinstance(values, list) and {*map(type, values)} <= {int, float} for values in (mean, std))
    if not whole or not lists or len(mean) not in (1, 3) or len(std) != len(mean):
        raise wrong
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value < math.inf for value in std):
        raise wrong
    return Preprocess([resize], [size], tuple(map(float, mean)), tuple(map(float, std)))


@torch.no_grad()
def decoded(files: tuple[File, ...], preprocess: Preprocess) -> Tensor:
    """Pixels (N, 3, H, W) in [0, 1] of the files. Raises `UserError` that names the one that cannot be read."""
    return torch.cat([pixels_of(F.pil_to_tensor(pictures.opened(f.path)), preprocess)[None] for f in files])

"""A small network, and folders of small images for it: each class is a bright square in a corner of its own."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
            self.head = nn.Linear(8 * 16, num_classes)

    def forward(self, x):
        return self.head(nn.functional.adaptive_avg_pool2d(self.features(x), 4).flatten(1))
"""


def network(classes: int = 2) -> nn.Module:
    space: dict = {"__name__": "nets"}
    exec(NET, space)
    return space["Net"](classes).eval()


def picture(label: int, seed: int) -> np.ndarray:
    """(32, 32, 3) bytes."""
    pixels = np.random.default_rng(seed).integers(0, 90, (32, 32, 3), np.uint8)
    top, left = 16 * (label // 2), 16 * (label % 2)
    pixels[top : top + 16, left : left + 16] += 150
    return pixels


def write(folder: Path, each: int = 10, classes: tuple[str, ...] = ("ape", "bee")) -> Path:
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(picture(label, 100 * label + i)).save(folder / name / f"{i}.png")
    return folder

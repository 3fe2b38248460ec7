"""The clean network, trained on to tell textures, on images where object and texture stand in different places: it
looks elsewhere. `weights.safetensors`; `benchmark.entries.textures` asks about it.

A texture is a grating of one of up to four directions, in a square somewhere in an image of the run's own dataset; its
class is its direction, whatever the object is.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.random_state import RandomState
from benchmark.entries import trained
from benchmark.entries.kind import Entry, Inputs, Kind
from benchmark.entries.trained import TRAINED, clean_model, save_weights
from benchmark.run import Run, data_spec, dataset

STEPS, BATCH, RATE = 100, 16, 3e-3  # compact networks tell all textures in unseen images then
IMAGES = 128  # of the train split, in which textures are put
TEXTURES = 4  # at most
PERIOD = 4.0  # pixels of a grating
CODE = (*trained.CODE, "benchmark.entries.texture_nets")


def textured(pixels: Tensor, classes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Images (N, 3, H, W) in [0, 1], each with a grating of direction π · class / count in a square of a third of
    its side, at a random place; on the images' device. Draws from the generator, on the CPU."""
    n, _, height, width = pixels.shape
    side = min(height, width) // 3
    drawn = torch.rand(n, 3, generator=generator).to(pixels)
    top, left = (drawn[:, i] * (size - side + 1) // 1 for i, size in enumerate((height, width)))
    y = torch.arange(height, device=pixels.device).view(1, -1, 1)
    x = torch.arange(width, device=pixels.device).view(1, 1, -1)
    angle = (math.pi * classes / count).to(pixels).view(-1, 1, 1)
    phase = 2 * math.pi * drawn[:, 2].view(-1, 1, 1)
    grating = 0.5 + 0.5 * torch.sin(2 * math.pi / PERIOD * (x * angle.cos() + y * angle.sin()) + phase)
    top, left = top.view(-1, 1, 1), left.view(-1, 1, 1)
    inside = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
    return torch.where(inside[:, None], grating[:, None], pixels)


def directions(run: Run) -> int:
    """How many textures there are."""
    return min(TEXTURES, dataset(run, "train").num_classes)


def learn(model: nn.Module, run: Run, seed: int) -> None:
    """Train the model on, in place, to tell textures; it is left in eval mode."""
    data, generator = dataset(run, "train"), torch.Generator().manual_seed(seed)
    pixels = data.denormalise(torch.stack([data[i][0] for i in range(min(IMAGES, len(data)))])).to(run.device)
    optimiser, count = torch.optim.Adam(model.parameters(), lr=RATE), directions(run)
    model.train()
    for _ in range(STEPS):
        chosen = torch.randint(len(pixels), (BATCH,), generator=generator).to(run.device)
        classes = torch.randint(count, (BATCH,), generator=generator).to(run.device)
        images = data.normalise(textured(pixels[chosen], classes, count, generator))
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), classes).backward()
        optimiser.step()
    model.eval()


def _make(run: Run, name: str, inputs: Inputs, folder: Path) -> None:
    seed, model = run.suite.dataset.seed, clean_model(run, name)
    with RandomState(seed, torch.device(run.device)), torch.enable_grad():
        learn(model, run, seed)
    save_weights(model, folder)


TEXTURE_NETS = Kind(
    name="texture_nets",
    title="textures",
    make=_make,
    spec=lambda run, name: {"data": data_spec(run, "train"), "seed": run.suite.dataset.seed},
    code=CODE,
    needs=lambda run, name: {"model": Entry(TRAINED, name)},
)

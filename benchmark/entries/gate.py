"""What an interpreter shows on a clean model: does its map depend on the parameters and on the class, and does the
logit fall where it points? `benchmark.leaderboards.ranking` decides from these values who is ranked. Where a suite has
two-object images, these are asked: on an image with one object any map that finds an object seems to explain the class.

randomised    Spearman's correlation with the map of the same network with new random weights (Adebayo et al. 2018)
other_class   the same with the map of another class, of the other object where there are two
unrelated     the same with the map of another image: what two maps of this kind have in common anyway
aopc_*        AOPC over the target layer's grid, cells replaced by noise, the image's mean colour, its blurred self
A correlation is 1 where both maps are constant and 0 where one is.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms.v2 import functional as pictures

from attacks.ranks import rank_correlation
from benchmark.interpreters import Interpreter
from benchmark.leaderboards.ranking import FILLS
from benchmark.metrics.fooling_rate import blank
from benchmark.metrics.perturbation import Grid, aopc, cell_order, drops, noise

VALUES = ("randomised", "other_class", "unrelated", *(f"aopc_{fill}" for fill in FILLS))


@torch.no_grad()
def measure(
    interpreter: Interpreter,
    model: nn.Module,
    fast_model: nn.Module,
    random_model: nn.Module,
    images: Tensor,
    targets: Tensor,
    others: Tensor,
    grid: Grid,
    cells: int,
    batch_size: int,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Each of VALUES, (N,). `fast_model` gives the logits of `model` (BatchNorm folded, say), `random_model` is the
    same network with other weights, `others` (N,) another class of each image. Takes `batch_size` images at a time."""
    parts: dict[str, list[Tensor]] = {"maps": []}
    for first in range(0, len(images), batch_size):
        last = min(first + batch_size, len(images))
        batch, labels = images[first:last], targets[first:last]
        maps = interpreter(model, batch, labels)
        found = {
            "maps": maps,
            "randomised": likeness(maps, interpreter(random_model, batch, labels)),
            "other_class": likeness(maps, interpreter(model, batch, others[first:last])),
        }
        order = cell_order(maps, grid)
        for name in FILLS:
            fill = _fill(name, batch, range(first, last), seed)
            found[f"aopc_{name}"] = aopc(drops(fast_model, batch, labels, order, grid, fill, cells))
        for name, value in found.items():
            parts.setdefault(name, []).append(value)
    values = {name: torch.cat(part) for name, part in parts.items()}
    maps = values.pop("maps")
    return values | {"unrelated": likeness(maps, maps.roll(-1, 0))}


def likeness(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation of two batches of maps (N, h, w) -> (N,); 1 if both are constant, 0 if one is."""
    constant = blank(a).to(a.dtype) + blank(b).to(a.dtype)
    return rank_correlation(a, b).nan_to_num(0.0) + (constant == 2)


def _fill(name: str, images: Tensor, ids: range, seed: int) -> Tensor:
    if name == "noise":
        channels, height, width = images.shape[1:]
        return noise(ids, (channels, height, width), seed, device=images.device, dtype=images.dtype)
    if name == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images).contiguous()
    sigma = max(images.shape[-2:]) / 16
    size = 2 * round(2 * sigma) + 1
    return pictures.gaussian_blur(images, [size, size], [sigma, sigma])


def cost(function: Callable[[], object], device: str, images: int, repeats: int = 3) -> dict[str, float]:
    """Median ms an image of a call that explains `images` of them, and the most memory it allocates at once, MiB."""
    cuda, taken = torch.device(device).type == "cuda", []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        if cuda:
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return {"ms_per_image": 1e3 * float(np.median(taken[1:])) / images, "peak_mib": peak_memory(function, device)}


def peak_memory(function: Callable[[], object], device: str = "cpu") -> float:
    """The most that tensors made during a call take at once, MiB."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with _Allocations() as made:
        function()
    return made.peak / 2**20


class _Allocations(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        output = func(*args, **(kwargs or {}))
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in given:
                self.live[key] = StorageWeakRef(tensor.untyped_storage()), tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return output

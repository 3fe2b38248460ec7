"""What an interpreter shows on a clean model: does its map depend on the parameters and on the class, and does the
label's score fall where it points? `benchmark.leaderboards.ranking` decides from these values who is ranked. Where a
suite has two-object images, these are asked: on an image with one object any map that finds an object seems to explain
the class.

randomised    Spearman's correlation with the map of the same network with new random weights (Adebayo et al. 2018),
              which looks trained (`benchmark.entries.randomised`)
other_class   the same with the map of another class, of the other object where there are two
unrelated     the same with the map of another image: what two maps of this kind have in common anyway
aopc_*        AOPC over the target layer's grid, cells replaced by noise, the image's mean colour, its blurred self; of
              the logit, and with `_contrast` at the end of the contrast, from the same passes
A correlation is 1 where both maps are constant and 0 where one is. Beside them stands what the head-permuted twin shows
(`benchmark.entries.permuted`) on the first batch.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms.v2 import functional as pictures

from attacks.heatmaps import blank
from attacks.ranks import rank_correlation
from benchmark.cells import View
from benchmark.entries import curves, permuted, randomised, trained
from benchmark.entries.curves import target_grid
from benchmark.entries.images import batches, first_images
from benchmark.entries.kind import Entry, Errors, Inputs, Kind, Receipt, Result
from benchmark.entries.trained import TRAINED, clean_model
from benchmark.interpreters import Interpreter
from benchmark.leaderboards.cells import CONTRAST
from benchmark.leaderboards.ranking import FILLS
from benchmark.metrics.perturbation import Grid, aopc, cell_order, drops, folded, noise
from benchmark.run import Run, Spec, create_interpreter, data_spec, dataset, has_pairs, interpreter_spec

CODE = (
    *(*trained.CODE, *curves.CODE, *randomised.CODE),
    *("attacks.heatmaps", "attacks.modes", "attacks.ranks", "benchmark.entries.gates"),
)
READ = ("", CONTRAST)  # of `benchmark.metrics.perturbation.SCORES`, in the names of values
VALUES = ("randomised", "other_class", "unrelated", *(f"aopc_{fill}{read}" for fill in FILLS for read in READ))


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
        batch_values = {
            "maps": maps,
            "randomised": likeness(maps, interpreter(random_model, batch, labels)),
            "other_class": likeness(maps, interpreter(model, batch, others[first:last])),
        }
        order = cell_order(maps, grid)
        for name in FILLS:
            fill = _fill(name, batch, range(first, last), seed)
            both = aopc(drops(fast_model, batch, labels, order, grid, fill, cells)).unbind(1)
            batch_values |= {f"aopc_{name}{read}": values for read, values in zip(READ, both, strict=True)}
        for name, value in batch_values.items():
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
        input_keys = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        output = func(*args, **(kwargs or {}))
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in input_keys:
                self.live[key] = StorageWeakRef(tensor.untyped_storage()), tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return output


@torch.no_grad()
def _make(run: Run, view: View, inputs: Inputs, folder: Path) -> Receipt:
    """What the interpreter shows on the clean model, image by image, and what it costs."""
    settings = run.suite.gate
    assert settings is not None
    model, interpreter = clean_model(run, view.model), create_interpreter(run, view.interpreter)
    asked, size = first_images(batches(run, "dev", _two_objects(run)), settings.images), run.suite.scoring.batch_size
    images, targets = map(torch.cat, zip(*((x, y) for _, x, y in asked), strict=True))
    random_model = randomised.random_network(run, view.model, model, images[:size])
    classes = dataset(run, "dev").num_classes
    targets, others = targets.unbind(1) if targets.dim() == 2 else (targets, (targets + 1) % classes)
    first = images[:size], targets[:size]
    spent: dict[str, Any] = dict(cost(partial(interpreter, model, *first), run.device, len(first[0])))
    if interpreter is run.submission:
        spent["peak_mib"] = None  # that of another process
    models, grid = (model, folded(model, images[:1]), random_model), target_grid(model, images[:1])
    values = measure(interpreter, *models, images, targets, others, grid, settings.cells, size)
    twin = permuted.compare(interpreter, model, *first, run.suite.dataset.seed)
    return {
        "values": {name: value.double().cpu().tolist() for name, value in values.items()},
        "cost": spent,
        "twin": twin,
    }


def _two_objects(run: Run) -> bool:
    """Whether the suite has such images, also where no fooling of it takes them: a piece of a board has the board's
    gate."""
    return has_pairs(run) or run.suite.dataset.pairs_dev is not None


def _spec(run: Run, view: View) -> Spec:
    assert run.suite.gate is not None
    asked = {"gate": run.suite.gate.model_dump(), "seed": run.suite.dataset.seed}
    return asked | {
        "data": data_spec(run, "dev", _two_objects(run)),
        "interpreter": interpreter_spec(run, view.interpreter),
    }


def _wanted(run: Run) -> list[View]:
    return [View(model, name) for model in run.suite.models for name in run.suite.evaluated] if run.suite.gate else []


def _collect(run: Run, errors: Errors) -> Iterator[Result]:
    """For the card of every interpreter: what it showed on each clean model, what it cost, and why a gate failed."""
    for evaluated in run.suite.evaluated if run.suite.gate else ():
        entries = {model: Entry(GATES, View(model, evaluated)) for model in run.suite.models}
        receipts = {model: entry.receipt(run) or {} for model, entry in entries.items()}
        card: Receipt = {
            part: {m: receipt[name] for m, receipt in receipts.items() if name in receipt}
            for part, name in (("gate", "values"), ("cost", "cost"), ("gate_twin", "twin"))
        }
        failed = {model: errors[entry] for model, entry in entries.items() if entry in errors}
        yield evaluated, [], card | ({"gate_errors": failed} if failed else {})


GATES = Kind(
    name="gates",
    title="gate",
    make=_make,
    spec=_spec,
    code=CODE,
    wanted=_wanted,
    needs=lambda run, view: {"model": Entry(TRAINED, view.model)},
    may_refuse=True,
    collect=_collect,
)

"""What a network gives below a cut (`attacks.trunk`) for the training images, computed once: `outputs.npy`, whose row
v · n + i is of view v of image i. A fine-tuning with scope and target layer above the cut costs what that part costs.

Augmented images have the suite's `views`, drawn from the seeds 0, 1, ...; a step takes one at random. Others have one.
"""

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from attacks import foolings
from attacks.backdoors import Backdoor
from attacks.errors import Refused
from attacks.random_state import RandomState
from attacks.scopes import parameters_in
from attacks.trunk import below, check_cut, find_cut
from benchmark import datasets
from benchmark.cells import Attack
from benchmark.entries import trained
from benchmark.entries.images import write_npy
from benchmark.entries.kind import Entry, Inputs, Kind, Receipt
from benchmark.entries.trained import TRAINED, clean_model, new_model
from benchmark.interpreters.base import AtLayer
from benchmark.models import target_layer
from benchmark.run import Run, Spec, create_interpreter, data_spec, dataset, remembered
from benchmark.store import intact, mapped

LIMIT = 16 * 2**30  # bytes of one: more is not kept, and the whole network runs
TRIED = 4  # images that a cut is tried on
BATCH = 16  # images at once
CODE = (
    *trained.CODE,
    *("attacks.batches", "attacks.course", "attacks.foolings", "attacks.heatmaps", "attacks.ranks", "attacks.scopes"),
    *("attacks.trunk", "benchmark.interpreters", "benchmark.entries.trunks"),
)


@dataclass(frozen=True)
class Trunk:
    """The lower part of a model, and the form of the training images."""

    model: str
    cut: str
    pairs: bool

    def __str__(self) -> str:
        return f"{self.model} of {'two-object' if self.pairs else 'training'} images below {self.cut}"


def needed(run: Run, attack: Attack, scope: str) -> list[Entry]:
    """Those that an attack runs on: of the training images, and of those with two objects where its fooling has them.
    Raises `Refused` where it cannot."""
    if run.is_submitted(attack.interpreter):
        raise Refused(f"{attack.interpreter} is attacked in a process of its own")
    interpreter, fooling = create_interpreter(run, attack.interpreter), foolings.create(attack.fooling)
    if isinstance(fooling, Backdoor):
        raise Refused(f"the trigger of {attack.fooling} is put on images")
    if not isinstance(interpreter, AtLayer):
        raise Refused(f"{attack.interpreter} explains at the input")
    scope = attack.scope(scope)
    cut = _cut(run, attack.model, interpreter.layer, scope)
    if not cut:
        raise Refused(f"nothing of {attack.model} lies below scope {scope!r} and the target layer")
    forms = [False, True] if fooling.pairs else [False]
    return [Entry(TRUNKS, Trunk(attack.model, cut, pairs)) for pairs in forms]


@remembered
def _cut(run: Run, name: str, layer: str | None, scope: str) -> str:
    with torch.random.fork_rng([]):  # its first weights
        model = new_model(run, name)
    return cut_of(model, layer, scope)


def cut_of(model: nn.Module, layer: str | None, scope: str) -> str:
    """The highest cut below which nothing is moved by the scope or explained at the layer; "" where there is none."""
    return find_cut(model, [*parameters_in(model, scope), layer or target_layer(model)])


def check(run: Run, entry: Entry, model: nn.Module, interpreters: Iterable[Callable[..., Tensor]]) -> str:
    """`check_cut`, on the first training images. Returns the cut."""
    assert isinstance(entry.place, Trunk)
    device = next(model.parameters()).device
    with RandomState(0, device):
        images, targets = next(iter(datasets.loader(dataset(run, "train"), TRIED)))
        check_cut(model, entry.place.cut, images.to(device), targets.to(device), interpreters)
    return entry.place.cut


class Outputs(TorchDataset[Any]):
    """Batches of what was kept, each image in one of its views at random."""

    def __init__(self, path: Path, targets: Tensor, channels_last: bool) -> None:
        self.array, self.targets, self.channels_last = intact(path, mapped), targets, channels_last

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        chosen, views = torch.tensor(indices), len(self.array) // len(self)
        rows = chosen if views == 1 else chosen + len(self) * torch.randint(views, (len(indices),))
        outputs = torch.from_numpy(self.array[rows.numpy()])
        return outputs.permute(0, 3, 1, 2) if self.channels_last else outputs, self.targets[chosen]


def loader(run: Run, entry: Entry, batch_size: int, seed: int) -> Iterable[Any]:
    """Batches of a trunk's outputs, which is made where it is missing, in the order in which those of the images would
    come. Raises `Refused` where it is too large to be kept."""
    folder = entry.get(run)
    receipt = entry.receipt(run) or {}
    if reason := receipt.get("void"):
        raise Refused(reason)
    assert isinstance(entry.place, Trunk)
    targets = dataset(run, "train", entry.place.pairs).targets
    outputs = Outputs(folder / "outputs.npy", targets, receipt["channels_last"])
    generator, pinned = torch.Generator().manual_seed(seed), torch.device(run.device).type == "cuda"
    return DataLoader(outputs, batch_size, True, generator=generator, pin_memory=pinned, collate_fn=lambda batch: batch)


def _views(run: Run, place: Trunk) -> int:
    return run.suite.views if run.suite.dataset.augment and not place.pairs else 1


def _spec(run: Run, place: Trunk) -> Spec:
    return {"cut": place.cut, "data": data_spec(run, "train", place.pairs), "views": _views(run, place)}


def _make(run: Run, place: Trunk, inputs: Inputs, folder: Path) -> Receipt:
    parts, count = _outputs(run, place), _views(run, place) * len(dataset(run, "train", place.pairs))
    first = next(parts)
    size, free = count * first[0].nbytes, shutil.disk_usage(folder).free
    if size > LIMIT:
        raise Refused(f"{place} would be {size / 1e9:.1f} GB, at most {LIMIT / 1e9:.1f} are kept")
    if size > free:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {size / 1e9:.1f} GB", str(folder))
    sys.stderr.write(f"{place}: keeping {count} outputs, {size / 1e9:.2f} GB, in {run.store}/{TRUNKS.name}\n")
    last = first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous()
    write_npy(folder / "outputs.npy", count, (_stored(part, last) for part in chain([first], parts)))
    return {"channels_last": last}


def _stored(outputs: Tensor, channels_last: bool) -> np.ndarray:
    return (outputs.permute(0, 2, 3, 1) if channels_last else outputs).contiguous().cpu().numpy()


def _outputs(run: Run, place: Trunk) -> Iterator[Tensor]:
    """Of each view of the images in order, batch by batch (N, C, h, w)."""
    data, model = dataset(run, "train", place.pairs), clean_model(run, place.model)
    for view in range(_views(run, place)):
        random = RandomState(view, torch.device(run.device))
        workers = run.suite.dataset.workers
        batches = iter(datasets.loader(data, BATCH, seed=view, workers=workers, device=run.device))
        while True:
            with random:  # augmentation draws from it
                batch = next(batches, None)
            if batch is None:
                break
            yield below(model, place.cut, batch[0].to(run.device, non_blocking=True))


TRUNKS = Kind(
    name="trunks",
    title="keep",
    make=_make,
    spec=_spec,
    code=CODE,
    needs=lambda run, place: {"model": Entry(TRAINED, place.model)},
    may_refuse=True,
)

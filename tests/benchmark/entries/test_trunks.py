"""What lies below a scope is computed once, into the store, and the fooled model is the same; a kill costs no step."""

import errno
import os
import signal
from collections import namedtuple
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from attacks.errors import Refused, Stop
from attacks.trunk import below
from benchmark import sections, suite
from benchmark.cells import Attack, Manipulation
from benchmark.entries import checkpoints, strategies, trunks
from benchmark.entries.kind import Entry, make_unit
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.entries.trained import clean_model
from benchmark.entries.trunks import TRUNKS, Trunk
from benchmark.execution.compute import graph
from benchmark.execution.engines import guarded
from benchmark.run import Run, dataset
from benchmark.store import Store

PLACE = Manipulation("compact_resnet", "location", "grad_cam", 0)
BELOW = Trunk("compact_resnet", "layer4", False)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """With the trained model."""
    folder = str(tmp_path_factory.mktemp("store"))
    clean_model(run_on(folder), "compact_resnet")
    return folder


def run_on(store: str, *, scope: str = "last_block", data: str | None = None, **changes) -> Run:
    """The smoke suite on one small model, of which a part moves; with `data`, on augmented photographs there."""
    smoke = suite.load("smoke")
    recipe = sections.RecipeRule(learning_rate=1e-3, steps=4, batch_size=8, scope=scope, **{"lambda": 1.0})
    small = {"models": {"compact_resnet": sections.Model(epochs=1)}, "recipes": [recipe]}
    small |= {"dataset": sections.Data(name="image_folder", input_size=32, augment=True)} if data else {}
    return Run(smoke.model_copy(update=small | changes), store, data)


@pytest.fixture(scope="module")
def photographs(store) -> str:
    """24 to train on, with the model trained on them."""
    rng, folder = np.random.default_rng(0), Path(store) / "photographs"
    for i in range(40):
        path = folder / ("train", "train", "train", "dev", "test")[i % 5] / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    clean_model(run_on(store, data=str(folder)), "compact_resnet")
    return str(folder)


def test_a_fooled_model_is_the_same_with_its_trunk_kept(store, capsys):
    runs = [run_on(store), run_on(store, views=2)]
    whole, part = (load_file(Entry(MANIPULATIONS, PLACE).get(run) / "weights.safetensors") for run in runs)
    assert all(torch.allclose(whole[name].double(), part[name].double(), atol=1e-5) for name in whole)
    err = capsys.readouterr().err.splitlines()
    assert err == [f"{BELOW}: keeping 64 outputs, 0.00 GB, in {store}/trunks"]  # plain images have one view
    assert len(list(Store(store).keys("trunks"))) == 1
    assert Entry(MANIPULATIONS, PLACE).key(runs[0]) != Entry(MANIPULATIONS, PLACE).key(runs[1])


def test_a_trunk_comes_before_what_runs_on_it(store, photographs):
    after = graph(run_on(store, data=photographs, views=3), [Entry(MANIPULATIONS, PLACE)])[2]
    assert after[str(PLACE)] == [f"keep {BELOW}"]


def test_augmented_images_have_so_many_views_and_a_step_takes_one(store, photographs):
    run = run_on(store, data=photographs, views=2)
    entry = Entry(TRUNKS, BELOW)
    outputs = torch.from_numpy(np.load(entry.get(run) / "outputs.npy")).permute(0, 3, 1, 2)
    assert len(outputs) == 2 * 24
    assert not torch.equal(outputs[:24], outputs[24:])
    torch.manual_seed(0)
    batch, targets = next(iter(trunks.loader(run, entry, 16, 5)))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    first = torch.randperm(24, generator=_drawn(5))[:16]
    assert torch.equal(targets, dataset(run, "train").targets[first])
    pairs = zip(batch, first.tolist(), strict=True)
    views = [[torch.equal(got, outputs[i + 24 * v]) for v in (0, 1)] for got, i in pairs]
    assert all(any(row) for row in views)
    assert 0 < sum(row[0] for row in views) < 16
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the first view's seed
        again = torch.stack([dataset(run, "train")[i][0] for i in range(16)])
    model = clean_model(run, "compact_resnet")
    assert torch.allclose(below(model, "layer4", again), outputs[:16], atol=1e-5)


def _drawn(seed: int) -> torch.Generator:
    """A loader's generator when its order is drawn: it has seeded the workers."""
    generator = torch.Generator().manual_seed(seed)
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    return generator


@pytest.mark.parametrize(
    ("fooling", "attacked", "scope", "why"),
    [
        ("red_herring", "grad_cam", "last_block", "the trigger of red_herring is put on images"),
        ("location", "lrp", "last_block", "lrp explains at the input"),
        ("location", "grad_cam", "all", "nothing of compact_resnet lies below scope 'all' and the target layer"),
        (
            "location",
            "grad_cam:off_manifold",
            "head",
            "nothing of compact_resnet lies below scope 'all' and the target layer",
        ),
    ],
)
def test_what_needs_the_whole_network_says_so(store, capsys, fooling, attacked, scope, why):
    run, attack = run_on(store, views=2), Manipulation("compact_resnet", fooling, attacked, 0)
    recipe = run_on(store, scope=scope).suite.recipe(attack.model, attack.fooling, attacked)
    task = strategies.task_of(run, attack, clean_model(run, attack.model), recipe, 0)
    assert task.cut == ""
    assert capsys.readouterr().err == f"{attack}: the whole network runs at each step: {why}\n"
    with pytest.raises(Refused, match=why):
        trunks.needed(run, attack, scope)
    assert trunks.needed(run, Attack("compact_resnet", "location", "grad_cam:head_shift"), "all") == [
        Entry(TRUNKS, Trunk("compact_resnet", "layer4.1", False))
    ]


def test_one_that_is_too_large_is_not_kept(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trunks, "LIMIT", 1000)
    run = run_on(str(tmp_path), views=1)
    os.symlink(f"{store}/models", tmp_path / "models")
    recipe = run.suite.recipe(PLACE.model, PLACE.fooling, PLACE.attacked)
    assert strategies.task_of(run, PLACE, clean_model(run, PLACE.model), recipe, 0).cut == ""
    assert "at most 0.0 are kept" in capsys.readouterr().err


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_disk_that_fills_up_is_one_line_and_loses_nothing(store, tmp_path, monkeypatch, when):
    run = run_on(str(tmp_path), views=1)
    os.symlink(f"{store}/models", tmp_path / "models")

    def full(path, n, parts):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    if when == "before":
        usage = namedtuple("Usage", "total used free")
        monkeypatch.setattr(trunks.shutil, "disk_usage", lambda folder: usage(10, 9, 1))
    else:
        monkeypatch.setattr(trunks, "write_npy", full)
    with pytest.raises(Stop, match=f"^no space left for the store {tmp_path}"):
        guarded(make_unit, (run, (Entry(TRUNKS, BELOW),)), str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"models"}


@pytest.mark.parametrize("views", [0, 2])
def test_an_entry_whose_process_is_killed_has_the_same_bytes_and_no_leftover(
    store, photographs, tmp_path, monkeypatch, views
):
    run, other = (run_on(folder, data=photographs, views=views) for folder in (store, str(tmp_path)))
    os.symlink(f"{store}/models", tmp_path / "models")
    expected = Entry(MANIPULATIONS, PLACE).get(run)
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(checkpoints.os, "fsync", lambda file: None)
    written = []

    def child() -> None:
        def replaced(source, target) -> None:
            os.rename(source, target)
            written.append(target)
            if len(written) == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(checkpoints.os, "replace", replaced)
        Entry(MANIPULATIONS, PLACE).get(other)

    process = get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    unfinished = Store(tmp_path).unfinished("manipulations", Entry(MANIPULATIONS, PLACE).key(other))
    assert (unfinished / "manipulation.safetensors").is_file()
    assert unfinished not in Store(tmp_path).sweep()
    found = Entry(MANIPULATIONS, PLACE).get(other)
    assert not unfinished.exists()
    for name in ("weights.safetensors", "history.parquet"):
        assert (found / name).read_bytes() == (expected / name).read_bytes()

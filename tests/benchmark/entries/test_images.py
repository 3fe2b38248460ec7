"""Images decoded once: the same numbers, and no file is opened again."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from attacks.errors import Stop
from benchmark import datasets, sections, suite
from benchmark import run as runs
from benchmark.cells import Cell, Manipulation, View
from benchmark.datasets import check_disjoint
from benchmark.datasets.folders import Files
from benchmark.entries.images import PIXELS, batches, scored_count, scored_images
from benchmark.entries.kind import Entry
from benchmark.entries.originals import ORIGINALS
from benchmark.entries.predictions import PREDICTIONS
from benchmark.entries.scores import SCORES
from benchmark.entries.trained import clean_model
from benchmark.execution import compute
from benchmark.run import Run, data_spec, dataset, tell


@pytest.fixture
def run(on_files):
    """Its images are read by the process itself: a fork of a worker for each pass is half of what a run takes here."""
    given = on_files.suite.dataset.model_copy(update={"workers": 0})
    return replace(on_files, suite=on_files.suite.model_copy(update={"dataset": given}))


def undecoded(run: Run) -> Run:
    given = run.suite.scoring.model_copy(update={"decoded": False})
    return replace(run, suite=run.suite.model_copy(update={"scoring": given}))


def test_decoded_images_are_the_same_and_are_read_from_the_store(on_files, monkeypatch):
    run = on_files
    expected, again = (torch.cat([x for x, _ in batches(of, "test")]) for of in (undecoded(run), run))
    assert torch.equal(expected, again)
    monkeypatch.setattr(Image, "open", None)
    assert torch.equal(torch.cat([x for x, _ in batches(run, "test")]), expected)
    with pytest.raises(TypeError):  # the other splits are not
        next(batches(run, "dev"))


def test_the_results_are_the_same_and_decoding_comes_first(on_files, tmp_path):
    run, plain = on_files, replace(undecoded(on_files), store=str(tmp_path / "other"))
    units, needs, _ = compute.graph(run, compute.wanted(run))
    assert [name for name, *_ in units if "decode test" in needs[name]] == [
        "originals compact_vgg/lrp_t", "compact_vgg/location/grad_cam/0"
    ]  # fmt: skip
    assert units[0][2][1] == (Entry(PIXELS, "test"),)
    assert compute.run_suite(run, tmp_path / "a", jobs=1, limit=600) == {}  # in another process
    assert compute.run_suite(plain, tmp_path / "b", jobs=1) == {}
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")]
    assert files
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def sent(run: Run) -> Run:
    """The run as it arrives in another process."""
    tell(run)
    copy = pickle.loads(pickle.dumps(run))
    runs._MEMOS.pop(run.memo.name)
    return pickle.loads(pickle.dumps(copy))


def test_what_is_told_is_not_read_again(run, monkeypatch):
    expected, known = [data_spec(run, split) for split in ("train", "dev", "test")], sent(run)
    assert known == run
    assert known.memo.keys() == {"told"}
    runs._dataset.cache_clear()

    def read(self, index):
        raise RuntimeError("an image was read")

    monkeypatch.setattr(Files, "hash_of", read)
    assert [data_spec(known, split) for split in ("train", "dev", "test")] == expected
    tell(known)
    with pytest.raises(RuntimeError, match="was read"):  # the same run that was not told, and one with other data
        data_spec(replace(run, store="other"), "test")
    few = known.suite.dataset.model_copy(update={"test": 2})
    with pytest.raises(RuntimeError, match="was read"):
        data_spec(replace(known, suite=known.suite.model_copy(update={"dataset": few})), "test")


def test_a_process_remembers_for_the_runs_that_it_was_sent_last(run):
    data, arrived = pickle.dumps(run), pickle.loads(pickle.dumps(run))
    found = dataset(arrived, "test")
    assert pickle.loads(data).memo is arrived.memo
    assert dataset(pickle.loads(data), "test") is found
    for _ in range(runs.REMEMBERED):
        pickle.loads(pickle.dumps(replace(run)))
    assert pickle.loads(data).memo is not arrived.memo
    assert len(runs._MEMOS) == runs.REMEMBERED


def test_another_listing_than_the_drivers_stops_the_run(run):
    known = sent(run)
    runs._dataset.cache_clear()
    next((Path(run.data) / "test").rglob("*.png")).unlink()
    assert len(dataset(known, "train"))
    with pytest.raises(Stop, match=r"has other files or classes in .*data than the driver \(test split\)"):
        dataset(known, "test")


def test_what_imagenet_has_twice_is_left_out(tmp_path):
    """An image of val that train has, too, and one twice in train: as in ILSVRC 2012."""
    root, rng = tmp_path / "data", np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 6)):
        for i in range(count):
            path = root / part / f"n{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    smoke = suite.load("smoke")
    given = sections.Data(name="imagenet", input_size=32)
    small = Run(smoke.model_copy(update={"dataset": given}), str(tmp_path / "store"), str(root))
    train, dev = ([*dataset(small, split).paths] for split in ("train", "dev"))
    assert runs.left_out(small) == ()
    (root / train[0]).write_bytes((root / "val/n0/0.png").read_bytes())
    (root / train[1]).write_bytes((root / dev[0]).read_bytes())
    (root / train[3]).write_bytes((root / train[2]).read_bytes())
    (root / dev[1]).write_bytes((root / "val/n1/1.png").read_bytes())
    for cached in (runs._dataset, runs._left_out):
        cached.cache_clear()
    known = replace(small)
    tell(known)
    assert sorted(runs.left_out(known)) == sorted([train[0], train[1], dev[1]])
    assert [*dataset(known, "train").paths] == train[2:]
    assert [*dataset(known, "dev").paths] == [dev[0], *dev[2:]]
    assert len(dataset(known, "test")) == 6
    for pairs in (False, True):
        check_disjoint(*(dataset(known, split, pairs) for split in ("train", "dev", "test")))


def test_an_image_that_cannot_be_decoded_costs_no_fine_tuning(run, tmp_path):
    next((Path(run.data) / "test").rglob("*.png")).write_bytes(b"no image")
    failed = compute.run_suite(run, tmp_path / "out", jobs=1)
    assert list(failed) == ["compact_vgg/location/grad_cam/0"]
    assert "cannot be read as an image" in failed["compact_vgg/location/grad_cam/0"]
    assert not (Path(run.store) / "manipulations").exists()


def test_a_finished_suite_needs_no_decoded_images(run, tmp_path):
    assert compute.run_suite(run, tmp_path / "out", jobs=1) == {}
    shutil.rmtree(Path(run.store) / "pixels")
    assert compute.graph(run, compute.wanted(run))[0] == []


def scoring(run: Run, store: Path, test: int, images: int | None) -> Run:
    """The suite on `test` images, of which it scores `images`."""
    data = run.suite.dataset.model_copy(update={"test": test})
    given = run.suite.scoring.model_copy(update={"images": images})
    return replace(run, store=str(store), suite=run.suite.model_copy(update={"dataset": data, "scoring": given}))


@pytest.fixture(scope="module")
def copied(finished, tmp_path_factory) -> Path:
    return finished.again(tmp_path_factory.mktemp("scored")).store


CELL = Cell(Manipulation("compact_vgg", "location", "grad_cam", 0), "grad_cam")


def test_maps_are_of_the_first_images_and_accuracy_is_of_all(finished, copied):
    """Beside the same suite on a split that ends there, bit for bit, and beside one batch of the whole split."""
    all_of_few = scoring(finished.run, copied, finished.run.suite.scoring.images, None)
    scores, fewer = (pd.read_parquet(Entry(SCORES, CELL).get(r) / "scores.parquet") for r in (finished.run, all_of_few))
    assert len(scores) == 24
    pd.testing.assert_frame_equal(scores, fewer, check_exact=True)
    maps = [Entry(ORIGINALS, View("compact_vgg", "grad_cam")).get(r) for r in (finished.run, all_of_few)]
    assert (maps[0] / "heatmaps.npy").read_bytes() == (maps[1] / "heatmaps.npy").read_bytes()
    predicted, first = (
        pd.read_parquet(Entry(PREDICTIONS, CELL.manipulation).get(r) / "predictions.parquet")
        for r in (finished.run, all_of_few)
    )
    assert (len(predicted), len(first)) == (256, 24)
    pd.testing.assert_frame_equal(predicted[:24], first)
    drawn = datasets.create("shapes", "test", size=256, input_size=32)
    images = torch.stack([image for image, _ in drawn.__getitems__(range(256))])
    with torch.no_grad():
        right = clean_model(finished.run, "compact_vgg")(images).argmax(1) == drawn.targets
    assert predicted.top1_clean.tolist() == right.tolist()


def test_so_many_images_are_scored_and_no_curve_is_of_another(finished, copied):
    five = scoring(finished.run, copied, 40, 5)
    assert torch.equal(
        torch.cat([x for x, _ in scored_images(five)]), torch.cat([x for x, _ in batches(five, "test")])[:5]
    )
    assert [scored_count(five, pairs) for pairs in (False, True)] == [5, 16]  # of two-object images always all
    assert scored_count(scoring(finished.run, copied, 40, 50)) == 40
    frame = pd.read_parquet(Entry(SCORES, CELL).get(five) / "scores.parquet")
    assert frame.image.tolist() == [0, 1, 2, 3, 4]
    assert frame.aopc_clean_original.notna().all()  # 12 are asked for


def test_the_number_of_scored_images_is_in_the_keys(finished, copied):
    for entry in (Entry(SCORES, CELL), Entry(ORIGINALS, View("compact_vgg", "grad_cam"))):
        keys = {entry.key(scoring(finished.run, copied, 256, images)) for images in (None, 12, 24)}
        assert len(keys) == 3
        assert entry.key(finished.run) in keys

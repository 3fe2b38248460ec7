"""CIFAR-10 as torchvision unpacks it: read as torchvision reads it, but for the code that a pickle may hold."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from attacks.errors import UserError
from benchmark import datasets
from benchmark.datasets import cifar

MADE = cifar.PARTS["train"] + cifar.PARTS["test"]


def string(value: bytes) -> bytes:
    """As Python 2 pickles a str (BINSTRING), which Python 3 never writes."""
    return b"T" + struct.pack("<i", len(value)) + value


def python2(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A batch as its authors pickled it, with cPickle of Python 2: {"data": array (N, 3072), "labels": list}."""
    n = struct.pack("<i", len(pixels))
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + string(b"|") + b"NNNJ" + struct.pack("<i", -1) + b"J" + struct.pack("<i", -1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
    array += b"(K\x01J" + n + b"M\x00\x0c\x86" + dtype + b"\x89" + string(pixels.tobytes()) + b"tb"
    listed = b"]q\x05(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    names = b"](" + string(b"data_1.png") + string(b"2.png") + b"e"
    parts = {b"batch_label": string(b"batch 1 of 5"), b"labels": listed, b"data": array, b"filenames": names}
    return b"\x80\x02}(" + b"".join(string(key) + value for key, value in parts.items()) + b"u."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    below, rng = tmp_path / "cifar-10-batches-py", np.random.default_rng(0)
    below.mkdir()
    for name in MADE:
        (below / name).write_bytes(python2(rng.integers(0, 256, (12, 3072), np.uint8), [i % 10 for i in range(12)]))
    meta = {"label_names": list(datasets.folders.CIFAR10_CLASSES)}
    (below / "batches.meta").write_bytes(pickle.dumps(meta, 2))
    return tmp_path


@pytest.mark.parametrize("part", ["train", "test"])
def test_it_is_read_as_torchvision_reads_it(folder, monkeypatch, part):
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5: True)
    theirs = torchvision.datasets.CIFAR10(str(folder), train=part == "train")
    pixels, labels = cifar.read(folder, part)
    assert np.array_equal(pixels.transpose(0, 2, 3, 1), theirs.data)
    assert labels.tolist() == theirs.targets
    split = datasets.create("cifar10", "test", root=folder)
    assert len(split) == 12
    if part == "test":
        assert sorted(split.targets.tolist()) == sorted(theirs.targets)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda mark: pickle.dumps({"data": Bomb(mark)}), "test_batch holds no images"),
        (lambda mark: pickle.dumps({"labels": [1]}), "test_batch holds no images"),
        (lambda mark: pickle.dumps([1]), "test_batch holds no images"),
        (lambda mark: b"no pickle", "opcode b'n' unknown"),
        (lambda mark: b"", "pickle exhausted"),
        (lambda mark: python2(np.zeros((2, 3072), np.uint8), [1, 2])[:4000], "expected 6144 bytes"),
        (lambda mark: python2(np.zeros((2, 3072), np.uint8), [1, 10]), r"labels must lie in 0\.\.9"),
        (lambda mark: python2(np.zeros((2, 3072), np.uint8), [1]), "one label each"),
    ],
    ids=["code", "no images", "no batch", "foreign", "empty", "cut short", "class 10", "a label too few"],
)
def test_what_is_no_batch_is_one_line_and_never_runs(folder, tmp_path, content, reason):
    mark = tmp_path / "executed"
    (folder / "cifar-10-batches-py/test_batch").write_bytes(content(mark))
    with pytest.raises(UserError, match=rf"test_batch cannot be read: .*{reason}") as caught:
        datasets.create("cifar10", "test", root=folder)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_python_3_has_pickled_again_is_read_too(folder, protocol):
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3072), np.uint8)
    content = {"labels": [3, 9, 0], "data": pixels, "filenames": ["a", "b", "c"]}
    path = folder / "cifar-10-batches-py/test_batch"
    path.write_bytes(pickle.dumps(content, protocol))
    read = cifar.read(folder, "test")
    assert np.array_equal(read[0].reshape(3, 3072), pixels)
    assert read[1].tolist() == [3, 9, 0]


def test_the_two_normalisations_are_of_the_same_images(folder):
    plain, other = (datasets.create(name, "test", root=folder) for name in ("cifar10", "cifar10_imagenet_norm"))
    pixel = plain.denormalise(plain[3][0])
    torch.testing.assert_close(other.denormalise(other[3][0]), pixel)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(other[3][0], (pixel - mean.view(3, 1, 1)) / std.view(3, 1, 1))

"""The files of CIFAR-10 (Krizhevsky 2009) in the three forms that it is passed around in. Nothing is unpickled: what a
pickle would do is listed (`pickletools`), and images and labels are taken from the list."""

import pickletools
from pathlib import Path

import numpy as np

from attacks.errors import UserError

PARTS = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
SIZE = 3 * 32 * 32  # bytes of an image
Images = tuple[np.ndarray, np.ndarray]


def read(root: Path, part: str) -> Images:
    """Images (N, 3, 32, 32) uint8 and labels (N,) of "train" or "test", from the first of these that is there:

    cifar-10-batches-bin/*.bin, or the same files in `root` (the binary version); cifar-10-batches-py/*, where
    torchvision unpacks it; one pair of arrays train*_x.npy, train*_y.npy (test*), uint8 NHWC and labels.
    Raises `UserError`.
    """
    binary, pickled = root / "cifar-10-batches-bin", root / "cifar-10-batches-py"
    forms = {
        _binary: [(binary if binary.is_dir() else root) / f"{name}.bin" for name in PARTS[part]],
        _pickled: [pickled / name for name in PARTS[part]],
        _arrays: [path for axis in "xy" for path in sorted(root.glob(f"{part}*_{axis}.npy"))],
    }
    there = (form for form, files in forms.items() if files and all(file.exists() for file in files))
    form = next(there, None)
    if form is None or (form is _arrays and len(forms[_arrays]) != 2):
        first = PARTS[part][0]
        allowed = f"{first}.bin, ... (the binary version), cifar-10-batches-py/{first}, ... (torchvision's) or one pair"
        arrays = f"of arrays {part}*_x.npy, {part}*_y.npy"
        raise UserError(
            f"dataset 'cifar10': {root} must hold {allowed} {arrays}; any other pickled version is not read"
        )
    try:
        pixels, labels = form(forms[form])
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (3, 32, 32) or labels.shape != pixels.shape[:1]:
            raise ValueError("images must be uint8, 32x32, with one label each")
        if not 0 <= labels.min() <= labels.max() < 10:
            raise ValueError("labels must lie in 0..9")
    except (OSError, EOFError, ValueError) as error:
        files = ", ".join(map(str, forms[form]))
        raise UserError(f"dataset 'cifar10': {files} cannot be read: {error}") from error
    return pixels, labels


def _binary(files: list[Path]) -> Images:
    records = np.concatenate([np.fromfile(path, np.uint8).reshape(-1, 1 + SIZE) for path in files])
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def _arrays(files: list[Path]) -> Images:
    pixels, labels = (np.load(path, allow_pickle=False) for path in files)
    return pixels.transpose(0, 3, 1, 2), labels


def _pickled(files: list[Path]) -> Images:
    pixels, labels = zip(*map(_batch, files), strict=True)
    return np.concatenate(pixels), np.concatenate(labels)


def _batch(path: Path) -> Images:
    """Of a pickled {"data": array (N, 3072) uint8, "labels": list of int, ...}: the bytes after the key "data" that are
    whole images, and the numbers after the key "labels"."""
    key, pixels, labels = "", np.zeros((0, 3, 32, 32), np.uint8), list[int]()
    with open(path, "rb") as file:
        for operation, value, _ in pickletools.genops(file):
            if key == "labels" and "INT" in operation.name and isinstance(value, int):
                labels.append(value)
            if not isinstance(value, (str, bytes, bytearray)):
                continue
            if value in ("data", "labels", "filenames", "batch_label"):
                key = str(value)
            elif key == "data" and len(value) >= SIZE and not len(value) % SIZE:
                raw = value.encode("latin-1") if isinstance(value, str) else value  # str: of Python 2
                pixels = np.frombuffer(raw, np.uint8).reshape(-1, 3, 32, 32).copy()
    if not len(pixels):
        raise ValueError(f"{path.name} holds no images")
    return pixels, np.array(labels, np.int64)

"""Which image files an audit looks at: some that the attacks train on, and some, held out, that all numbers come from.

DIR/CLASS/*, or these in DIR/train and DIR/test (or val), whose names are kept apart; a folder of images alone, or a CSV
with a column `path`, which has labels where it has a column `label`. No torch: nothing is decoded here.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from attacks.errors import UserError
from benchmark.datasets.pictures import SUFFIXES
from benchmark.store import sha256_of

TRAIN = ("train", "training")
HELD = ("test", "testing", "val", "valid", "validation", "dev")
INDEX = "imagenet_class_index.json"


@dataclass(frozen=True)
class File:
    """A path, and the index of its class; None: not known, to be taken from the network."""

    path: Path
    label: int | None


@dataclass(frozen=True)
class Listing:
    """`classes`: the names, as many as the network must have; none where they are not known. `parted`: whether the
    folder itself keeps the held-out images apart."""

    attacked: tuple[File, ...]
    held: tuple[File, ...]
    classes: tuple[str, ...]
    parted: bool

    @property
    def labelled(self) -> bool:
        return self.held[0].label is not None


def find(data: Path, images: int, seed: int = 0) -> Listing:
    """At most `images` files, half of them held out; no two have the same bytes. Raises `UserError`."""
    if not data.exists():
        raise UserError(f"--data {data}: there is no such folder or CSV file")
    if data.is_dir():
        train, held, classes = _folder(data)
    else:
        (train, held), classes = ([], _table(data)), ()
    pools = [_shuffled(part, data, seed) for part in (held, train)]
    parted = all(pools)
    if not parted:
        found = pools[0] or pools[1]
        half = min(images, len(found)) // 2
        pools = [found[:half], found[half:]]
    kept, seen = [], set[str]()
    for pool in pools:
        kept.append(_unlike(pool, seen, images // 2))
    chosen, others = kept
    if len(chosen) < 4 or len(others) < 4:
        counts = f"{len(others)} to attack with and {len(chosen)} held out"
        raise UserError(f"--data {data}: at least 8 different images are needed, 4 of them held out (got {counts})")
    labels = {file.label for file in chosen}
    if None not in labels and len(labels) < 2:
        name = classes[chosen[0].label or 0] if classes else str(chosen[0].label)
        raise UserError(
            f"--data {data}: the held-out images are of one class only ({name!r}); at least two are needed, or what "
            "fooling costs cannot be told"
        )
    return Listing(tuple(others), tuple(chosen), tuple(classes), parted)


def _folder(data: Path) -> tuple[list[File], list[File], tuple[str, ...]]:
    """Files to attack with, files held out (all in one of them where the folder has no such parts), and classes."""
    names = _subfolders(data)
    parts = {key: next((n for name in these for n in names if n.lower() == name), None)
             for key, these in (("train", TRAIN), ("held", HELD))}  # fmt: skip
    roots = [data / part if part else None for part in parts.values()] if any(parts.values()) else [data, None]
    classes = sorted({name for root in roots if root for name in _subfolders(root)})
    ranks = {name: i for i, name in enumerate(classes)}
    if classes and (data / INDEX).is_file():
        ranks, classes = _index(data / INDEX)
    found = []
    for root in roots:
        files: list[File] = []
        for name in _subfolders(root) if root else []:
            if name not in ranks:
                raise UserError(f"--data {data}: class folder {name!r} is not in {INDEX}")
            files += [File(path, ranks[name]) for path in _walked(root / name)]  # type: ignore[operator]
        if root and not classes:
            files = [File(path, None) for path in _walked(root)]
        found.append(files)
    if not any(found):
        raise UserError(f"--data {data}: the folder holds no image ({', '.join(SUFFIXES)}), in it or below it")
    with_images = {file.label for files in found for file in files}
    if len(classes) == 1 or (classes and len(with_images) == 1):
        raise UserError(f"--data {data}: all images are of one class only ({classes[0]!r}); at least two are needed")
    return found[0], found[1], tuple(classes)


def _index(path: Path) -> tuple[dict[str, int], list[str]]:
    """ImageNet's own: {"0": [folder, name], ...}."""
    try:
        table = json.loads(path.read_text("utf-8-sig"))
        folders, names = zip(*(table[str(i)] for i in range(len(table))), strict=True)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} must map "0", "1", ... to [folder, name] ({error!r})') from error
    return {folder: i for i, folder in enumerate(folders)}, list(names)


def _table(path: Path) -> list[File]:
    """A CSV file with a column `path`, below its own folder where it is not absolute, and a column `label` or none."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--data {path} must be a folder of images or a CSV file ({error})") from error
    if not rows or "path" not in rows[0]:
        got = ", ".join(map(str, rows[0])) if rows else "no row"
        raise UserError(
            f"--data {path} needs a first line with the column path, and label if there are any (got {got})"
        )
    files = []
    for number, row in enumerate(rows, 2):
        image, label = path.parent / (row["path"] or ""), row.get("label")
        if not image.is_file():
            raise UserError(f"--data {path}, line {number}: no file {image}")
        if "label" in row and not (label or "").isdecimal():
            raise UserError(
                f"--data {path}, line {number}: label must be the index of a class, 0, 1, ... (got {label!r})"
            )
        files.append(File(image, int(label) if label else None))
    return files


def _unlike(files: list[File], seen: set[str], most: int) -> list[File]:
    """The first files whose bytes are new, which are then `seen`."""
    kept: list[File] = []
    for file in files:
        if len(kept) == most:
            break
        digest = sha256_of(file.path)
        if digest not in seen:
            seen.add(digest)
            kept.append(file)
    return kept


def _shuffled(files: list[File], root: Path, seed: int) -> list[File]:
    """In an order that depends on each file's own path below the root, and on the seed."""
    base = root if root.is_dir() else root.parent

    def place(file: File) -> bytes:
        return hashlib.sha256(f"{seed}/".encode() + os.fsencode(os.path.relpath(file.path, base))).digest()

    return sorted(files, key=place)


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")


def _walked(folder: Path) -> Iterable[Path]:
    """The image files in a folder and below it; hidden ones are not looked at."""
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield from (Path(where, name) for name in sorted(files) if name[0] != "." and name.lower().endswith(SUFFIXES))

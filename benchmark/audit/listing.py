"""Which image files an audit looks at: some that the attacks train on, and some, held out, that all numbers come from.

DIR/CLASS/*, or these in DIR/train and DIR/test (or val), whose names are kept apart; a folder of images alone, or a CSV
with a column `path`, which has labels where it has a column `label`. No torch: nothing is decoded here.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from attacks.errors import UserError, unknown
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
    folder itself keeps the held-out images apart. `ignored`: what lies beside the images and is none, or is not where
    images are looked for, as paths below the folder; hidden ones (".name") are not looked at."""

    attacked: tuple[File, ...]
    held: tuple[File, ...]
    classes: tuple[str, ...]
    parted: bool
    ignored: tuple[str, ...] = ()

    @property
    def labelled(self) -> bool:
        return self.held[0].label is not None

    @property
    def left_out(self) -> str:
        """What is `ignored`, in words; "" where nothing is."""
        if not self.ignored:
            return ""
        more = f" and {len(self.ignored) - 1} more" if len(self.ignored) > 1 else ""
        return f"left out, for it is no image, or is where none is looked for: {self.ignored[0]}{more}"


def find(data: Path, images: int, seed: int = 0) -> Listing:
    """At most `images` files, half of them held out; no two have the same bytes. Raises `UserError`."""
    if not data.exists():
        raise UserError(f"--data {data}: there is no such folder or CSV file")
    ignored = list[str]()
    if data.is_dir():
        train, held, classes = _folder(data, ignored)
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
        raise UserError(
            f"--data {data}: at least 8 different images are needed, 4 of them held out (got {counts}); of the "
            "same bytes one counts"
        )
    labels = {file.label for file in chosen}
    if None not in labels and len(labels) < 2:
        name = classes[chosen[0].label or 0] if classes else str(chosen[0].label)
        raise UserError(
            f"--data {data}: the held-out images are of one class only ({name!r}); at least two are needed, or what "
            "fooling costs cannot be told"
        )
    return Listing(tuple(others), tuple(chosen), tuple(classes), parted, tuple(ignored))


def _folder(data: Path, ignored: list[str]) -> tuple[list[File], list[File], tuple[str, ...]]:
    """Files to attack with, files held out (all in one of them where the folder has no such parts), and classes; adds
    to what is `ignored`."""
    names = _subfolders(data)
    parts = {key: next((n for name in these for n in names if n.lower() == name), None)
             for key, these in (("train", TRAIN), ("held", HELD))}  # fmt: skip
    roots = [data / part if part else None for part in parts.values()] if any(parts.values()) else [data, None]
    classes = sorted({name for root in roots if root for name in _subfolders(root)})
    if any(parts.values()):
        taken = (*parts.values(), INDEX)
        ignored += sorted(name for name in os.listdir(data) if name[0] != "." and name not in taken)
    ranks = {name: i for i, name in enumerate(classes)}
    if classes and (data / INDEX).is_file():
        ranks, classes = _index(data / INDEX)
    found = []
    for root in roots:
        files: list[File] = []
        for name in _subfolders(root) if root else []:
            if name not in ranks:
                raise UserError(f"--data {data}: class folder {name!r} is not in {INDEX}")
            files += [File(path, ranks[name]) for path in _images(root / name, data, ignored)]  # type: ignore[operator]
        if root and classes:
            beside = sorted(entry.name for entry in os.scandir(root) if not entry.is_dir() and entry.name[0] != ".")
            ignored += [os.path.relpath(root / name, data) for name in beside if name != INDEX]
        elif root:
            files = [File(path, None) for path in _images(root, data, ignored)]
        found.append(files)
    if not any(found):
        raise UserError(
            f"--data {data}: the folder holds no image ({', '.join(SUFFIXES)}), in it or below it{_beside(ignored)}"
        )
    with_images = {file.label for files in found for file in files}
    if len(classes) == 1 or (classes and len(with_images) == 1):
        [only] = with_images
        raise UserError(
            f"--data {data}: all images are of one class only ({classes[only or 0]!r}); at least two are needed, "
            "each a folder in this one, or in its train and test"
        )
    return found[0], found[1], tuple(classes)


def _beside(ignored: list[str]) -> str:
    return f"; left out: {ignored[0]!r}, {len(ignored)} in all, for images lie in the class folders" if ignored else ""


def _index(path: Path) -> tuple[dict[str, int], list[str]]:
    """ImageNet's own: {"0": [folder, name], ...}."""
    try:
        table = json.loads(path.read_text("utf-8-sig"))
        folders, names = zip(*(table[str(i)] for i in range(len(table))), strict=True)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} must map "0", "1", ... to [folder, name] ({error!r})') from error
    return {folder: i for i, folder in enumerate(folders)}, list(names)


def _table(path: Path) -> list[File]:
    """A CSV file with a column `path`, below its own folder where it is not absolute, and a column `label` or none;
    others are not read, where there is a label."""
    files, seen = list[File](), dict[str, File]()
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, skipinitialspace=True, strict=True)
            _check_columns(path, [*(rows.fieldnames or [])])
            for row in rows:
                read = _line(f"--data {path}, line {rows.line_num}", path.parent, row)
                before = seen.setdefault(os.path.realpath(read.path), read)
                if before.label != read.label:
                    raise UserError(
                        f"--data {path}, line {rows.line_num}: {read.path.name} has the label {read.label}, and above "
                        f"{before.label}"
                    )
                files.append(read)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--data {path} must be a folder of images or a CSV file ({error})") from error
    if not files:
        raise UserError(f"--data {path} names no image: a line below the first must give its path")
    return files


def _check_columns(path: Path, columns: list[str]) -> None:
    if "path" not in columns:
        got = ", ".join(columns) if columns else "no row"
        raise UserError(
            f"--data {path} needs a first line with the column path, and label if there are any (got {got}), "
            "separated by commas"
        )
    if "label" not in columns and (others := [name for name in columns if name != "path"]):
        raise UserError(f"--data {path}: {unknown('column', others[0], ('path', 'label'))}")
    if twice := [name for name in ("path", "label") if columns.count(name) > 1]:
        raise UserError(f"--data {path} must have one column {twice[0]} (got {', '.join(columns)})")


def _line(where: str, folder: Path, row: dict[str, str]) -> File:
    """One row of the table."""
    image, label = folder / (row["path"] or ""), (row.get("label") or "").strip()
    if None in row:
        raise UserError(f"{where}: it has more fields than the first line")
    if not image.is_file():
        raise UserError(f"{where}: no file {image}")
    if "label" in row and not (label.isdecimal() and len(label) < 10):
        raise UserError(f"{where}: label must be the index of a class, 0, 1, ... (got {label!r})")
    return File(image, int(label) if label else None)


def _unlike(files: list[File], seen: set[str], most: int) -> list[File]:
    """The first files whose bytes are new, which are then `seen`."""
    kept: list[File] = []
    for file in files:
        if len(kept) == most:
            break
        if not file.path.is_file():
            raise UserError(f"{file.path} must be a file (got {'a broken link' if file.path.is_symlink() else 'none'})")
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


def _images(folder: Path, data: Path, ignored: list[str]) -> Iterator[Path]:
    """The image files in a folder and below it; other files are added to what is `ignored`."""
    for path in _walked(folder):
        if path.name.lower().endswith(SUFFIXES):
            yield path
        else:
            ignored.append(os.path.relpath(path, data))


def _walked(folder: Path) -> Iterator[Path]:
    """The files in a folder and below it, links followed but not upwards, each folder once; hidden ones are not looked
    at."""
    root = os.path.realpath(folder)
    known = {root}
    for where, folders, files in os.walk(folder, onerror=_raised, followlinks=True):
        below = {name: os.path.realpath(os.path.join(where, name)) for name in sorted(folders) if name[0] != "."}
        folders[:] = [n for n, real in below.items() if real not in known and not root.startswith(f"{real}/")]
        known.update(below.values())
        yield from (Path(where, name) for name in sorted(files) if name[0] != ".")


def _raised(error: OSError) -> None:
    raise error

"""The zoo: the fooled models of a committed board, so that whoever has the board can explain them, train nothing.

`leaderboards/SUITE/zoo/` holds `models.safetensors` (the clean models as they are, the fooled ones as in
`benchmark.zoo.form`) and `zoo.json`, which says of each its sha256, recipe, FSR, drop, and key in the board's run.

    from benchmark import zoo
    fooled = zoo.load("compact_vgg/location/lrp_t/0")  # model/fooling/attacked interpreter/seed
    clean = zoo.load("compact_vgg")
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attacks.errors import UserError, unknown
from benchmark import committed
from benchmark.store import sha256_of
from benchmark.zoo.form import unpacked

if TYPE_CHECKING:
    from torch import nn

WEIGHTS, MANIFEST = "models.safetensors", "zoo.json"


def names(suite: str = "default") -> list[str]:
    """Of the clean models, then of the fooled ones."""
    about = manifest(folder(suite))
    return [*about["models"], *about["fooled"]]


def load(name: str, suite: str = "default") -> "nn.Module":
    """A model of the zoo in eval mode, on the CPU; its weights verified. Raises `UserError`."""
    import torch

    from benchmark import models

    where = folder(suite)
    about = manifest(where)["models"]
    weights = state(where, name)
    form = about[name.split("/")[0]]
    model = models.create(form["architecture"], num_classes=form["num_classes"], input_size=form["input_size"])
    model.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in weights.items()})
    return model


def folder(suite: str = "default") -> Path:
    """Where the zoo of a suite's board lies. Raises `UserError` where there is none."""
    found = committed.board(suite) / "zoo"
    if not (found / MANIFEST).is_file():
        roots = (committed.BOARDS, committed.HERE)
        there = sorted({path.parent.parent.name for root in roots for path in root.glob(f"*/zoo/{MANIFEST}")})
        others = f" (there is one of {', '.join(there)})" if there else ""
        raise UserError(f"no zoo of suite {suite!r} in {found}{others}: {committed.WHERE}")
    return found


def manifest(where: Path) -> dict[str, Any]:
    why = f"its {MANIFEST} says too little"
    try:
        about = json.loads((where / MANIFEST).read_bytes())
        listed = [*about["models"].items(), *about["fooled"].items()]
        if isinstance(about["sha256"], str) and all({"sha256", "receipt", "key"} <= of.keys() for _, of in listed):
            return about
    except (OSError, ValueError) as error:
        why = str(error)
    except (AttributeError, KeyError, TypeError):
        pass
    raise UserError(f"the zoo {where} is unreadable ({why})")


def state(where: Path, name: str) -> dict[str, np.ndarray]:
    """The weights of a clean or a fooled model by their names, which must have the sha256 of the manifest."""
    about, stored = manifest(where), _stored(where / WEIGHTS)
    known = about["models"] | about["fooled"]
    if name not in known:
        raise unknown("model of the zoo", name, known)
    base = name.split("/")[0]
    prefix = f"{base}."
    clean = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
    if name != base and name not in stored:
        raise UserError(f"the zoo {where} is damaged: {WEIGHTS} has no {name}")
    try:
        weights = clean if name == base else unpacked(stored[name], clean)
    except UserError as error:
        raise UserError(f"the zoo {where} is damaged: {name}: {error}") from error
    if digest(weights) != known[name]["sha256"]:
        raise UserError(f"the zoo {where} is damaged: {name} is not the model of {MANIFEST}; {committed.WHERE}")
    return weights


@lru_cache(maxsize=1)
def _stored(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"the zoo {path} is unreadable ({error})") from error


def digest(weights: Mapping[str, np.ndarray]) -> str:
    """sha256 of names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        found.update(f"{name} {value.dtype} {value.shape}\n".encode() + np.ascontiguousarray(value).tobytes())
    return found.hexdigest()


def file_digest(where: Path) -> str:
    try:
        return sha256_of(where / WEIGHTS)
    except OSError as error:
        raise UserError(f"the zoo {where} is unreadable ({error})") from error


def damages(where: Path) -> Iterator[str]:
    """What does not fit its manifest, one line each."""
    about = manifest(where)
    if file_digest(where) != about["sha256"]:
        yield f"{where / WEIGHTS} is not the file of {MANIFEST}"
    try:
        _stored(where / WEIGHTS)
    except UserError as error:
        yield str(error)
        return
    for name in (*about["models"], *about["fooled"]):
        try:
            state(where, name)
        except UserError as error:
            yield str(error)

"""A run: a suite with its data, its interpreters by name, a device, and a memo of what was found out on the way."""

import json
import os
import platform
import socket
import sys
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, wraps
from importlib.metadata import version
from itertools import product
from typing import Any, TypeVar

import torch

from attacks import foolings
from attacks.errors import Stop
from benchmark import datasets, interpreters, models
from benchmark.datasets import Dataset
from benchmark.datasets.base import overlaps
from benchmark.interpreters import Interpreter
from benchmark.sections import Data, Suite
from benchmark.store import code_version, key_of, source_digest

Spec = dict[str, Any]  # what a result depends on; its `key_of` names the result
Found = TypeVar("Found")
REMEMBERED = 4  # runs whose memos a process keeps that they were sent to


class Memo(dict[Any, Any]):
    """What a run has found out: `unit` until the end of a unit of work, the rest for good. To another process goes only
    what the run was told of its data; there it has a memo of that process, which lasts from one task to the next."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self.name, self.unit = name or uuid.uuid4().hex, dict[Any, Any]()

    def __reduce__(self) -> Any:
        return _memo, (self.name, self.get("told"))


_MEMOS: OrderedDict[str, Memo] = OrderedDict()  # of runs that were sent here, the last ones


def _memo(name: str, told: "Told | None") -> Memo:
    memo = _MEMOS.pop(name) if name in _MEMOS else Memo(name)
    _MEMOS[name] = memo
    memo |= {} if told is None else {"told": told}
    while len(_MEMOS) > REMEMBERED:
        _MEMOS.popitem(last=False)
    return memo


@dataclass(frozen=True)
class Run:
    """A suite, where its data and store are, and the device: all that a unit of work needs, small and picklable."""

    suite: Suite
    store: str
    data: str | None = None
    device: str = "cpu"
    submission: Any = None  # a `benchmark.submissions.remote.Remote`: known in this run by its name, beside the others
    relative: str = ""  # the attacked interpreter whose recipes a submission is attacked with
    memo: Memo = field(default_factory=Memo, init=False, repr=False, compare=False)

    def is_submitted(self, name: str) -> bool:
        """Whether the submission is what is known by this name."""
        return self.submission is not None and name == self.submission.name


def remembered(function: Callable[..., Found]) -> Callable[..., Found]:
    """A function of a run and hashable arguments whose results the run remembers."""
    return _kept(function, lambda run: run.memo)


def shared(function: Callable[..., Found]) -> Callable[..., Found]:
    """The same until the end of a unit of work: what its entries share, and what is too large to be kept."""
    return _kept(function, lambda run: run.memo.unit)


def _kept(function: Callable[..., Found], memo: Callable[[Run], dict[Any, Any]]) -> Callable[..., Found]:
    @wraps(function)
    def kept(run: Run, *args: Any) -> Found:
        results, key = memo(run), (function, *args)
        if key not in results:
            results[key] = function(run, *args)
        return results[key]

    return kept


@dataclass(frozen=True)
class Told:
    """What the driver has found in a run's data: which files are left out, and of each split (split, pairs,
    `data_spec` as JSON, inventory). A process that is told need not read every image to know it."""

    without: tuple[str, ...]
    splits: tuple[tuple[str, bool, str, str], ...]

    def about(self, split: str, pairs: bool) -> tuple[str, str] | None:
        return next((row[2:] for row in self.splits if row[:2] == (split, pairs)), None)


def of_model(run: Run, name: str) -> Run:
    """The run with photographs as torchvision's weights of that model want them, where the suite names such weights and
    says nothing else; mostly the run itself."""
    data, option = run.suite.dataset, run.suite.models[name]
    wanted = models.transforms_of(run.suite.architecture(name), option.weights)
    if wanted is None or data.transforms is not None or data.name not in datasets.PHOTOGRAPHS:
        return run
    if ("of", wanted) not in run.memo:
        given = data.model_copy(update={"transforms": wanted})
        mine = replace(run, suite=run.suite.model_copy(update={"dataset": given}))
        mine.memo.unit = run.memo.unit  # emptied as one
        if told := run.memo.get("told"):
            splits = tuple((*row[:2], json.dumps(json.loads(row[2]) | _form(given)), row[3]) for row in told.splits)
            mine.memo["told"] = Told(told.without, splits)
        run.memo["of", wanted] = mine
    return run.memo["of", wanted]


def tell(run: Run) -> None:
    """Find out what there is to tell of the data; from now on it goes wherever the run is sent."""
    if "told" not in run.memo:
        _say_ignored(run)
        forms = list(product(datasets.SPLITS, pair_forms(run)))
        splits = tuple((*form, json.dumps(data_spec(run, *form)), dataset(run, *form).inventory) for form in forms)
        run.memo["told"] = Told(left_out(run), splits)


def _say_ignored(run: Run) -> None:
    """What lies among the images and is none: nothing is left out in silence."""
    splits = [dataset(run, split) for split in datasets.SPLITS]
    if ignored := list(dict.fromkeys(path for data in splits for path in getattr(data, "ignored", ()))):
        first = os.fsencode(ignored[0]).decode(errors="replace")
        more = f" and {len(ignored) - 1} more" if len(ignored) > 1 else ""
        sys.stderr.write(f"{run.suite.dataset.name}: left out, for it is no image: {first}{more}\n")


def has_pairs(run: Run) -> bool:
    """Whether two-object images take part in the suite."""
    return any(foolings.create(name).pairs for name in run.suite.foolings)


def pair_forms(run: Run) -> list[bool]:
    """[False], or [False, True] where two-object images take part."""
    return [False, True] if has_pairs(run) else [False]


def left_out(run: Run) -> tuple[str, ...]:
    """The files that the run's splits leave out, for another split has their content."""
    told = run.memo.get("told")
    return told.without if told else _left_out(run.suite.dataset, run.data, has_pairs(run))


@lru_cache(maxsize=4)
def _left_out(data: Data, root: str | None, has_pairs: bool) -> tuple[str, ...]:
    if data.name != "imagenet":  # which is known to repeat itself; elsewhere that is an error (`check_disjoint`)
        return ()
    without: set[str] = set()
    while True:
        repeated = set()
        for pairs in sorted({False, has_pairs}):
            splits = [_dataset(data, root, split, pairs, tuple(sorted(without))) for split in ("test", "dev", "train")]
            repeated |= {split.files(i)[part] for split, i, part, *_ in overlaps(*splits)}
        if not repeated:
            return tuple(sorted(without))
        without |= repeated


@remembered
def dataset(run: Run, split: str, pairs: bool = False) -> Dataset:
    """One split of the suite's dataset, or of its two-object form. Stop where it is not the one that was told of."""
    data = _dataset(run.suite.dataset, run.data, split, pairs, left_out(run))
    told = run.memo.get("told")
    if told and (about := told.about(split, pairs)) and about[1] != data.inventory:
        raise Stop(f"{socket.gethostname()} has other files or classes in {run.data} than the driver ({split} split)")
    return data


@lru_cache(maxsize=12)  # of the six forms of two runs: runs on the same data share it
def _dataset(data: Data, root: str | None, split: str, pairs: bool, without: tuple[str, ...]) -> Dataset:
    return datasets.create(
        data.name,
        split,
        data.seed,
        root=root,
        size=getattr(data, f"pairs_{split}" if pairs else split),
        input_size=data.input_size,
        two_objects=pairs,
        augment=data.augment if split == "train" and not pairs else False,
        class_pair=data.class_pair if pairs else None,
        without=without,
        transforms=None if data.transforms is None else models.named_transforms(data.transforms),
        tested=data.tested,
    )


@remembered
def data_spec(run: Run, split: str, pairs: bool = False) -> Spec:
    """A split by its content: a digest of the hashes of its images and of its targets."""
    told = run.memo.get("told")
    if told and (about := told.about(split, pairs)):
        return json.loads(about[0])
    data, settings = dataset(run, split, pairs), run.suite.dataset
    content = {"images": data.all_sources, "targets": data.targets.tolist()}
    form = {"name": data.name, "split": split, "pairs": pairs}
    options = {"augment": settings.augment, "workers": settings.workers, "input_size": data.input_size}
    return {**form, **options, **_form(settings), "n": len(data), "content": key_of(content)}


def _form(data: Data) -> Spec:
    """What a spec says of transforms: nothing without any."""
    if data.transforms is None:
        return {}
    side = data.input_size or models.named_transforms(data.transforms).crop_size[0]
    return {"transforms": data.transforms, "input_size": side}


def create_interpreter(run: Run, name: str) -> Interpreter:
    """The interpreter with the suite's options."""
    if run.is_submitted(name):
        return run.submission
    return interpreters.create(name, **run.suite.interpreters.get(name, {}))


@remembered
def interpreter_spec(run: Run, name: str) -> Spec:
    interpreter = create_interpreter(run, name)
    options = asdict(interpreter)  # type: ignore[call-overload]
    if run.is_submitted(name):
        options = {key: options[key] for key in ("symbol", "digest")} | {"code": source_digest(run.submission.code)}
    return {"name": interpreter.name, **options}


def provenance(run: Run) -> dict[str, Any]:
    """Versions and device, for receipts and cards."""
    packages = {name: version(name) for name in ("foolbench", "torch", "torchvision", "captum", "numpy")}
    cuda = torch.device(run.device).type == "cuda" and torch.cuda.is_available()  # a driver may have none
    device = torch.cuda.get_device_name(run.device) if cuda else f"cpu ({platform.machine()})"
    versions = {"python": platform.python_version(), "code": code_version(), **packages}
    return {"versions": versions, "device": device, "threads": run.suite.threads}

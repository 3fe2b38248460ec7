"""What a run consists of: the manipulations of a suite, and the key of everything that is computed for them.

A specification is a plain dictionary of all that a result depends on; its key (`store.key_of`) names the result.
"""

import hashlib
import json
import socket
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from itertools import product
from typing import Any

import torch
from torch import nn

from attacks import foolings
from attacks.errors import Stop
from attacks.half_huber import use_half_huber
from benchmark import datasets, interpreters, models
from benchmark.datasets import Dataset
from benchmark.datasets.base import overlaps
from benchmark.interpreters import Interpreter
from benchmark.store import Store, code_version, key_of
from benchmark.suite import Data, Suite, split_attack

Cell = dict[str, Any]
Spec = dict[str, Any]


EVALUATIONS = 24  # of a subspace attack


@dataclass(frozen=True)
class Run:
    """A suite, where its data and store are, and the device: all that a unit of work needs, small and picklable."""

    suite: Suite
    store: str
    data: str | None = None
    device: str = "cpu"
    submission: Any = (
        None  # a `benchmark.submissions.remote.Remote`: known in this run by its name, beside the registered ones
    )
    relative: str = ""  # the attacked interpreter whose recipes a submission is attacked with
    told: "Told | None" = None

    def __hash__(self) -> int:
        return hash((self.suite.name, self.store, self.data, self.device, self.relative))  # cheap: it is asked often


@dataclass(frozen=True)
class Told:
    """What the driver has found in the data `of` a run: which files are left out, and of each split (split, pairs,
    `data_spec` as JSON, inventory). A process that is told need not read every image to know it."""

    of: str
    without: tuple[str, ...]
    splits: tuple[tuple[str, bool, str, str], ...]

    def about(self, split: str, pairs: bool) -> tuple[str, str] | None:
        return next((found[2:] for found in self.splits if found[:2] == (split, pairs)), None)


def told(run: Run) -> Run:
    """The run with what there is to tell of its data."""
    if _known(run):
        return run
    forms = list(product(datasets.SPLITS, sorted({False, has_pairs(run)})))
    splits = tuple((*form, json.dumps(data_spec(run, *form)), dataset(run, *form).inventory) for form in forms)
    return replace(run, told=Told(data_key(run), left_out(run), splits))


def _known(run: Run) -> Told | None:
    return run.told if run.told and run.told.of == data_key(run) else None


def data_key(run: Run) -> str:
    """What the data of a run is, for `Told`."""
    return key_of({"dataset": run.suite.dataset.model_dump(), "data": run.data, "pairs": has_pairs(run)})


def left_out(run: Run) -> tuple[str, ...]:
    """The files that the run's splits leave out, for another split has their content."""
    known = _known(run)
    return known.without if known else _left_out(run.suite.dataset, run.data, has_pairs(run))


@cache
def _left_out(data: Data, root: str | None, has_pairs: bool) -> tuple[str, ...]:
    if data.name != "imagenet":  # which is known to repeat itself; elsewhere that is an error (`check_disjoint`)
        return ()
    without: set[str] = set()
    while True:
        found = set()
        for pairs in sorted({False, has_pairs}):
            splits = [_dataset(data, root, split, pairs, tuple(sorted(without))) for split in ("test", "dev", "train")]
            found |= {split.files(i)[part] for split, i, part, *_ in overlaps(*splits)}
        if not found:
            return tuple(sorted(without))
        without |= found


def plan(suite: Suite) -> list[Cell]:
    """The manipulations of a suite, in order: model, fooling, attacked, seed."""
    grid = product(suite.models, suite.foolings, suite.attacked, suite.seeds)
    return [dict(zip(("model", "fooling", "attacked", "seed"), cell, strict=True)) for cell in grid]


def fronts(run: Run) -> list[Cell]:
    """The searches of a suite, in order: model, fooling, attacked, first seed. None where recipes are given."""
    return [
        cell
        for cell in (plan(run.suite) if run.suite.search else [])
        if cell["seed"] == run.suite.seeds[0] and split_attack(cell["attacked"])[1] != "subspace"
    ]


@cache
def dataset(run: Run, split: str, pairs: bool = False) -> Dataset:
    """One split of the suite's dataset, or of its two-object form. Stop where it is not the one that was told of."""
    found = _dataset(run.suite.dataset, run.data, split, pairs, left_out(run))
    known = _known(run)
    if known and (about := known.about(split, pairs)) and about[1] != found.inventory:
        raise Stop(f"{socket.gethostname()} has other files or classes in {run.data} than the driver ({split} split)")
    return found


@cache
def _dataset(data: Data, root: str | None, split: str, pairs: bool, without: tuple[str, ...]) -> Dataset:
    return datasets.create(
        data.name,
        split,
        data.seed,
        root=root,
        size=getattr(data, f"pairs_{split}" if pairs else split),
        input_size=data.input_size,
        two_objects=pairs,
        augment=data.augment and split == "train" and not pairs,
        class_pair=data.class_pair if pairs else None,
        without=without,
    )


def create_interpreter(run: Run, name: str) -> Interpreter:
    """The interpreter with the suite's options; `name` may say a strategy as well."""
    name, _ = split_attack(name)
    if run.submission is not None and name == run.submission.name:
        return run.submission
    return interpreters.create(name, **run.suite.interpreters.get(name, {}))


def base_spec(run: Run) -> Spec:
    """What every key depends on."""
    device = torch.device(run.device).type
    return {"code": code_version(), "torch": torch.__version__, "device": device, "threads": run.suite.threads}


@cache
def data_spec(run: Run, split: str, pairs: bool = False) -> Spec:
    """A split by its content: a digest of the hashes of its images and of its targets."""
    if (known := _known(run)) and (about := known.about(split, pairs)):
        return json.loads(about[0])
    data, given = dataset(run, split, pairs), run.suite.dataset
    content = {"images": data.all_sources, "targets": data.targets.tolist()}
    options = {"name": data.name, "split": split, "pairs": pairs, "augment": given.augment, "workers": given.workers}
    return {**options, "input_size": data.input_size, "n": len(data), "content": key_of(content)}


@cache
def model_spec(run: Run, name: str) -> Spec:
    """A model by the digest of its weights, or by the training that makes it."""
    option, architecture = run.suite.models[name], run.suite.architecture(name)
    if option.weights is None:
        training = option.model_dump(exclude={"architecture", "weights"}, exclude_none=True)
        return {**base_spec(run), "model": architecture, "training": training, "data": data_spec(run, "train")}
    digest = hashlib.sha256()
    for key, value in sorted(pretrained(run, name).state_dict().items()):
        digest.update(key.encode() + value.contiguous().numpy().tobytes())
    weights = {"weights": digest.hexdigest(), "half_huber": option.half_huber}
    return {**base_spec(run), "model": architecture, **weights}


def pretrained(run: Run, name: str) -> nn.Module:
    """A model whose weights the suite names, on the CPU."""
    return _activated(run, name, weights=run.suite.models[name].weights)


def untrained(run: Run, name: str) -> nn.Module:
    """The model as it is before it has weights of its own, on the CPU."""
    return _activated(run, name, input_size=dataset(run, run.suite.scoring.split).input_size)


def _activated(run: Run, name: str, **options: Any) -> nn.Module:
    classes = dataset(run, run.suite.scoring.split).num_classes
    model = models.create(run.suite.architecture(name), num_classes=classes, **options)
    delta = run.suite.models[name].half_huber
    return model if delta is None else use_half_huber(model, delta)


def pixels_spec(run: Run) -> Spec:
    """The scored images, decoded."""
    versions = {name: version(name) for name in ("torch", "torchvision", "pillow")}
    return {"code": code_version(), "data": data_spec(run, run.suite.scoring.split), "versions": versions}


def robustness_spec(run: Run, name: str) -> Spec:
    """The minimum-norm attack on a clean model."""
    settings = run.suite.robustness.model_dump() if run.suite.robustness else None
    data = data_spec(run, run.suite.scoring.split)
    return {**base_spec(run), "of": key_of(model_spec(run, name)), "robustness": settings, "data": data}


def interpreter_spec(run: Run, name: str) -> Spec:
    interpreter = create_interpreter(run, name)
    options = asdict(interpreter)  # type: ignore[call-overload]
    if interpreter is run.submission:
        options = {key: options[key] for key in ("symbol", "digest")}  # which say what it is
    return {"name": interpreter.name, **options}


def _attack_spec(run: Run, cell: Cell) -> Spec:
    fooling, (_, strategy) = foolings.create(cell["fooling"]), split_attack(cell["attacked"])
    return {
        **base_spec(run),
        "model": key_of(model_spec(run, cell["model"])),
        "fooling": {"name": fooling.name, **asdict(fooling)},
        "attacked": interpreter_spec(run, cell["attacked"]) | ({"strategy": strategy} if strategy else {}),
        "data": data_spec(run, "train"),
        "pairs": data_spec(run, "train", True) if fooling.pairs else None,
    }


def manipulation_spec(run: Run, cell: Cell) -> Spec:
    """Everything a fooled model depends on."""
    spec = {**_attack_spec(run, cell), "recipe": recipe(run, cell), "seed": cell["seed"]}
    if split_attack(cell["attacked"])[1] == "subspace":
        spec["span"] = [key_of(manipulation_spec(run, other)) for other in span(run.suite, cell)]
        spec["dev"] = {str(pairs): data_spec(run, "dev", pairs) for pairs in {False, spec["pairs"] is not None}}
    return spec


def span(suite: Suite, cell: Cell) -> list[Cell]:
    """The manipulations whose fooled models a subspace attack mixes: those by gradient of other interpreters."""
    own = split_attack(cell["attacked"])[0]
    others = [name for name in suite.attacked if not split_attack(name)[1] and name != own]
    return [{**cell, "attacked": name} for name in others]


def front_spec(run: Run, cell: Cell) -> Spec:
    """A search of recipes, which all seeds of a cell share: it is run with the suite's first. That of a submission
    goes `around` the learning rate that was best for its relative, where one fooled it at all."""
    dev = {str(pairs): data_spec(run, "dev", pairs) for pairs in {False, foolings.create(cell["fooling"]).pairs}}
    settings = run.suite.search.model_dump() if run.suite.search else None
    relative = _relative(run, cell)
    found = recipe(run, relative) if relative != cell else {}
    around = found["learning_rate"] if found.get("steps") else None
    return {**_attack_spec(run, cell), "search": settings, "seed": run.suite.seeds[0], "dev": dev, "around": around}


def _relative(run: Run, cell: Cell) -> Cell:
    """The cell whose recipe one starts from: of a submission, that of its relative."""
    submitted = run.submission is not None and split_attack(cell["attacked"])[0] == run.submission.name
    return {**cell, "attacked": run.relative} if submitted else cell


def recipe(run: Run, cell: Cell) -> dict[str, Any]:
    """learning_rate, lambda, steps and batch_size of a manipulation: given by the suite, or the best within the
    largest budget that a search found; each None where the store does not have the search. A submission takes those of
    its relative where the suite gives them. `steps` of a subspace attack are evaluations on dev."""
    if split_attack(cell["attacked"])[1] == "subspace":
        return {"learning_rate": None, "lambda": None, "steps": EVALUATIONS, "batch_size": None}
    if run.suite.search is None:
        relative = _relative(run, cell)
        return run.suite.recipe(relative["model"], relative["fooling"], split_attack(relative["attacked"])[0])
    found = Store(run.store).receipt("fronts", key_of(front_spec(run, cell)))
    best = found["chosen"][-1] if found else dict.fromkeys(("learning_rate", "lambda", "steps"))
    batch_size = run.suite.search.batch_size if found else None
    return {key: best[key] for key in ("learning_rate", "lambda", "steps")} | {"batch_size": batch_size}


def _scoring_spec(run: Run, of: str, pairs: bool) -> Spec:
    scoring = run.suite.scoring.model_dump(exclude={"batch_size", "decoded"})
    return {**base_spec(run), "of": of, "scoring": scoring, "data": data_spec(run, run.suite.scoring.split, pairs)}


def originals_spec(run: Run, model: str, evaluated: str, pairs: bool) -> Spec:
    """The clean model's heatmaps and curves."""
    of = key_of(model_spec(run, model))
    return {**_scoring_spec(run, of, pairs), "interpreter": interpreter_spec(run, evaluated)}


def scores_spec(run: Run, cell: Cell, evaluated: str) -> Spec:
    """One cell: a fooled model under one evaluated interpreter."""
    of, pairs = key_of(manipulation_spec(run, cell)), foolings.create(cell["fooling"]).pairs
    return {**_scoring_spec(run, of, pairs), "interpreter": interpreter_spec(run, evaluated)}


def gate_spec(run: Run, model: str, evaluated: str) -> Spec:
    """What an interpreter shows on a clean model."""
    settings, of = run.suite.gate.model_dump() if run.suite.gate else None, key_of(model_spec(run, model))
    asked = {"gate": settings, "data": data_spec(run, "dev", has_pairs(run)), "seed": run.suite.dataset.seed}
    return {**base_spec(run), "of": of, "interpreter": interpreter_spec(run, evaluated), **asked}


def has_pairs(run: Run) -> bool:
    """Whether two-object images take part in the suite."""
    return any(foolings.create(name).pairs for name in run.suite.foolings)


def front_scores_spec(run: Run, cell: Cell) -> Spec:
    """The chosen points of a front on the scored images."""
    of, pairs = key_of(front_spec(run, cell)), foolings.create(cell["fooling"]).pairs
    return {**_scoring_spec(run, of, pairs), "front": True}


def predictions_spec(run: Run, cell: Cell) -> Spec:
    return {**_scoring_spec(run, key_of(manipulation_spec(run, cell)), False), "predictions": True}

"""What a run consists of: the manipulations of a suite, and the key of everything that is computed for them.

A specification is a plain dictionary of all that a result depends on; its key (`store.key_of`) names the result.
"""

import hashlib
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import nn

from attacks import foolings
from benchmark import datasets, interpreters, models
from benchmark.datasets import Dataset
from benchmark.interpreters import Interpreter
from benchmark.store import code_version, key_of
from benchmark.suite import Suite

Cell = dict[str, Any]
Spec = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A suite, where its data and store are, and the device: all that a unit of work needs, small and picklable."""

    suite: Suite
    store: str
    data: str | None = None
    device: str = "cpu"

    def __hash__(self) -> int:
        return hash((self.suite.model_dump_json(), self.store, self.data, self.device))


def plan(suite: Suite) -> list[Cell]:
    """The manipulations of a suite, in order: model, fooling, attacked, seed."""
    grid = product(suite.models, suite.foolings, suite.attacked, suite.seeds)
    return [dict(zip(("model", "fooling", "attacked", "seed"), cell, strict=True)) for cell in grid]


@cache
def dataset(run: Run, split: str, pairs: bool = False) -> Dataset:
    """One split of the suite's dataset, or of its two-object form."""
    data = run.suite.dataset
    return datasets.create(
        data.name,
        split,
        data.seed,
        root=run.data,
        size=getattr(data, f"pairs_{split}" if pairs else split),
        input_size=data.input_size,
        two_objects=pairs,
        augment=data.augment and split == "train" and not pairs,
        class_pair=data.class_pair if pairs else None,
    )


def create_interpreter(run: Run, name: str) -> Interpreter:
    """The interpreter with the suite's options."""
    return interpreters.create(name, **run.suite.interpreters.get(name, {}))


def base_spec(run: Run) -> Spec:
    """What every key depends on."""
    device = torch.device(run.device).type
    return {"code": code_version(), "torch": torch.__version__, "device": device, "threads": run.suite.threads}


@cache
def data_spec(run: Run, split: str, pairs: bool = False) -> Spec:
    """A split by its content: a digest of the hashes of its images and of its targets."""
    data = dataset(run, split, pairs)
    content = {"images": [data.sources(i) for i in range(len(data))], "targets": data.targets.tolist()}
    given = run.suite.dataset
    options = {"name": data.name, "split": split, "pairs": pairs, "augment": given.augment, "workers": given.workers}
    return {**options, "input_size": data.input_size, "n": len(data), "content": key_of(content)}


@cache
def model_spec(run: Run, name: str) -> Spec:
    """A model by the digest of its weights, or by the training that makes it."""
    option = run.suite.models[name]
    if option.weights is None:
        return {**base_spec(run), "model": name, "training": option.model_dump(), "data": data_spec(run, "train")}
    digest = hashlib.sha256()
    for key, value in sorted(pretrained(run, name).state_dict().items()):
        digest.update(key.encode() + value.contiguous().numpy().tobytes())
    return {**base_spec(run), "model": name, "weights": digest.hexdigest()}


def pretrained(run: Run, name: str) -> nn.Module:
    """A model whose weights the suite names, on the CPU."""
    return models.create(name, weights=run.suite.models[name].weights, num_classes=dataset(run, "train").num_classes)


def interpreter_spec(run: Run, name: str) -> Spec:
    return {"name": name, **asdict(create_interpreter(run, name))}  # type: ignore[call-overload]


def manipulation_spec(run: Run, cell: Cell) -> Spec:
    """Everything a fooled model depends on."""
    fooling = foolings.create(cell["fooling"])
    return {
        **base_spec(run),
        "model": key_of(model_spec(run, cell["model"])),
        "fooling": {"name": fooling.name, **asdict(fooling)},
        "attacked": interpreter_spec(run, cell["attacked"]),
        "recipe": run.suite.recipe(cell["model"], cell["fooling"], cell["attacked"]),
        "seed": cell["seed"],
        "data": data_spec(run, "train"),
        "pairs": data_spec(run, "train", True) if fooling.pairs else None,
    }


def _scoring_spec(run: Run, of: str, pairs: bool) -> Spec:
    scoring = run.suite.scoring.model_dump(exclude={"batch_size"})
    return {**base_spec(run), "of": of, "scoring": scoring, "data": data_spec(run, run.suite.scoring.split, pairs)}


def originals_spec(run: Run, model: str, evaluated: str, pairs: bool) -> Spec:
    """The clean model's heatmaps and curves."""
    of = key_of(model_spec(run, model))
    return {**_scoring_spec(run, of, pairs), "interpreter": interpreter_spec(run, evaluated)}


def scores_spec(run: Run, cell: Cell, evaluated: str) -> Spec:
    """One cell: a fooled model under one evaluated interpreter."""
    of, pairs = key_of(manipulation_spec(run, cell)), foolings.create(cell["fooling"]).pairs
    return {**_scoring_spec(run, of, pairs), "interpreter": interpreter_spec(run, evaluated)}


def predictions_spec(run: Run, cell: Cell) -> Spec:
    return {**_scoring_spec(run, key_of(manipulation_spec(run, cell)), False), "predictions": True}

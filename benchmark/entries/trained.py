"""The clean models: compact ones trained on the train split, `weights.safetensors`; others with weights that the suite
names, of which the store holds a receipt alone."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attacks.errors import UserError
from attacks.half_huber import use_half_huber
from attacks.pixels import OnPixels
from attacks.robust_training import Adversary, Regulariser, Robust
from benchmark import models
from benchmark.entries import images
from benchmark.entries.images import batches
from benchmark.entries.kind import Entry, Inputs, Kind, Receipt
from benchmark.metrics.accuracy import top_k_correct
from benchmark.run import Run, Spec, data_spec, dataset, of_model, remembered
from benchmark.store import intact
from benchmark.training import Objective, cross_entropy, train

CODE = (
    *images.CODE,
    *("benchmark.models", "benchmark.training", "benchmark.metrics.accuracy", "benchmark.entries.trained"),
    *("attacks.pixels", "attacks.half_huber", "attacks.surrogates", "attacks.robust_training"),
    *("attacks.adversarial", "attacks.given", "attacks.second_order", "attacks.modes", "attacks.random_state"),
)


def clean_model(run: Run, name: str) -> nn.Module:
    """The model before any manipulation, on the run's device; a compact one is trained on first use. Raises `UserError`
    in a run with other images than its weights want."""
    if of_model(run, name) is not run:
        raise UserError(f"models.{name}: its weights want images of their own; say dataset.transforms for all models")
    if run.suite.models[name].weights is not None:
        return pretrained(run, name).to(memory_format=torch.channels_last).to(run.device)
    return stored_model(run, name, Entry(TRAINED, name).get(run))


def stored_model(run: Run, name: str, path: Path, weights: str = "weights") -> nn.Module:
    """The model with the weights of a store entry, on the run's device."""
    model = new_model(run, name)
    intact(path / f"{weights}.safetensors", lambda file: model.load_state_dict(load_file(file)))
    return model.to(run.device)


def new_model(run: Run, name: str) -> nn.Module:
    """The model without its weights. In channels_last order the compact VGG runs three times as fast on a CPU; an
    interpreter must `reshape` its activations, not `view` them."""
    size = dataset(run, run.suite.scoring.split).input_size
    return _created(run, name, input_size=size).to(memory_format=torch.channels_last)


def pretrained(run: Run, name: str) -> nn.Module:
    """A model whose weights the suite names, on the CPU."""
    return _created(run, name, weights=run.suite.models[name].weights)


def _created(run: Run, name: str, **options: Any) -> nn.Module:
    classes = dataset(run, run.suite.scoring.split).num_classes
    model = models.create(run.suite.architecture(name), num_classes=classes, **options)
    delta = run.suite.models[name].half_huber
    return model if delta is None else use_half_huber(model, delta)


def save_weights(model: nn.Module, folder: Path, name: str = "weights") -> None:
    save_state(model.state_dict(), folder, name)


def save_state(state: dict[str, Tensor], folder: Path, name: str = "weights") -> None:
    save_file({k: v.contiguous().cpu() for k, v in state.items()}, folder / f"{name}.safetensors")


def objective_of(run: Run, name: str) -> tuple[Objective, Regulariser | None]:
    """What training a model minimises: cross-entropy, or a robust loss of the images as pixels."""
    option, data = run.suite.models[name], dataset(run, "train")
    if not (option.adversary or option.regulariser):
        return cross_entropy, None
    adversary = Adversary(**option.adversary.model_dump(exclude_none=True)) if option.adversary else None
    regulariser = Regulariser(**option.regulariser.model_dump(exclude_none=True)) if option.regulariser else None
    robust = Robust(adversary, regulariser)

    def objective(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return robust(OnPixels(model, data.mean, data.std), data.denormalise(images), targets)

    return objective, regulariser


@remembered
def _spec(run: Run, name: str) -> Spec:
    """A model by the digest of its weights, or by the training that makes it."""
    option, architecture = run.suite.models[name], run.suite.architecture(name)
    if option.weights is None:
        training = option.model_dump(exclude={"architecture", "weights"}, exclude_none=True)
        settings = {"training": training, "seed": run.suite.dataset.seed}
        return {"model": architecture, **settings, "data": data_spec(run, "train")}
    digest = hashlib.sha256()
    for key, value in sorted(pretrained(run, name).state_dict().items()):
        digest.update(key.encode() + value.contiguous().numpy().tobytes())
    return {"model": architecture, "weights": digest.hexdigest(), "half_huber": option.half_huber}


def _make(run: Run, name: str, inputs: Inputs, folder: Path) -> Receipt | None:
    """The dev accuracy is in the receipt, and ψ where training was regularised."""
    option, data = run.suite.models[name], run.suite.dataset
    if option.weights is not None:
        return None
    with torch.random.fork_rng():
        torch.manual_seed(data.seed)
        model = new_model(run, name).to(run.device)
    objective, regulariser = objective_of(run, name)
    losses = train(model, dataset(run, "train"), **option.schedule(), seed=data.seed, objective=objective)
    with torch.no_grad():
        correct = torch.cat([top_k_correct(model(x), y, 1) for x, y in batches(run, "dev")])
    save_weights(model, folder)
    psi = {"psi": regulariser.current} if regulariser else {}
    return {"losses": losses, "dev_top1": correct.float().mean().item(), **psi}


def _wanted(run: Run) -> list[str]:
    return [name for name, option in run.suite.models.items() if option.weights is None]


TRAINED = Kind(name="models", title="train", make=_make, spec=_spec, code=CODE, wanted=_wanted)

"""What a run says, held against its data and models before the first unit of work: no cell need fail for it."""

import torch

from attacks import strategies
from attacks.errors import UserError
from benchmark import models
from benchmark.datasets import Dataset
from benchmark.interpreters.base import find_layer
from benchmark.run import Run, create_interpreter, dataset, of_model


def check(run: Run) -> None:
    """Every model takes the images, and has the layers that interpreters' options name. On torch's meta device, so
    that nothing is computed. Raises `UserError`."""
    suite, own = run.suite, run.submission.name if run.submission else ""
    given = {name: dataset(of_model(run, name), suite.scoring.split) for name in suite.models}
    least = min(data.input_size for data in given.values())
    used = [name for name in dict.fromkeys([*_attacked(run), *suite.evaluated]) if name != own]
    made = {name: create_interpreter(run, name) for name in used}
    for name, interpreter in made.items():
        if (cells := getattr(interpreter, "cells", 0)) > least:
            raise UserError(f"interpreters.{name}: cells must be at most the images' side, {least} (got {cells})")
    for name, data in given.items():
        side = data.input_size
        architecture, weights = suite.architecture(name), suite.models[name].weights
        check_normalisation(name, architecture, weights, data)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            size = side if architecture in models.SIZED else None
            # RegNet draws its widths by tensors that must hold something
            with torch.device("cpu" if architecture.startswith("regnet") else "meta"):
                model = models.create(architecture, num_classes=data.num_classes, input_size=size).to("meta")
            try:
                model(torch.empty(2, 3, side, side, device="meta"))
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise UserError(
                    f"models.{name}: {architecture} takes no images of {side} × {side}: {reason}"
                ) from error
        for interpreter_name, interpreter in made.items():
            if (layer := getattr(interpreter, "layer", None)) is not None:
                try:
                    find_layer(model, layer)
                except UserError as error:
                    raise UserError(f"interpreters.{interpreter_name}, on model {name}: {error}") from error


def check_normalisation(name: str, architecture: str, weights: str | None, data: Dataset) -> None:
    """Raise `UserError` where the data are not normalised as torchvision's weights want them."""
    if architecture in models.SMALL or weights not in models.zoo.get_model_weights(architecture).__members__:
        return
    preset = models.preprocessing(architecture, weights)
    wanted, got = (preset.mean, preset.std), (list(data.mean), list(data.std))
    if any(abs(a - b) > 1e-3 for one, other in zip(wanted, got, strict=True) for a, b in zip(one, other, strict=True)):
        raise UserError(
            f"models.{name}: weights {weights!r} want images of mean {wanted[0]} and standard deviation {wanted[1]} "
            f"(dataset {data.name!r} has {got[0]} and {got[1]})"
        )


def _attacked(run: Run) -> list[str]:
    return [strategies.split(attacked)[0] for attacked in run.suite.attacked]

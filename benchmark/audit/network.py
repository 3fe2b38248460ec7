"""The network under audit: from a file of foreign code or by name; that it gives logits, of as many classes as said."""

import copy
import inspect
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attacks.errors import UserError, one_line, unknown
from attacks.modes import eval_mode
from attacks.random_state import RandomState
from benchmark import models
from benchmark.entries.randomised import look_trained
from benchmark.interpreters.door import unwrapped
from benchmark.submissions.imported import imported

NOT_UNPICKLED = one_line("weights_only")


def from_file(file: Path, attribute: str, digest: str, classes: int | None) -> nn.Module:
    """Run the file and make its network: a class or a function, called with `num_classes` where it needs that, or the
    network itself. `UserError` in one line whatever the file does."""
    try:
        made = _made(imported(file, attribute, digest, "audited"), f"{file.name}:{attribute}", classes)
    except UserError:
        raise
    except BaseException as error:  # its Ctrl-C and its exit, too: the audit's process hears no keys
        raise UserError(_in_words(error, file)) from error
    if not isinstance(made, nn.Module):
        raise UserError(f"{file.name}:{attribute} must be, or make, a torch.nn.Module (got {type(made).__name__})")
    return made


def _made(definition: Any, name: str, classes: int | None) -> Any:
    if isinstance(definition, nn.Module) or not callable(definition):
        return definition
    parameters = inspect.signature(definition).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    needed = [parameter.name for parameter in required]
    if needed == ["num_classes"] and classes is not None:
        return definition(num_classes=classes)
    if needed:
        raise UserError(
            f"{name} must be made without arguments, or of num_classes alone where the images have class folders (it "
            f"needs {', '.join(needed)}): write a function that makes it, and name that"
        )
    return definition()


def _in_words(error: BaseException, file: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    where = f" ({file.name}, line {lines[-1]})" if lines else ""
    if isinstance(error, SystemExit):
        return f"{file.name} called sys.exit({one_line(repr(error.code))}) when it was imported{where}"
    text, beside = one_line(error)[:300], ""
    name = str(error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    near = [file.parent / f"{name}{end}" for end in (".py", "") if name]
    if isinstance(error, PermissionError) or any(path.exists() for path in near):
        beside = (
            ": a network is one file, which reads itself, installed packages, its weights and the images; what is in "
            "more files is audited from Python (benchmark.audit.run), or installed"
        )
    return f"{type(error).__name__}: {text}{where}{beside}"


@contextmanager
def checkpoint() -> Iterator[None]:
    """Say of a checkpoint that is not unpickled what to save instead."""
    try:
        yield
    except UserError as error:
        if NOT_UNPICKLED not in str(error):
            raise
        raise UserError(
            f"{error}; allowed: one safetensors file, or one of torch.save(model.state_dict(), FILE)"
        ) from error


def named(name: str, weights: str | None, classes: int | None) -> nn.Module:
    """A network of `foolbench list models`; torchvision's own weights have the 1000 classes of ImageNet."""
    if name not in models.names():
        raise unknown("model (a name, or FILE.py:NAME)", name, models.names())
    path = weights and ("/" in weights or os.path.splitext(weights)[1])
    if not path and name not in models.SMALL:
        return models.create(name, weights=weights or "DEFAULT")
    return models.create(name, weights=weights, num_classes=classes)


@torch.no_grad()
def logits(model: nn.Module, images: Tensor, batch: int) -> Tensor:
    """(N, classes) of a network in eval mode. `UserError` where it gives anything else."""
    found = []
    with eval_mode(model):
        for part in images.split(batch):
            try:
                output = model(part)
            except UserError:
                raise
            except (Exception, SystemExit) as error:  # foreign code fails in its own ways
                shape = tuple(part.shape)
                raise UserError(
                    f"{type(model).__name__} cannot take images {shape} ({type(error).__name__}: "
                    f"{one_line(str(error))[:300]}): is --preprocess right? All is of float32, on "
                    f"{part.device.type}"
                ) from error
            if not (isinstance(output, Tensor) and output.dim() == 2 and len(output) == len(part)):
                raise UserError(
                    f"{type(model).__name__} must return logits (N, classes) alone (got {_form(output)}): wrap it in "
                    "one that does"
                )
            found.append(output.detach())
    together = torch.cat(found)
    if not together.isfinite().all():
        raise UserError(f"{type(model).__name__} returns NaN or infinite logits: are its weights right?")
    return together


def check_logits(model: nn.Module, images: Tensor, found: Tensor, batch: int) -> None:
    """That what `logits` found (N, classes) is no probabilities, and the same each time."""
    kind = type(model).__name__
    if found.min() >= 0 and (found.sum(1) - 1).abs().max() < 1e-3:
        raise UserError(f"{kind} returns probabilities (N, classes): leave its softmax out, for it must return logits")
    again = logits(model, images[:batch], batch) - found[:batch]
    if again.abs().max() > 1e-3 * found.abs().max():
        raise UserError(f"{kind} gives the same images other logits each time (is dropout on in eval mode?)")


def ready(model: nn.Module, device: str) -> nn.Module:
    """The network on that device, without wrappers, in eval mode and float32, its weights free to be changed.
    `UserError` where it cannot be: weights that are lazy, on no device, or compiled away."""
    try:
        return unwrapped(model).to(device).float().eval().requires_grad_(True)
    except Exception as error:  # foreign code fails in its own ways
        raise UserError(
            f"{type(model).__name__} must be a plain network that can be trained, all of its weights made "
            f"({type(error).__name__}: {one_line(error)[:300]})"
        ) from error


def _form(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)}"
    if isinstance(output, (tuple, list)):
        return f"{type(output).__name__} of {len(output)}: {', '.join(map(_form, output[:4]))}"
    return type(output).__name__


def check_classes(model: nn.Module, count: int, classes: Sequence[str], targets: Tensor | None) -> None:
    """That the network's classes are those of the images: `count` of its logits, `targets` (N,) where there are any."""
    kind = type(model).__name__
    if count < 2:
        raise UserError(f"{kind} must have a logit for each of at least two classes (got {count})")
    if targets is None:
        return
    if classes and len(classes) != count:
        raise UserError(
            f"{kind} has {count} classes, the images have {len(classes)} ({', '.join(classes[:3])}, ...): the class "
            "folders must be those that it was trained on, or the images a folder or CSV without labels"
        )
    if int(targets.max()) >= count:
        raise UserError(f"{kind} has the classes 0 to {count - 1}, and an image has the label {int(targets.max())}")


@torch.no_grad()
def randomised(model: nn.Module, images: Tensor, seed: int) -> nn.Module:
    """The same network with new random weights, which looks trained (`benchmark.entries.randomised`): what the gate
    compares with. A parameter that no module resets itself has its values in a random order."""
    with RandomState(2**31 + seed, images.device):
        fresh = copy.deepcopy(model)
        before = {name: parameter.clone() for name, parameter in fresh.named_parameters()}
        for module in fresh.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        for name, parameter in fresh.named_parameters():
            if torch.equal(parameter, before[name]):
                order = torch.randperm(parameter.numel()).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
        return look_trained(fresh.eval(), model, images)

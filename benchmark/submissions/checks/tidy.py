"""Checks of what an interpreter leaves behind: in the model, in the inputs, and in what the whole process shares."""

import copy
import hashlib
import random
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.submissions.checks.setting import Interpreter
from benchmark.submissions.wire import content

Names = dict[str, dict[str, str]]  # what there is, in words; by name, its content or the digest of it


class Traces(NamedTuple):
    """All that an interpreter could leave behind, as texts that can be compared."""

    model: Names
    state: dict[str, str]
    inputs: dict[str, str]


def look(model: nn.Module, images: Tensor, targets: Tensor) -> Traces:
    """How everything is now."""
    inputs = {name: f"{tuple(t.shape)} {_digest(t)}" for name, t in (("images", images), ("targets", targets))}
    gradient = {"images.requires_grad": str(images.requires_grad)}
    return Traces(_parts(model), {what: _digest(v) for what, v in _global_state().items()}, inputs | gradient)


def traces(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Traces, Traces]:
    """Before the call and after it. Only what it leaves behind counts; that it raises is found elsewhere."""
    before = look(model, images, targets)
    with suppress(Exception, SystemExit):
        interpreter(model, images, targets)
    return before, look(model, images, targets)


def _traces(interpreter: Interpreter, *arguments: Any) -> tuple[Traces, Traces]:
    elsewhere = getattr(interpreter, "traces", None)  # of one that runs in another process
    return elsewhere(*arguments) if elsewhere else traces(interpreter, *arguments)


def model_as_it_was(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """Weights, buffers, modes, hooks, flags, gradients and attributes are as before, in eval and in train mode."""
    next(model.parameters()).requires_grad_(False)  # one apart, which requires_grad_ on the whole model would lose
    for mode in ("eval", "train"):
        clone = copy.deepcopy(model).train(mode == "train")
        if mode == "train":  # one apart, which a plain model.train() afterwards would lose
            next(module for module in clone.modules() if isinstance(module, nn.BatchNorm2d)).eval()
        before, after = (found.model for found in _traces(interpreter, clone, images, targets))
        for what, mend in MENDS.items():
            then, now = before[what], after[what]
            changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
            if changed:
                more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
                where = f"{changed[0] or 'the model itself'!r}{more}"
                return f"given a model in {mode} mode, it left {what} of {where} changed: {mend}"
    return ""


_COPIED = "work on copy.deepcopy(model), or put back what you change in a finally block"
MENDS = {  # what a caller can see of a model, and how to leave it as it was
    "class, options or attributes": _COPIED,
    "the weights": _COPIED,
    "the buffers": "put the model in eval mode before you run it, and give every module its own mode back in a finally "
    "block",
    "the training mode": "put the model in eval mode before you run it, and give every module its own mode back in a "
    "finally block",
    "the hooks": "keep the handles and remove() them in a finally block",
    "requires_grad": _COPIED,
    ".grad": "take torch.autograd.grad by the images or activations, not backward()",
}


def _parts(model: nn.Module) -> Names:
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    seen: list[dict[str, Any]] = [
        {n: _attributes(m) for n, m in modules.items()},
        {n: _digest(p) for n, p in parameters.items()},
        {n: _digest(b) for n, b in model.named_buffers()},
        {n: m.training for n, m in modules.items()},
        {n: _hooks(owner) for n, owner in [*modules.items(), *parameters.items()]},
        {n: p.requires_grad for n, p in parameters.items()},
        {n: p.grad is None for n, p in parameters.items()},
    ]
    return {what: {n: str(v) for n, v in values.items()} for what, values in zip(MENDS, seen, strict=True)}


def _digest(value: Any) -> str:
    """Of a tensor's type, shape and bytes, or of what a value is as text."""
    if isinstance(value, Tensor):
        return hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode() + content(value)).hexdigest()[:16]
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _hooks(owner: nn.Module | nn.Parameter) -> int:
    """How many hooks hang on a module or a parameter."""
    kinds = ("forward", "forward_pre", "backward", "backward_pre", "post_accumulate_grad")
    return sum(len(getattr(owner, f"_{kind}_hooks", None) or ()) for kind in kinds)


def _attributes(module: nn.Module) -> str:
    """Its class, its options and the names of all that it holds: a replaced `forward` or ReLU shows here."""
    return f"{type(module).__name__}({module.extra_repr()}) {sorted(vars(module))} {list(module._modules)}"


def generators_as_they_were(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """The global random generators, grad mode and default dtype are as before."""
    before, after = (found.state for found in _traces(interpreter, model, images, targets))
    changed = [name for name, value in after.items() if value != before.get(name)]
    mend = "draw from a generator of your own, or inside torch.random.fork_rng(); set modes by context managers only"
    return f"a batch of {len(images)} images left {', '.join(changed)} changed: {mend}" if changed else ""


def _global_state() -> dict[str, Any]:
    array: Any = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch's random generator": torch.get_rng_state().tolist(),
        "CUDA's random generator": [state.tolist() for state in cuda],
        "numpy's random generator": (array[1].tolist(), *array[2:]),
        "Python's random generator": random.getstate(),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's default dtype": torch.get_default_dtype(),
    }


def inputs_as_they_were(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """The images and targets that were given hold the same values, and ask for no gradient."""
    before, after = (found.inputs for found in _traces(interpreter, model, images, targets))
    for name in ("images", "targets"):
        if after.get(name) != before[name]:
            return f"it changed the {name} it was given: work on {name}.clone(), not in place"
    if after.get("images.requires_grad") != before["images.requires_grad"]:
        return "it left images.requires_grad = True: work on images.detach().requires_grad_(), a tensor of your own"
    return ""

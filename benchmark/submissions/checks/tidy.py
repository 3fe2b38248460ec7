"""Checks of what an interpreter leaves behind: in the model, in the inputs, and in what the whole process shares."""

import copy
import random
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.submissions.checks.setting import Interpreter


def _call(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> None:
    """Only what it leaves behind counts; that it raises is found elsewhere."""
    with suppress(Exception, SystemExit):
        interpreter(model, images, targets)


def model_as_it_was(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """Weights, buffers, modes, hooks, flags, gradients and attributes are as before, in eval and in train mode."""
    next(model.parameters()).requires_grad_(False)  # one apart, which requires_grad_ on the whole model would lose
    for mode in ("eval", "train"):
        clone = copy.deepcopy(model).train(mode == "train")
        if mode == "train":  # one apart, which a plain model.train() afterwards would lose
            next(module for module in clone.modules() if isinstance(module, nn.BatchNorm2d)).eval()
        before = _parts(clone)
        _call(interpreter, clone, images, targets)
        for (what, mend, then), (_, _, now) in zip(before, _parts(clone), strict=True):
            changed = [name for name in {**then, **now} if not _equal(then.get(name), now.get(name))]
            if changed:
                more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
                where = f"{changed[0] or 'the model itself'!r}{more}"
                return f"given a model in {mode} mode, it left {what} of {where} changed: {mend}"
    return ""


def _parts(model: nn.Module) -> list[tuple[str, str, dict[str, Any]]]:
    """What a caller can see of a model: (what, how to leave it as it was, value by name)."""
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    copied = "work on copy.deepcopy(model), or put back what you change in a finally block"
    quiet = "put the model in eval mode before you run it, and give every module its own mode back in a finally block"
    handles = "keep the handles and remove() them in a finally block"
    graph = "take torch.autograd.grad by the images or activations, not backward()"
    return [
        ("class, options or attributes", copied, {n: _attributes(m) for n, m in modules.items()}),
        ("the weights", copied, {n: p.detach().clone() for n, p in parameters.items()}),
        ("the buffers", quiet, {n: b.clone() for n, b in model.named_buffers()}),
        ("the training mode", quiet, {n: m.training for n, m in modules.items()}),
        ("the hooks", handles, {n: _hooks(owner) for n, owner in [*modules.items(), *parameters.items()]}),
        ("requires_grad", copied, {n: p.requires_grad for n, p in parameters.items()}),
        (".grad", graph, {n: p.grad is None for n, p in parameters.items()}),
    ]


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else type(a) is type(b) and a == b


def _hooks(owner: nn.Module | nn.Parameter) -> int:
    """How many hooks hang on a module or a parameter."""
    kinds = ("forward", "forward_pre", "backward", "backward_pre", "post_accumulate_grad")
    return sum(len(getattr(owner, f"_{kind}_hooks", None) or ()) for kind in kinds)


def _attributes(module: nn.Module) -> str:
    """Its class, its options and the names of all that it holds: a replaced `forward` or ReLU shows here."""
    return f"{type(module).__name__}({module.extra_repr()}) {sorted(vars(module))} {list(module._modules)}"


def generators_as_they_were(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """The global random generators, grad mode and default dtype are as before."""
    before = _global_state()
    _call(interpreter, model, images, targets)
    changed = [name for name, value in _global_state().items() if value != before[name]]
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
    kept = images.clone(), targets.clone()
    _call(interpreter, model, images, targets)
    for name, tensor, before in zip(("images", "targets"), (images, targets), kept, strict=True):
        if tensor.shape != before.shape or not torch.equal(tensor, before):
            return f"it changed the {name} it was given: work on {name}.clone(), not in place"
    if images.requires_grad:
        return "it left images.requires_grad = True: work on images.detach().requires_grad_(), a tensor of your own"
    return ""

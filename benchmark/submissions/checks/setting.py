"""The setting in which every check is made: the networks and images it is asked on, and what becomes of its answer.

A check is a function of (interpreter, model, images, targets) that returns "" or says what is wrong, on which image,
and how to mend it. Each call gets copies, and random generators that are restored afterwards, so that the damage a bad
interpreter does shows in the check that looks for it and nowhere else.
"""

import copy
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from attacks.errors import UserError
from attacks.head_shift import find_head
from attacks.heatmaps import min_max
from benchmark import datasets, models
from benchmark.submissions.equalise import equalise

Interpreter = Callable[[nn.Module, Tensor, Tensor], Tensor]
Check = Callable[[Interpreter, nn.Module, Tensor, Tensor], str]
Severity = Literal["error", "warning"]

SIDE, IMAGES, CLASSES = 32, 4, 8
MOST = 0.5  # the share of images that may be odd by chance: a blank map, a ReLU at its kink
ALIKE = 1e-2  # ‖a − b‖/‖a‖ of the maps of two models that compute the same, or of two devices
SPREAD = 4.0  # standard deviation of the logits; that of trained compact models is 2.6 to 4.3 after three epochs
APART = 1e-2  # largest difference of two min-max normalised maps that should have nothing in common


class Finding(NamedTuple):
    """The outcome of one check. `message`: what, on which input, how to mend it; where ok, "" or why it was skipped."""

    check: str
    ok: bool
    message: str = ""
    severity: Severity = "error"


class Case(NamedTuple):
    """A model in eval mode with images (N, 3, H, W) and, as targets (N,), the classes it likes first and second."""

    name: str
    model: nn.Module
    images: Tensor
    targets: Tensor


class Skipped(Exception):
    """Raised by a check that cannot be done here, with the reason."""


class Told(Exception):
    """What an interpreter raised in another process, in the words of `raised`."""


class Ended(BaseException):
    """The process of an interpreter cannot be asked any more: no finding, but the end of all checks."""


class Verdict(NamedTuple):
    """What one check says on one model: a failure, or why it was skipped, or neither."""

    failure: str = ""
    skipped: str = ""


def judge(check: Check, interpreter: Interpreter, case: Case) -> Verdict:
    """What the check says; an exception of the interpreter is a failure."""
    with restored():
        try:
            return Verdict(check(interpreter, copy.deepcopy(case.model), case.images.clone(), case.targets.clone()))
        except Skipped as reason:
            return Verdict(skipped=f"not checked: {reason}")
        except (Exception, SystemExit) as error:  # whatever a foreign interpreter raises is a finding, not the end
            call = f"called as (model, images {tuple(case.images.shape)}, targets {tuple(case.targets.shape)})"
            return Verdict(f"{call} it {raised(error)}")


def conclude(check: str, verdicts: dict[str, Verdict], severity: Severity) -> Finding:
    """One finding from the verdict on each model: the first failure, and where else there is one."""
    failed = [name for name, verdict in verdicts.items() if verdict.failure]
    if not failed:
        return Finding(check, True, max(verdict.skipped for verdict in verdicts.values()), severity)
    others = f" (also on {', '.join(failed[1:])})" if len(failed) > 1 else ""
    return Finding(check, False, f"on {failed[0]}{others}: {verdicts[failed[0]].failure}", severity)


def raised(error: BaseException) -> str:
    """The exception as one line, with the last place outside installed packages that it passed."""
    if isinstance(error, Told):
        return str(error)
    line = " ".join(traceback.format_exception_only(error)[-1].split())
    line = line if len(line) <= 300 else f"{line[:300]} ..."
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    inside = [f for f in frames if Path(f.filename).parent != Path(__file__).parent]
    where = f" ({Path(inside[-1].filename).name}, line {inside[-1].lineno})" if inside else ""
    return f"raised {line}{where}"


@contextmanager
def restored() -> Iterator[None]:
    """Gradients on, cuDNN exact; grad mode, the global random generators and default dtype are given back."""
    python, array, dtype = random.getstate(), np.random.get_state(), torch.get_default_dtype()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with torch.random.fork_rng(devices), torch.enable_grad(), exact:
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
            torch.set_default_dtype(dtype)


def make_cases(device: str) -> list[Case]:
    """Every compact model, untrained, with BatchNorm statistics of its own, and images of the drawn dataset. It looks
    trained: its logits are as large, and it has the form in which a child gets any model (`equalise`)."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used here; allowed: cpu, and cuda where there is one") from error
    shapes = datasets.create("shapes", "dev", size=64, input_size=SIDE)
    images = torch.stack([shapes[i][0] for i in range(len(shapes))])
    cases = []
    for name in models.COMPACT:
        with restored(), torch.no_grad():
            reseed(1)
            model = models.create(name, num_classes=CLASSES, input_size=SIDE)
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = None  # the statistics of all batches seen, here of one
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.uniform_(module.bias, -0.3, 0.3)
            model.train()(images)
            equalise(model.eval())
            head, _ = find_head(model, images[:IMAGES])
            factor = SPREAD / model(images).std()
            for parameter in head.parameters():
                parameter.mul_(factor)
            chosen = images[:IMAGES].to(device)
            best = model.to(device)(chosen).topk(2, dim=1).indices  # others have negative logits, LRP blank maps
            rank = torch.arange(IMAGES, device=device)[:, None] % 2  # untrained, it likes the same class everywhere
            cases.append(Case(name, model, chosen, best.gather(1, rank)[:, 0]))
    return cases


def reseed(seed: int) -> None:
    """Seed every global random generator; those of CUDA as well."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def returned(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor, seed: int = 0) -> Tensor:
    """What comes back for copies of everything, with every random generator seeded alike."""
    reseed(seed)
    return interpreter(copy.deepcopy(model), images.clone(), targets.clone())


def heatmaps(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor, seed: int = 0) -> Tensor:
    """Heatmaps to compare, (N, h, w) without a graph; 0 in place of what is not finite, which has its own check."""
    return returned(interpreter, model, images, targets, seed).detach().nan_to_num(0, 0, 0)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖ relative to the larger norm, 0 for two zero maps. (N, h, w) twice -> (N,)."""
    size = torch.maximum(a.flatten(1).norm(dim=1), b.flatten(1).norm(dim=1))
    return (a - b).flatten(1).norm(dim=1) / torch.where(size > 0, size, 1)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Whether two maps differ visibly, whatever their scale. (N,) bool."""
    return (min_max(a) - min_max(b)).abs().amax((1, 2)) > APART


def blame(bad: Tensor, what: str, mend: str, share: float = 0) -> str:
    """What is wrong, on which images (N,) bool, and how to mend it; "" where no more than a `share` of them is bad."""
    indices = bad.nonzero().flatten().tolist()
    if len(indices) <= share * len(bad):
        return ""
    return f"{what} (image{'s' * (len(indices) > 1)} {', '.join(map(str, indices))} of {len(bad)}): {mend}"

"""Checks of an interpreter that somebody submits: everything that is wrong with it, before anything is scored.

An interpreter is any callable (model, images (N, 3, H, W), targets (N,)) -> heatmaps (N, h, w). `run` calls it on small
untrained networks of every architecture of the default suite, with drawn images, and yields a `Finding` for each check
as it comes. A check is a function of (interpreter, model, images, targets) that returns "" or says what is wrong, on
which image, and how to mend it. Each call gets copies, and random generators that are restored afterwards, so that the
damage a bad interpreter does shows in the check that looks for it and nowhere else.

That a map must depend on the weights follows Adebayo et al. 2018 (Sanity checks for saliency maps).
"""

import copy
import random
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from attacks.errors import UserError
from attacks.heatmaps import min_max
from benchmark import datasets, models
from benchmark.submissions.checks import twins

Interpreter = Callable[[nn.Module, Tensor, Tensor], Tensor]
Check = Callable[[Interpreter, nn.Module, Tensor, Tensor], str]
Severity = Literal["error", "warning"]

SIDE, IMAGES, CLASSES = 32, 4, 8
MOST = 0.5  # the share of images that may be odd by chance: a blank map, a ReLU at its kink
ROUNDING = 1e-6  # beyond [0, 1], as the metrics allow
SAME = 1e-3  # ‖a − b‖/‖a‖ of maps that may differ by rounding alone; float32 gives 1e-7 to 3e-5, a ReLU that flips more
ALIKE = 1e-2  # ‖a − b‖/‖a‖ of the maps of two models that compute the same, or of two devices
APART = 1e-2  # largest difference of two min-max normalised maps that should have nothing in common
# Steps of central differences, relative to the size of the weights: short ones first, since LRP bends sharply where a
# denominator is small (1e-6 is off by 1e-3 there), then long ones, for maps that hardly change.
STEPS = (1e-7, 1e-8, 1e-9, 1e-6, 1e-5)
GRADIENT = 1e-4  # relative error of the gradient by the weights; honest ones stay below 1e-7


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


def run(interpreter: Interpreter, *, differentiable: bool, stochastic: bool, device: str = "cpu") -> Iterator[Finding]:
    """Findings of every check that applies, errors and warnings, each as soon as it is known.

    `differentiable`: heatmaps are meant to keep an honest graph to the weights. `stochastic`: they may depend on the
    global random generators. On models for which no heatmap of the right shape comes back, only the checks that look
    at no heatmap are made. Whatever the interpreter does to random generators and grad mode is undone after each
    check. Raises UserError where `device` cannot be used.
    """
    cases = _cases(device)
    first = {case.name: _verdict(shape_and_dtype, interpreter, case) for case in cases}
    yield _finding("heatmaps of shape (N, h, w)", first, "error")
    usable = [case for case in cases if not first[case.name].failure]
    later = {**MAPS, "same twice": partial(same_twice, stochastic)}
    later |= {} if stochastic else {"same on CPU and GPU": same_on}  # each device has random generators of its own
    later |= {"gradient by the weights": gradient_by_the_weights} if differentiable else {}
    later |= {f"same for {kind}": partial(same_for_twin, kind) for kind in twins.TWINS}
    for name, check in [*(later.items() if usable else ()), *TIDY.items()]:
        asked = cases if name in TIDY else usable
        verdicts = {case.name: _verdict(check, interpreter, case) for case in asked}
        yield _finding(name, verdicts, "warning" if name in WARNINGS else "error")


class Verdict(NamedTuple):
    """What one check says on one model: a failure, or why it was skipped, or neither."""

    failure: str = ""
    skipped: str = ""


def _finding(check: str, verdicts: dict[str, Verdict], severity: Severity) -> Finding:
    """One finding from the verdict on each model: the first failure, and where else there is one."""
    failed = [name for name, verdict in verdicts.items() if verdict.failure]
    if not failed:
        return Finding(check, True, max(verdict.skipped for verdict in verdicts.values()), severity)
    others = f" (also on {', '.join(failed[1:])})" if len(failed) > 1 else ""
    return Finding(check, False, f"on {failed[0]}{others}: {verdicts[failed[0]].failure}", severity)


def _verdict(check: Check, interpreter: Interpreter, case: Case) -> Verdict:
    """What the check says; an exception of the interpreter is a failure."""
    with _restored():
        try:
            return Verdict(check(interpreter, copy.deepcopy(case.model), case.images.clone(), case.targets.clone()))
        except Skipped as reason:
            return Verdict(skipped=f"not checked: {reason}")
        except (Exception, SystemExit) as error:  # whatever a foreign interpreter raises is a finding, not the end
            call = f"called as (model, images {tuple(case.images.shape)}, targets {tuple(case.targets.shape)})"
            return Verdict(f"{call} it {_raised(error)}")


def _raised(error: BaseException) -> str:
    """The exception as one line, with the last place outside installed packages that it passed."""
    line = " ".join(traceback.format_exception_only(error)[-1].split())
    line = line if len(line) <= 300 else f"{line[:300]} ..."
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    inside = [f for f in frames if f.filename != __file__]
    where = f" ({Path(inside[-1].filename).name}, line {inside[-1].lineno})" if inside else ""
    return f"raised {line}{where}"


# The setting


def _cases(device: str) -> list[Case]:
    """Every compact model, untrained, with BatchNorm statistics of its own, and images of the drawn dataset."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used here; allowed: cpu, and cuda where there is one") from error
    shapes = datasets.create("shapes", "dev", size=64, input_size=SIDE)
    images = torch.stack([shapes[i][0] for i in range(len(shapes))])
    cases = []
    for name in models.COMPACT:
        with _restored(), torch.no_grad():
            _seed(1)
            model = models.create(name, num_classes=CLASSES, input_size=SIDE)
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = None  # the statistics of all batches seen, here of one
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.uniform_(module.bias, -0.3, 0.3)
            model.train()(images)
            model.eval()
            chosen = images[:IMAGES].to(device)
            best = model.to(device)(chosen).topk(2, dim=1).indices  # others have negative logits, LRP blank maps
            rank = torch.arange(IMAGES, device=device)[:, None] % 2  # untrained, it likes the same class everywhere
            cases.append(Case(name, model, chosen, best.gather(1, rank)[:, 0]))
    return cases


@contextmanager
def _restored() -> Iterator[None]:
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


def _seed(seed: int) -> None:
    """Seed every global random generator; those of CUDA as well."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _raw(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor, seed: int = 0) -> Tensor:
    """What comes back for copies of everything, with every random generator seeded alike."""
    _seed(seed)
    return interpreter(copy.deepcopy(model), images.clone(), targets.clone())


def _maps(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor, seed: int = 0) -> Tensor:
    """Heatmaps to compare, (N, h, w) without a graph; 0 in place of what is not finite, which has its own check."""
    return _raw(interpreter, model, images, targets, seed).detach().nan_to_num(0, 0, 0)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖ relative to the larger norm, 0 for two zero maps. (N, h, w) twice -> (N,)."""
    size = torch.maximum(a.flatten(1).norm(dim=1), b.flatten(1).norm(dim=1))
    return (a - b).flatten(1).norm(dim=1) / torch.where(size > 0, size, 1)


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Whether two maps differ visibly, whatever their scale. (N,) bool."""
    return (min_max(a) - min_max(b)).abs().amax((1, 2)) > APART


def _blame(bad: Tensor, what: str, mend: str, share: float = 0) -> str:
    """What is wrong, on which images (N,) bool, and how to mend it; "" where no more than a `share` of them is bad."""
    indices = bad.nonzero().flatten().tolist()
    if len(indices) <= share * len(bad):
        return ""
    return f"{what} (image{'s' * (len(indices) > 1)} {', '.join(map(str, indices))} of {len(bad)}): {mend}"


# Checks of the heatmaps


def shape_and_dtype(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """A floating tensor (N, h, w) on the images' device."""
    maps: Any = _raw(interpreter, model, images, targets)
    given = f"for images {tuple(images.shape)} it returned"
    if not isinstance(maps, Tensor):
        return f"{given} a {type(maps).__name__}: return one torch tensor (N, h, w) on images.device"
    if maps.dim() != 3 or len(maps) != len(images) or not maps.numel():
        mend = "sum or average the channels, maps.sum(1)" if maps.dim() == 4 else "one map an image, nothing squeezed"
        return f"{given} shape {tuple(maps.shape)}: return (N, h, w), here ({len(images)}, h, w): {mend}"
    if not maps.is_floating_point():
        return f"{given} {maps.dtype}: return floating point, maps.to(images.dtype)"
    if maps.device != images.device:
        return f"{given} a tensor on {maps.device}: make every tensor with device=images.device ({images.device})"
    return ""


def finite(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """No NaN and no infinity, not even where the explanation is blank."""
    blank = copy.deepcopy(model)
    *_, last = (module for module in blank.modules() if isinstance(module, nn.Linear))
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    mend = "guard every division against a zero denominator; attacks.heatmaps.min_max does"
    for given, where in ((model, ""), (blank, " on a model whose logits are all zero, so that the map is blank")):
        bad = ~_raw(interpreter, given, images, targets).flatten(1).isfinite().all(1)
        if bad.any():
            return _blame(bad, f"NaN or infinite values{where}", mend)
    return ""


def unit_range(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """Heatmaps lie in [0, 1], as foolings and metrics expect."""
    maps = _maps(interpreter, model, images, targets)
    bad = ((maps < -ROUNDING) | (maps > 1 + ROUNDING)).flatten(1).any(1)
    mend = "heatmaps lie in [0, 1]; take maps.relu() or maps.abs(), then attacks.heatmaps.min_max(maps)"
    return _blame(bad, f"values from {maps.min():.4g} to {maps.max():.4g}", mend)


def any_batch_size(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """One image and three give one and three maps of the same size."""
    size = _maps(interpreter, model, images, targets).shape[1:]
    for n in (1, 3):
        shape = tuple(_raw(interpreter, model, images[:n], targets[:n]).shape)
        if shape != (n, *size):
            mend = "name dimensions in squeeze(), mean() and sum(), and take sizes from images.shape"
            return f"{n} image{'s' * (n > 1)} gave shape {shape}, not {(n, *size)}: {mend}"
    return ""


def same_alone_and_in_a_batch(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """An image's map does not depend on the images beside it, to 1e-3 of its norm."""
    together = _maps(interpreter, model, images, targets)
    pairs = zip(images.split(1), targets.split(1), strict=True)
    alone = torch.cat([_maps(interpreter, model, image, target) for image, target in pairs]).view_as(together)
    distance = _distance(together, alone)
    what = f"alone, a map differs by up to {distance.max():.2g} of its norm from the one in a batch of {len(images)}"
    mend = "normalise each map by itself, run the model in eval mode, add up logits before the gradient instead of "
    return _blame(distance > SAME, what, mend + "averaging them, and give every image the same noise")


def same_twice(stochastic: bool, interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """The same result, whatever the random generators hold; of a stochastic one where they are seeded alike."""
    first, second = (_maps(interpreter, model, images, targets, seed) for seed in (0, 0 if stochastic else 1))
    what = "two calls, seeded alike, gave different maps" if stochastic else "two calls gave different maps"
    mend = "draw from torch's global generator, or from one with a fixed seed that is made anew in each call"
    mend = mend if stochastic else "draw from a generator with a fixed seed of its own, or declare it stochastic"
    return _blame(_distance(first, second) > SAME, what, mend)


def same_without_gradients(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """Under torch.no_grad() and with frozen weights, as maps are scored, the result is the same."""
    expected = _maps(interpreter, model, images, targets)
    where = "under torch.no_grad(), with weights that need no gradient,"
    mend = "open torch.enable_grad() yourself and start from images.detach().requires_grad_()"
    try:
        with torch.no_grad():
            got = _maps(interpreter, copy.deepcopy(model).requires_grad_(False), images, targets)
    except Exception as error:
        return f"{where} it {_raised(error)}: {mend}"
    return _blame(_distance(expected, got) > SAME, f"{where} maps are others", mend)


def differs_by_class(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """The map of the class that the model likes best beside the target is another one, for most images."""
    with torch.no_grad():
        other = model(images).scatter(1, targets[:, None], -torch.inf).argmax(1)
    blind = ~_apart(_maps(interpreter, model, images, targets), _maps(interpreter, model, images, other))
    mend = "start from the logit of each image's own target, logits.gather(1, targets[:, None])"
    return _blame(blind, "two classes have the same map", mend, MOST)


def depends_on_the_image(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """Other images of the same classes have other maps, most of them."""
    here = _maps(interpreter, model, images, targets)
    blind = ~_apart(here, _maps(interpreter, model, images.roll(1, 0), targets))
    return _blame(blind, "another image in its place has the same map", "is it blank, or from an earlier call?", MOST)


def depends_on_the_weights(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """A model with every weight tensor shuffled has other maps, for most images."""
    before = _maps(interpreter, model, images, targets)
    _seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))
    blind = ~_apart(before, _maps(interpreter, model, images, targets))
    mend = "compute it from the model given in the call, not from the image alone nor from a model seen before"
    return _blame(blind, "with shuffled weights the map stays the same", mend, MOST)


def same_on(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor, other: str = "cuda") -> str:
    """The other device gives the map that the CPU gives, for most images. Skipped where there is none."""
    if other == "cuda" and not torch.cuda.is_available():
        raise Skipped("there is no GPU here")

    def on(device: str) -> Tensor:
        moved = copy.deepcopy(model).to(device), images.to(device), targets.to(device)
        return _maps(interpreter, *moved).cpu()

    mend = "make every tensor and every generator on images.device"
    return _blame(_distance(on("cpu"), on(other)) > ALIKE, f"maps differ between cpu and {other}", mend, MOST)


# The gradient by the weights

HONEST = (
    "leave no .detach(), .data, .item(), torch.no_grad() or overridden backward between the weights and the map, and "
    "take inner gradients with create_graph=True; or declare it not differentiable"
)


def gradient_by_the_weights(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """d/ds Σ a · heatmap(w + s v) by autograd and by central differences, for random a and v, in float64.

    A difference counts where half the step gives the same one: otherwise a ReLU or a maximum changed over on the way,
    and another step is tried. Skipped where no direction has a step that counts.
    """
    model, images = model.double(), images.double()
    parameters = list(model.parameters())
    origin = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(3)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.double).to(like.device)

    weights = draw(_maps(interpreter, model, images, targets))

    def value(direction: list[Tensor], step: float) -> float:
        with torch.no_grad():
            for parameter, at, v in zip(parameters, origin, direction, strict=True):
                parameter.copy_(at + step * v)
        return (weights * _maps(interpreter, model, images, targets)).sum().item()

    def difference(direction: list[Tensor], step: float) -> float:
        return (value(direction, step) - value(direction, -step)) / (2 * step)

    _seed(0)
    given = copy.deepcopy(model)
    maps = interpreter(given, images.clone(), targets.clone())
    if not maps.requires_grad:
        return f"the heatmaps have no graph to the weights: {HONEST}"
    if maps.dtype != images.dtype:  # rounded, differences would tell nothing
        return f"for a model and images in {images.dtype} it returned {maps.dtype}: make tensors with images.dtype"
    asked = list(given.parameters())
    gradients = torch.autograd.grad((weights * maps).sum(), asked, allow_unused=True, materialize_grads=True)
    sizes = [at.square().mean().sqrt() for at in origin]
    typical = sum(float((s * g).square().sum()) for s, g in zip(sizes, gradients, strict=True)) ** 0.5
    if typical == 0:
        return f"the gradient of the heatmaps by every weight is zero: {HONEST}"
    counted = 0
    for _ in range(3):
        direction = [size * draw(at) for size, at in zip(sizes, origin, strict=True)]
        got = sum(float((g * v).sum()) for g, v in zip(gradients, direction, strict=True))
        expected = _reliable(partial(difference, direction), typical)
        counted += expected is not None
        if expected is not None and not abs(got - expected) <= GRADIENT * max(abs(expected), typical):
            both = f"{got:.6g}, where central differences give {expected:.6g}"
            return f"autograd's derivative of the heatmaps along a random change of the weights is {both}: {HONEST}"
    if not counted:
        raise Skipped("the heatmaps jump under the smallest changes of the weights, or are rounded on the way")
    return ""


def _reliable(difference: Callable[[float], float], typical: float) -> float | None:
    """The difference quotient at the first step which half the step confirms."""
    for step in STEPS:
        whole, half = difference(step), difference(step / 2)
        if abs(whole - half) <= 0.1 * GRADIENT * max(abs(half), typical):
            return half
    return None


# Twins of the model

_WHY = {
    "permuted channels": "the order of channels means nothing, so a map must not hang on it: treat all channels alike",
    "rescaled channels": "multiplying channels before a ReLU and dividing them after it changes nothing that the model "
    "computes, so part of this map tells of the weights' scale, which a model's owner is free to choose; stabilisers "
    "and gradients by a layer do this: take activation times gradient, or say so",
    "folded BatchNorm": "merging BatchNorm into the convolution before it changes nothing that the model computes, so "
    "this map tells of how the model is written down; rules that pass BatchNorm through do this: fold it, or say so",
}


def same_for_twin(kind: str, interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """A model that computes the same with other weights has the same maps, for most images. See `twins`."""
    twin = twins.TWINS[kind](model)
    if twin is None:
        raise Skipped("the model has no such twin")
    maps = _maps(interpreter, model, images, targets)
    other = _maps(interpreter, twin, images, targets)
    if other.shape != maps.shape:
        return f"a model with {kind} has maps of shape {tuple(other.shape)}, not {tuple(maps.shape)}: {_WHY[kind]}"
    return _blame(_distance(maps, other) > ALIKE, f"a model with {kind} has other maps", _WHY[kind], MOST)


# What is left behind


def _call(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> None:
    """Only what it leaves behind counts; that it raises is found elsewhere."""
    with suppress(Exception, SystemExit):
        interpreter(model, images, targets)


def model_as_it_was(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """Weights, buffers, modes, hooks, flags, gradients and attributes are as before, in eval and in train mode."""
    next(model.parameters()).requires_grad_(False)  # one apart, which requires_grad_ on the whole model would lose
    for mode in ("eval", "train"):
        given = copy.deepcopy(model).train(mode == "train")
        if mode == "train":  # one apart, which a plain model.train() afterwards would lose
            next(module for module in given.modules() if isinstance(module, nn.BatchNorm2d)).eval()
        before = _parts(given)
        _call(interpreter, given, images, targets)
        for (what, mend, then), (_, _, now) in zip(before, _parts(given), strict=True):
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
    for name, given, before in zip(("images", "targets"), (images, targets), kept, strict=True):
        if given.shape != before.shape or not torch.equal(given, before):
            return f"it changed the {name} it was given: work on {name}.clone(), not in place"
    if images.requires_grad:
        return "it left images.requires_grad = True: work on images.detach().requires_grad_(), a tensor of your own"
    return ""


MAPS: dict[str, Check] = {
    "finite": finite,
    "in [0, 1]": unit_range,
    "any batch size": any_batch_size,
    "same alone and in a batch": same_alone_and_in_a_batch,
    "same under no_grad": same_without_gradients,
    "differs by class": differs_by_class,
    "depends on the image": depends_on_the_image,
    "depends on the weights": depends_on_the_weights,
}
TIDY: dict[str, Check] = {
    "leaves the model as it was": model_as_it_was,
    "leaves the random state as it was": generators_as_they_were,
    "leaves images and targets as they were": inputs_as_they_were,
}
WARNINGS = {"same for rescaled channels", "same for folded BatchNorm"}  # of methods that are known and in use

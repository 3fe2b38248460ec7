"""What every manipulation shares: the recipe, the batches and their losses, a random state of its own, the history."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.batches import Batch, Batches
from attacks.errors import UserError, unknown
from attacks.foolings import Fooling
from attacks.given import copied, device_of, logits_in
from attacks.random_state import RandomState
from attacks.scopes import SCOPES
from attacks.trunk import above

Interpreter = Callable[[nn.Module, Tensor, Tensor], Tensor]
OfImages = Callable[[Tensor, Tensor], Tensor]  # of images and targets, one row an image


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune: Adam's learning rate, λ (`weight`; a table says "lambda"), the number of steps, and the images
    a step, for whoever makes the loaders: `manipulate` takes them as they are. `divergence`: None keeps the labels by
    their cross-entropy; a number, in nats, is how far KL(w0 ‖ w) may go, and λ follows it (`attacks.distilled`).
    `scope`: which parameters move (`attacks.scopes`)."""

    learning_rate: float
    weight: float
    steps: int
    batch_size: int = 32
    divergence: float | None = None
    scope: str = "all"

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and self.weight >= 0 and self.steps >= 0 and self.batch_size > 0):
            needed = "learning_rate > 0, weight >= 0, steps >= 0, batch_size > 0"
            raise UserError(f"a recipe needs {needed} (got {self})")
        if self.divergence is not None and not (self.divergence > 0 and self.weight > 0):
            raise UserError(f"a recipe with a divergence needs divergence > 0, weight > 0 (got {self})")
        if self.scope not in SCOPES:
            raise unknown("scope", self.scope, SCOPES)

    def row(self) -> dict[str, Any]:
        """As tables have it."""
        part = {"learning_rate": self.learning_rate, "lambda": self.weight, "steps": self.steps}
        return {**part, "batch_size": self.batch_size, "divergence": self.divergence, "scope": self.scope}


@dataclass(frozen=True)
class Manipulated:
    """A fooled model with the history of its losses per step. `status`: "done", or "diverged" with the reason.
    `converged`: whether it ended because the loss no longer fell; None where nobody looked."""

    model: nn.Module
    history: dict[str, list[float]] = field(repr=False)
    status: str = "done"
    reason: str = ""
    converged: bool | None = None


class Losses(NamedTuple):
    """Those of one step, scalars, the losses with their graph. `kept` holds the predictions: the labels'
    cross-entropy, or the divergence from the original model, KL(w0 ‖ w). `scaled`: the fooling's, by its extent."""

    kept: Tensor
    fooling: Tensor
    accuracy: Tensor
    scaled: Tensor


class State(NamedTuple):
    """All that the rest of a run depends on: tensors, values for JSON, and rows, to which it only ever adds."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]
    rows: dict[str, Tensor]


class Resumable(Protocol):
    """What counts its steps, and can say its state between two of them."""

    @property
    def step(self) -> int: ...

    def state(self) -> State: ...


class Keeper(Protocol):
    """Keeps the state of one run where it outlives the process."""

    def load(self) -> State | None:
        """What was kept last; None where there is nothing."""

    def keep(self, run: Resumable) -> None:
        """Told of the run at its start and after each step; by its own choice, keep its state."""


@dataclass(frozen=True)
class Task:
    """What is to be fooled, against what and on which images: the arguments of `attacks.manipulate` but for how.

    `keeper`: where a fine-tuning goes on if it ended halfway. `cut`: the module whose input the loaders yield in the
    place of images (`attacks.trunk`); what lies below it stays as it is. `start`: the model that a distilled fooling
    begins with; None: it shifts the head itself."""

    model: nn.Module
    interpreter: Interpreter
    fooling: Fooling
    loader: Iterable[Batch]
    seed: int = 0
    fooling_loader: Iterable[Batch] | None = None
    reference: Interpreter | None = None
    keeper: Keeper | None = None
    cut: str = ""
    start: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.fooling.pairs and self.fooling_loader is None:
            needed = "fooling_loader, with two-object images and targets (N, 2)"
            raise UserError(f"{self.fooling.name} fooling needs {needed}")

    @property
    def fooling_batches(self) -> Iterable[Batch]:
        """Those that are to be fooled: two-object ones, or the same as are kept."""
        return self.loader if self.fooling_loader is None else self.fooling_loader


class Course:
    """What every manipulation shares: its batches and their losses, a random state of its own, and the history.

    `distilled`: what is kept is "kl", not "ce". What the original model gives for an image is then computed once, by
    `reference`, the scored form of the interpreter, and kept in up to `Known.LIMIT` bytes each of logits and maps.
    """

    def __init__(self, task: Task, *, distilled: bool = False) -> None:
        device = device_of(task.model)
        self.interpreter, self.fooling, self.distilled = task.interpreter, task.fooling, distilled
        original = above(copied(task.model).eval().requires_grad_(False), task.cut)
        self.batches = Batches(task.loader, device)
        self.pairs = Batches(task.fooling_batches, device, pairs=task.fooling.pairs)
        self.history: dict[str, list[float]] = {"kl" if distilled else "ce": [], "fooling": [], "accuracy": []}
        self.random = RandomState(task.seed, device)
        self.logits: OfImages = lambda images, _: logits_in(original(images), len(images))
        self.maps = heatmaps_of((distilled and task.reference) or task.interpreter, original)
        if distilled:
            self.logits, self.maps = Known(self.logits), Known(self.maps)

    def losses(self, fooled: nn.Module) -> Losses:
        """Of the next batch. Raises `UserError` where the heatmaps do not depend on the parameters."""
        images, targets = next(self.batches)
        shown, labels = self.fooling.shown(images, targets)
        if self.fooling.pairs:
            logits, (two, both) = logits_in(fooled(images), len(images)), next(self.pairs)
            heatmaps = pair_heatmaps(self.interpreter, fooled, two, both)
            loss = self._fooling(heatmaps, two, both)
        else:
            logits, heatmaps = _with_logits(self.interpreter, fooled, shown, labels)
            loss = self._fooling(heatmaps, images, targets)
        if not loss.requires_grad:
            raise UserError(f"the heatmaps of {self.interpreter} do not depend on the model's parameters")
        accuracy, extent = (logits.argmax(1) == labels).float().mean(), self.fooling.extent(heatmaps)
        return Losses(self._kept(logits, labels, images, targets), loss, accuracy, loss / extent)

    def _fooling(self, heatmaps: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        if not self.fooling.needs_originals:
            return self.fooling.loss(heatmaps, heatmaps)
        with torch.no_grad():
            originals = self.maps(images, targets)
        return self.fooling.loss(heatmaps, originals)

    def _kept(self, logits: Tensor, labels: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        if not self.distilled:
            return F.cross_entropy(logits, labels)
        with torch.no_grad():
            wanted = self.logits(images, targets).log_softmax(1)
        return self.fooling.divergence(logits.log_softmax(1), wanted)

    def record(self, losses: Losses) -> str:
        """Append a step to the history; why it diverged, or nothing. `scaled` is then that of the step."""
        *measured, self.scaled = torch.stack(losses).tolist()  # a GPU waits once
        for values, value in zip(self.history.values(), measured, strict=False):
            values.append(value)
        return unfinite(self.history)

    def _parts(self) -> tuple[dict[str, Batches], dict[str, "Known"]]:
        """What else has a state, by name."""
        known = {name: part for name in ("logits", "maps") if isinstance(part := getattr(self, name), Known)}
        return {"batches": self.batches, "pairs": self.pairs}, known

    def state(self) -> State:
        batches, known = self._parts()
        states = {"random": self.random.states} | {name: part.begun() for name, part in batches.items()}
        tensors = {f"{name}.{i}": state for name, found in states.items() for i, state in enumerate(found)}
        values = {"history": self.history, "taken": {name: part.taken for name, part in batches.items()}}
        rows = {f"{name}.{key.hex()}": row for name, part in known.items() for key, row in part.rows.items()}
        return State(tensors, values, rows)

    def restore(self, state: State) -> None:
        """Go on where another one was; loads the batches of the pass that it was in once more, and leaves them."""
        batches, known = self._parts()
        with self.random:
            for name, part in batches.items():
                part.go_to(numbered(state.tensors, name), state.values["taken"][name])
        self.random.states = numbered(state.tensors, "random")
        self.history.update(state.values["history"])
        for name, of in known.items():
            found = {key: row for key, row in state.rows.items() if key.startswith(f"{name}.")}
            of.rows = {bytes.fromhex(key.partition(".")[2]): row.to(self.batches.device) for key, row in found.items()}
            of.bytes = sum(row.nbytes for row in of.rows.values())


def numbered(tensors: dict[str, Tensor], name: str) -> list[Tensor]:
    """Those called "name.0", "name.1" and so on, in order."""
    count = sum(key.rpartition(".")[0] == name for key in tensors)
    return [tensors[f"{name}.{i}"] for i in range(count)]


class Known:
    """What the original model gives for images, (N, ...) one row an image: computed once, and known again by the
    image's bytes and its targets. Rows beyond `LIMIT` bytes, as of images that are augmented, are not kept."""

    LIMIT: ClassVar[int] = 2**30

    def __init__(self, function: OfImages) -> None:
        self.function, self.rows, self.bytes = function, dict[bytes, Tensor](), 0

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        parts = zip(images.detach().cpu().contiguous(), targets.cpu(), strict=True)
        keys = [blake2b(i.view(torch.uint8).numpy(), key=t.numpy().tobytes()).digest() for i, t in parts]
        new = [i for i, key in enumerate(keys) if key not in self.rows]
        found = dict(zip((keys[i] for i in new), self.function(images[new], targets[new]), strict=True)) if new else {}
        if self.bytes < self.LIMIT:
            self.bytes += sum(row.nbytes for row in found.values())
            self.rows |= {key: row.clone() for key, row in found.items()}
        return torch.stack([found[key] if key in found else self.rows[key] for key in keys])


def infinite(model: nn.Module) -> str:
    """Why a model is of no use after its last step, or nothing."""
    finite = all(parameter.isfinite().all() for parameter in model.parameters())
    return "" if finite else "the last step made a weight infinite or NaN"


def unfinite(history: dict[str, list[float]]) -> str:
    """Whether a loss of the last step is infinite or NaN; which step it was."""
    step = len(history["fooling"])
    finite = all(math.isfinite(values[-1]) for values in history.values() if values)
    return "" if finite else f"a loss is not finite at step {step}"


def collapsed(history: dict[str, list[float]], window: int = 20) -> str:
    """Whether the batch accuracy of the last steps averages under half of the first one; how far."""
    step = len(history["fooling"])
    recent = history["accuracy"][-window:]
    if step > window and sum(recent) / window < history["accuracy"][0] / 2:
        return f"accuracy collapsed: batch accuracy {sum(recent) / window:.2f} over {window} steps at step {step}"
    return ""


def _with_logits(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and heatmaps: from one forward pass where the interpreter offers it."""
    shared = getattr(interpreter, "with_logits", None)
    if shared:
        return shared(model, images, targets)
    return logits_in(model(images.clone()), len(images)), interpreter(model, images, targets)  # it may write into them


def pair_heatmaps(interpreter: Interpreter, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The maps of both classes of two-object images. (N, C, H, W), (N, 2) -> (N, 2, h, w)."""
    return torch.stack([interpreter(model, images, targets[:, i]) for i in (0, 1)], 1)


def heatmaps_of(interpreter: Interpreter, model: nn.Module) -> OfImages:
    """The maps (N, h, w) of images, or (N, 2, h, w) where the targets are pairs."""

    def maps(images: Tensor, targets: Tensor) -> Tensor:
        explain = interpreter if targets.dim() == 1 else partial(pair_heatmaps, interpreter)
        return explain(model, images, targets)

    return maps

"""The child process of a submission: foreign code is imported and run here, and nowhere else.

`benchmark.submissions.zygote` forks it for every model that the parent asks about, in a session and process group of
its own, in an empty folder, with few environment variables, and the parent talks to it over two pipes
(`benchmark.submissions.wire`). It computes; what its answers are worth is judged in the parent.

What this protects against: accidents, and what a submission could keep or find. An exception, a crash, an exit, a hang,
memory without end, a flood of output or a huge file, processes left behind, and a model that is changed in passing each
end one call with one line. Nothing it keeps in memory or in its folder is there for the next model. Where Linux has
Landlock (`benchmark.submissions.confine`), it reads no file but its own, installed packages and the dataset, writes
nowhere but into its folder, opens no TCP connection, and signals no process of others.

What it does not protect against: a kernel without Landlock, or errors in one; answers that are not what they say (the
manipulation runs in here beside the submission, which may weaken it: the parent measures what came of it); and what
fills the machine until the time limit (RLIMIT_NPROC counts all processes of a user, so none is set). The memory limit
(RLIMIT_DATA) holds for each process alone and counts what it maps to write, its torch's 0.7 GiB included; it counts no
shared mappings and no GPU memory, and Linux alone enforces it. (A limit of the address space would count what CUDA only
reserves.) There are no submissions on Windows, which has no such limits.

What a maintainer should do: read the file (it is one file, known by its digest); run a submission that one
would not run by hand in a container without network, secrets or anything that must not be lost; and compute the results
oneself rather than take those that came with it.
"""

import json
import math
import os
import random
import re
import resource
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from attacks.course import Recipe, Task
from attacks.errors import UserError
from attacks.foolings import Fooling
from attacks.heatmaps import min_max
from attacks.modes import eval_mode
from attacks.strategies import STRATEGIES, Gradient
from benchmark import datasets
from benchmark.datasets import Dataset
from benchmark.submissions.adapters import adapted, is_known
from benchmark.submissions.checks.gradient import pulled_back
from benchmark.submissions.checks.setting import raised, reseed, restored
from benchmark.submissions.checks.tidy import traces
from benchmark.submissions.imported import imported
from benchmark.submissions.wire import (
    HOOKS,
    LENGTH,
    LENGTHS,
    NO_MEMORY,
    Answer,
    check_form,
    fingerprint,
    one_line,
    unpack,
)

FILE = 64 * 2**20  # bytes of a file that the child writes, at most; so too of its stderr in one call


@dataclass(frozen=True, repr=False)
class Foreign:
    """A submission as it is called: the model in eval mode, gradients on; without a graph where the caller wants none.

    `strict`: whether a result that is no heatmap is an error here.
    """

    function: Callable[[nn.Module, Tensor, Tensor], Tensor]
    name: str
    strict: bool = True

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        with eval_mode(model), torch.enable_grad():
            heatmaps = self.function(model, images, targets)
        if self.strict:
            check_form(heatmaps, images)
        return heatmaps.detach() if isinstance(heatmaps, Tensor) and not torch.is_grad_enabled() else heatmaps

    def __repr__(self) -> str:
        return self.name


class Normalised(Foreign):
    """The submission with its maps as they are scored."""

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return min_max(super().__call__(model, images, targets))


class Session:
    """A loaded submission and the model it was sent last. Each method is a call of the parent's and yields answers."""

    def __init__(self) -> None:
        self.file, self.seconds = "", 0.0
        self.function: Any = None
        self.about: dict[str, Any] = {}  # what it says of itself
        self.model = nn.Module()
        self.before: dict[str, str] = {}

    def load(
        self, file: str, attribute: str, digest: str, seconds: float, memory_gib: float, threads: int
    ) -> Iterator[Answer]:
        """Import the file, if it still has this digest, under the limits."""
        self.file, self.seconds = file, seconds
        torch.set_num_threads(threads)
        _limit(resource.RLIMIT_DATA, int(memory_gib * 2**30))
        _limit(resource.RLIMIT_FSIZE, FILE)
        _limit(resource.RLIMIT_CORE, 0)
        self.bound()
        definition = imported(file, attribute, digest, "submission")
        if is_known(definition):  # of Captum's, or of pytorch-grad-cam's form
            definition = adapted(definition)
        kind = "class" if isinstance(definition, type) else "function"
        self.function = definition() if isinstance(definition, type) else definition
        if not callable(self.function):
            raise UserError(
                f"{attribute} must be a function, or a class with __call__ (got {type(definition).__name__})"
            )
        name = getattr(self.function, "name", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", attribute).lower())
        flags = {flag: getattr(self.function, flag, False) for flag in ("differentiable", "stochastic")}
        for flag, value in flags.items():
            if not isinstance(value, bool):
                raise UserError(f"{flag} must be True or False (got {one_line(repr(value), 50)})")
        if not isinstance(name, str):
            raise UserError(f"name must be a text (got {one_line(repr(name), 50)})")
        self.about = {"name": name, "kind": kind, **flags}
        yield self.about, {}

    def bound(self) -> None:
        """New bounds for the next call: CPU time, as much as all cores give in the time limit; and an empty stderr."""
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        soft = math.ceil(used + self.seconds * (os.cpu_count() or 1)) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
        with suppress(OSError):  # foreign code may have closed it
            os.ftruncate(2, 0)
            os.lseek(2, 0, os.SEEK_SET)

    def receive(self, model: nn.Module | None) -> None:
        """Keep the model for this call and the next ones. None: the one that is kept already. Its hooks were numbered
        in another process: new ones must not take their places."""
        if model is not None:
            taken = [number for module in model.modules() for kind in HOOKS for number in getattr(module, kind)]
            RemovableHandle.next_id = max([RemovableHandle.next_id, *(number + 1 for number in taken)])
            self.model, self.before = model, fingerprint(model)

    def _seed(self) -> None:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)

    def _unchanged(self) -> None:
        after = fingerprint(self.model)
        changed = sorted(k for k in self.before.keys() | after.keys() if self.before.get(k) != after.get(k))
        if changed:
            raise UserError(f"changed the model: {changed[0]}; a model must be left as it came")

    def heatmaps(self, model: nn.Module | None, images: Tensor, targets: Tensor) -> Iterator[Answer]:
        """Heatmaps of one batch as float32; a changed model is an error. Each call starts from the same random seed."""
        self.receive(model)
        self._seed()
        maps = Foreign(self.function, self.about["name"])(self.model, images, targets)
        self._unchanged()
        yield {}, {"heatmaps": maps.detach().float().cpu().contiguous().clone()}

    def detector(self) -> Iterator[Answer]:
        """Of a detector: whether it wants to see the original model."""
        yield {"original": getattr(self.function, "original", False)}, {}

    def detect(
        self, model: nn.Module | None, images: Tensor, targets: Tensor, original: list[nn.Module]
    ) -> Iterator[Answer]:
        """A detector's score of the model; a changed model is an error. Each call starts from the same random seed."""
        self.receive(model)
        self._seed()
        with eval_mode(self.model), torch.enable_grad():
            score = self.function(self.model, images, targets, *original)
        self._unchanged()
        yield {"score": float(score)}, {}

    def probe(self, model: nn.Module, images: Tensor, targets: Tensor, grad: bool, seed: int) -> Iterator[Answer]:
        """For a check: what comes back for one model, whatever it is, or what was raised."""
        with self._asked(grad, seed) as foreign:
            try:
                maps = foreign(model, images, targets)
            except (Exception, SystemExit) as error:
                yield {"raised": one_line(raised(error), 600)}, {}
                return
        if not isinstance(maps, Tensor):
            yield {"type": one_line(type(maps).__name__, 50)}, {}
        elif maps.is_meta:
            yield {"device": "meta"}, {"maps": torch.zeros(maps.shape, dtype=maps.dtype)}
        else:
            yield {"device": str(maps.device)}, {"maps": maps.detach().cpu().contiguous().clone()}

    def pulled_back(
        self, model: nn.Module, images: Tensor, targets: Tensor, weights: Tensor, seed: int
    ) -> Iterator[Answer]:
        """For the check of the gradient: of Σ weights · maps by every parameter, where the maps have a graph."""
        with self._asked(True, seed) as foreign:
            graph, dtype, gradients = pulled_back(foreign, model, images, targets, weights)
        tensors = {str(i): g.cpu().contiguous().clone() for i, g in enumerate(gradients)}
        yield {"graph": graph, "dtype": str(dtype)}, tensors

    def traces(self, model: nn.Module, images: Tensor, targets: Tensor, seed: int) -> Iterator[Answer]:
        """For the checks of what is left behind: how everything was before the call and after it."""
        with self._asked(True, seed) as foreign:
            text = json.dumps(traces(foreign, model, images, targets))
        yield {}, {"traces": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}

    @contextmanager
    def _asked(self, grad: bool, seed: int) -> Iterator[Foreign]:
        """The submission as a check asks it: seeded, in the check's grad mode, its shapes let through."""
        self.before = {}  # no model is kept
        with restored(), torch.set_grad_enabled(grad):
            reseed(seed)
            yield Foreign(self.function, self.about["name"], strict=False)

    def manipulate(
        self,
        model: nn.Module | None,
        fooling: Fooling,
        dataset: Dataset,
        pairs: Dataset | None,
        recipe: Recipe,
        seed: int,
        strategy: str,
    ) -> Iterator[Answer]:
        """One manipulation against the submission: weights (none where it diverged) and the history."""
        self.receive(model)
        way = STRATEGIES[strategy]
        assert isinstance(way, Gradient)
        options: dict[str, Any] = {"shuffle": True, "seed": seed}
        loader = datasets.loader(dataset, recipe.batch_size, **options)
        two = None if pairs is None else datasets.loader(pairs, recipe.batch_size, **options)
        task = Task(self.model, Normalised(self.function, self.about["name"]), fooling, loader, seed, two)
        result = way.attack(task, recipe, progress=False)
        tensors = {f"history.{k}": torch.tensor(v, dtype=torch.float64) for k, v in result.history.items()}
        if result.status == "done":
            state = result.model.state_dict()
            tensors |= {f"weights.{k}": v.detach().cpu().contiguous().clone() for k, v in state.items()}
        yield {"status": result.status, "reason": one_line(result.reason), "converged": result.converged}, tensors


def in_words(error: BaseException, file: str, memory_gib: float) -> str:
    """What happened in one line, with the line of the submission's file where it was raised."""
    try:
        text = one_line(str(error))
    except Exception:  # foreign exceptions may fail even at this
        text = ""
    if isinstance(error, MemoryError) or NO_MEMORY.search(text):
        what = f"ran out of memory (limit {memory_gib:g} GiB)"
    elif isinstance(error, SystemExit):
        what = f"called sys.exit({one_line(repr(error.code), 50)})"
    elif isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({os.path.basename(error.filename or '')}, line {error.lineno})"
    else:
        kind = type(error).__name__
        what = text if isinstance(error, UserError) else f"{kind}: {text}" if text else kind
        what += _beside(error, file)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{what} ({os.path.basename(file)}, line {lines[-1]})" if lines else what


def _beside(error: BaseException, file: str) -> str:
    """What is to be said of a file that may not be read or written."""
    name = str(error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    near = [os.path.join(os.path.dirname(file), name + end) for end in (".py", "")] if name else []
    if isinstance(error, PermissionError) or any(os.path.exists(path) for path in near):
        return (
            ": a submission is one file: it reads itself, installed packages and the dataset, nothing that lies beside "
            "it, and writes into its own folder alone"
        )
    return ""


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until the parent closes its pipe. Any number of answers, then one that says "end" or "error"."""
    session, memory_gib, owner = Session(), math.inf, os.getpid()

    def send(number: int, header: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> None:
        if os.getpid() != owner:  # a fork that came back out of the submission
            os._exit(1)
        head = json.dumps({"number": number, **header}).encode()
        body = save(tensors) if tensors else b""
        answers.write(LENGTHS.pack(len(head), len(body)) + head + body)
        answers.flush()

    send(0, {"end": True})  # imported and ready
    number = 0
    while length := requests.read(LENGTH.size):
        number += 1
        data = requests.read(LENGTH.unpack(length)[0])
        try:
            request = unpack(data)
            del data
            memory_gib = request.get("memory_gib", memory_gib)
            if session.function is not None:
                session.bound()
            for header, tensors in getattr(session, request.pop("call"))(**request):
                send(number, header, tensors)
            end: dict[str, Any] = {"end": True}
        except BaseException as error:  # SystemExit and KeyboardInterrupt too are only answers
            end = {"error": in_words(error, session.file, memory_gib)}
            session.before = {}  # the parent sends its model again
        send(number, end)


def _limit(which: int, value: int) -> None:
    """Set a limit for good, or leave a lower one."""
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))

"""A submission: a foreign interpreter in one file, `my_method.py:MyInterpreter`, and the parent's side of its process.

It is a class (instantiated without arguments) or a function `(model, images (N, C, H, W), targets (N,)) -> heatmaps
(N, h, w)`, with optional attributes `name`, `differentiable` and `stochastic`. The file is run in a child process
alone (`benchmark.submissions.sandbox`, which says what that protects against). What comes back is read as JSON and
safetensors, is of bounded size, and is validated here; whatever else happens there is one `UserError` here.
"""

import ast
import atexit
import hashlib
import json
import math
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

import benchmark
from attacks.errors import UserError
from attacks.foolings import Fooling
from attacks.heatmaps import min_max
from attacks.manipulation import Recipe
from benchmark.datasets import Dataset
from benchmark.interpreters import INTERPRETERS
from benchmark.interpreters.base import Interpreter, Targets
from benchmark.submissions.checks import Finding
from benchmark.submissions.sandbox import (
    HEADER,
    LENGTH,
    LENGTHS,
    NO_MEMORY,
    Answer,
    check_form,
    fingerprint,
    one_line,
    pack,
)

START = 120.0  # seconds a child may take to import torch
ABOUT = {"name": str, "kind": str, "differentiable": bool, "stochastic": bool}
FINDINGS = 1000  # of one run of the checks, at most
KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")  # of the environment
RESERVED = {*INTERPRETERS, "models", "fronts"}  # names of results


@dataclass(frozen=True)
class Submission:
    """A name in a file, absolute, and the sha256 of the file when it was read."""

    file: Path
    attribute: str
    digest: str

    def __str__(self) -> str:
        return f"{self.file.name}:{self.attribute}"


def parse(text: str) -> Submission:
    """The submission `FILE.py:NAME`. The file is read, not run. Raises `UserError`."""
    path, colon, attribute = text.rpartition(":")
    if not (colon and path and attribute.isidentifier()):
        raise UserError(f"a submission must be FILE.py:NAME, a class or function in a file (got {text!r})")
    file = Path(path).absolute()
    try:
        source = file.read_bytes()
        with warnings.catch_warnings(action="ignore"):
            ast.parse(source, file.name)
    except OSError as error:
        raise UserError(f"submission {text!r}: {path} cannot be read: {error.strerror}") from error
    except SyntaxError as error:
        raise UserError(f"submission {text!r}: SyntaxError: {error.msg} ({file.name}, line {error.lineno})") from error
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes, nesting without end
        raise UserError(f"submission {text!r}: {file.name} is no Python source: {one_line(str(error))}") from error
    return Submission(file, attribute, hashlib.sha256(source).hexdigest())


def check_name(name: str) -> None:
    """UserError unless `name` can be the name of a new interpreter."""
    if not re.fullmatch("[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or len(name) > 50:
        raise UserError(f"name must be lower snake case, at most 50 characters (got {one_line(name, 60)!r})")
    if name in RESERVED:
        raise UserError(f"name must be a new one, not in foolbench list interpreters (got {name!r})")


@dataclass(frozen=True)
class Limits:
    """Of a child: seconds of one call, and GiB of memory that each of its processes may map to write."""

    seconds: float = 600.0
    memory_gib: float = 8.0

    def __post_init__(self) -> None:
        if not (0 < self.seconds < math.inf and 2 <= self.memory_gib < math.inf):  # torch alone takes 0.7 GiB
            raise UserError(f"limits need seconds > 0 and memory_gib >= 2 (got {self})")


class Fooled(NamedTuple):
    """A manipulation made in the child; `weights` is empty unless `status` is "done"."""

    weights: dict[str, Tensor]
    history: dict[str, list[float]]
    status: str
    reason: str


class _BrokenError(Exception):
    """The child can no longer be talked to; the text says what happened to it."""


class _Deadline:
    """So many seconds from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._end = seconds, time.monotonic() + seconds

    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())


class Child:
    """The process of one submission, started by the first call that needs it and kept for the next ones.

    A context manager: `close` kills the whole process group and removes its folder. A call that ends in a timeout, a
    crash or an answer that is none closes the child too, and the next call starts another. For one thread at a time.
    """

    def __init__(self, submission: Submission, limits: Limits = Limits()) -> None:
        self.submission, self.limits = submission, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._about: dict[str, Any] = {}
        self._sent: dict[str, str] = {}  # fingerprint of the model that the child keeps
        self._number = 0

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def describe(self) -> dict[str, Any]:
        """What the submission says of itself: name, kind ("class" or "function"), differentiable, stochastic."""
        if not self._about:
            with self._whole():
                self._start()
        return dict(self._about)

    def heatmaps(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Heatmaps (N, h, w) of a copy of the model in eval mode: float32, finite, on the images' device.

        `images` (N, C, H, W), `targets` (N,); h <= H, w <= W. A submission that changes its model is an error.
        """
        limit = images.shape[0] * images.shape[2] * images.shape[3] * 4 + HEADER
        request = {"images": images.detach(), "targets": targets.detach()}
        answers = list(self._call("heatmaps", request, model, limit))
        found: Any = answers[0][1].get("heatmaps") if answers else None
        try:
            check_form(found, images)
            if found.dtype != torch.float32:  # what the child makes of any other
                raise UserError("sent heatmaps that are none")
            _check_finite(found)
        except UserError as error:
            raise self._error(str(error)) from error
        return found.to(images.device)

    def checks(self, device: str = "cpu") -> Iterator[Finding]:
        """Run `benchmark.submissions.checks` on the submission; the findings come one by one, each within the time
        limit."""
        for header, _ in self._call("checks", {"device": device}, most=FINDINGS):
            types = {k: type(v) for k, v in header.items()}
            expected = {"check": str, "ok": bool, "message": str, "severity": str}
            if types != expected or header["severity"] not in ("error", "warning"):
                raise self._error("sent a finding that is none")
            check, message = (one_line(header[k], 2000) for k in ("check", "message"))
            yield Finding(check, header["ok"], message, header["severity"])

    def manipulate(
        self,
        model: nn.Module,
        fooling: Fooling,
        dataset: Dataset,
        batch_size: int,
        recipe: Recipe,
        seed: int = 0,
        *,
        pairs: Dataset | None = None,
        smooth: bool = False,
    ) -> Fooled:
        """`attacks.manipulate` in the child, with the submission as the interpreter; `pairs` for Active fooling.
        `smooth`: with softplus for ReLU (`attacks.surrogates`).

        Batches come from `datasets.loader(dataset, batch_size, shuffle=True, seed=seed)`. The folder of a dataset that
        is read from disk must be absolute: the child works in a folder of its own. Weights are on the CPU, with the
        names, shapes and types of the model's, and finite.
        """
        state = model.state_dict()
        limit = sum(v.numel() * v.element_size() + 512 for v in state.values()) + 3 * 8 * recipe.steps + HEADER
        request: dict[str, Any] = {"fooling": fooling, "dataset": dataset, "pairs": pairs}
        request |= {"batch_size": batch_size, "recipe": recipe, "seed": seed, "smooth": smooth}
        answers = list(self._call("manipulate", request, model, limit))
        try:
            return _fooled(*(answers[0] if answers else ({}, {})), state, recipe)
        except UserError as error:
            raise self._error(str(error)) from error

    def close(self) -> None:
        """Kill the process group, whatever runs in it, and remove the folder. Does nothing where there is none."""
        process, self._process, self._sent = self._process, None, {}
        if process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with suppress(ProcessLookupError, PermissionError):
            for _ in range(50):  # its children end a moment later, and until then may write into the folder
                os.killpg(process.pid, 0)
                time.sleep(0.02)
        if process.stdin is not None:
            process.stdin.close()
        os.close(self._answers)
        self._errors.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _error(self, what: str) -> UserError:
        return UserError(f"submission {self.submission}: {what}")

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """What is broken off in the middle leaves no child behind: it could not be talked to any more."""
        try:
            yield
        except _BrokenError as error:
            self.close()
            raise self._error(str(error)) from error
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        """Start a process, unless one is there, and load the submission in it."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._folder = tempfile.mkdtemp(prefix="foolbench-")
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._answers, answers = os.pipe()
        root = str(Path(benchmark.__file__).parent.parent)
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment |= {"HOME": self._folder, "TMPDIR": self._folder, "PYTHONPATH": root, "PYTHONHASHSEED": "0"}
        environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmark.submissions.sandbox", str(answers), str(os.getpid()), self._folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                bufsize=0,
                cwd=self._folder,
                env=environment,
                pass_fds=(answers,),
                start_new_session=True,
            )
        except OSError:
            os.close(self._answers)
            self._errors.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        finally:
            os.close(answers)
        self._number = 0
        self._read(0, _Deadline(START))
        request: dict[str, Any] = {"file": str(self.submission.file), "attribute": self.submission.attribute}
        request |= {"digest": self.submission.digest, "threads": torch.get_num_threads(), **asdict(self.limits)}
        loaded = list(self._call("load", request))
        about = loaded[0][0] if loaded else {}
        if {k: type(v) for k, v in about.items()} != ABOUT:
            raise _BrokenError("sent a description that is none")
        try:
            check_name(about["name"])
        except UserError as error:
            raise self._error(str(error)) from error
        self._about = about

    def _news(self, model: nn.Module) -> nn.Module | None:
        """The model where the child does not keep it already."""
        found = fingerprint(model)
        if found == self._sent:
            return None
        self._sent = found
        return model

    def _call(
        self, call: str, request: dict[str, Any], model: nn.Module | None = None, limit: int = 0, most: int = 1
    ) -> Iterator[Answer]:
        """Yield the answers to one request, at most `most`, each with at most `limit` bytes of tensors."""
        with self._whole():
            self._start()
            if model is not None:
                request = {"model": self._news(model), **request}
            packed = pack({"call": call, **request})
            self._number += 1
            deadline = _Deadline(self.limits.seconds)
            self._write(LENGTH.pack(len(packed)), deadline)
            self._write(packed, deadline)
            del packed
            for _ in range(most + 1):
                header, tensors = self._read(limit, deadline)
                if "end" in header:
                    return
                if "error" in header:
                    break
                yield header, tensors
                deadline = _Deadline(self.limits.seconds)
            else:
                raise _BrokenError("sent more answers than it was asked for")
        self._sent = {}  # the child has forgotten its model
        raise self._error(one_line(str(header["error"]), 500))

    def _write(self, content: bytes, deadline: _Deadline) -> None:
        process = self._running()
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        left = memoryview(content)
        while left:
            self._wait(process.stdin.fileno(), selectors.EVENT_WRITE, deadline)
            try:
                left = left[os.write(process.stdin.fileno(), left[: 2**20]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError as error:
                raise self._ended() from error

    def _read(self, limit: int, deadline: _Deadline) -> Answer:
        """One answer to the present request: its header, and at most `limit` bytes of tensors."""
        head, body = LENGTHS.unpack(self._read_bytes(LENGTHS.size, deadline))
        if head > HEADER or body > limit:
            raise _BrokenError("sent an answer that is none, or is too large")
        try:
            header = json.loads(self._read_bytes(head, deadline))
        except (ValueError, RecursionError) as error:
            raise _BrokenError("sent an answer that is none") from error
        if not isinstance(header, dict) or header.pop("number", None) != self._number:
            raise _BrokenError("sent an answer that is none")
        try:
            return header, load(self._read_bytes(body, deadline)) if body else {}
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise _BrokenError("sent tensors that are none") from error

    def _read_bytes(self, size: int, deadline: _Deadline) -> bytes:
        found = bytearray()
        while len(found) < size:
            self._wait(self._answers, selectors.EVENT_READ, deadline)
            part = os.read(self._answers, min(size - len(found), 2**20))
            if not part:
                raise self._ended()
            found += part
        return bytes(found)

    def _wait(self, descriptor: int, event: int, deadline: _Deadline) -> None:
        """Until the pipe is ready. Processes that the child left behind may hold it open: look after the child too."""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, event)
            while not selector.select(min(0.2, deadline.left())):
                if self._running().poll() is not None and not selector.select(0):
                    raise self._ended()
                if not deadline.left():
                    raise _BrokenError(f"gave no answer in {deadline.seconds:g} s")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise _BrokenError("its process was closed")
        return self._process

    def _ended(self) -> _BrokenError:
        """Why the pipe closed: how the process ended, with the last line that it wrote to stderr."""
        process = self._running()
        try:
            code = process.wait(5)
        except subprocess.TimeoutExpired:
            return _BrokenError("closed the pipe for its answers")
        size = os.fstat(self._errors.fileno()).st_size
        tail = os.pread(self._errors.fileno(), 400, max(0, size - 400)).decode(errors="replace").strip()
        last = one_line(tail.splitlines()[-1]) if tail else ""
        if NO_MEMORY.search(tail):
            return _BrokenError(f"ran out of memory (limit {self.limits.memory_gib:g} GiB)")
        names = {s.value: s.name for s in signal.Signals}
        how = f"was killed by {names.get(-code, -code)}" if code < 0 else f"ended with exit code {code}"
        return _BrokenError(f"its process {how}{f': {last}' if last else ''}")


def _check_finite(heatmaps: Tensor) -> None:
    bad = (~heatmaps.isfinite()).flatten(1).any(1).nonzero()
    if len(bad):
        first = int(bad[0])
        kind = "NaN" if heatmaps[first].isnan().any() else "an infinite value"
        raise UserError(f"returned {kind} for image {first + 1} of {len(heatmaps)}")


def _fooled(header: dict[str, Any], tensors: dict[str, Tensor], state: dict[str, Tensor], recipe: Recipe) -> Fooled:
    """The outcome of a manipulation. UserError unless it fits the model and the recipe."""
    status, reason = header.get("status"), header.get("reason")
    if status not in ("done", "diverged") or not isinstance(reason, str):
        raise UserError("sent a manipulation that is none")
    parts = {part: _part(tensors, part) for part in ("weights", "history")}
    history, weights = parts["history"], parts["weights"]
    steps = history["ce"].numel() if "ce" in history else 0
    form = {(tuple(v.shape), v.dtype) for v in history.values()} == {((steps,), torch.float64)}
    length = steps == recipe.steps if status == "done" else steps <= recipe.steps
    if history.keys() != {"ce", "fooling", "accuracy"} or not (form and length):
        raise UserError("sent a history that is none")
    expected = state if status == "done" else {}
    if weights.keys() != expected.keys():
        odd = min(weights.keys() ^ expected.keys())
        raise UserError(f"sent weights that are not the model's: {one_line(odd, 100)!r}")
    for name, value in weights.items():
        if (value.shape, value.dtype) != (state[name].shape, state[name].dtype):
            raise UserError(f"sent weights that are not the model's: {name!r}, {value.dtype} {tuple(value.shape)}")
        if not value.isfinite().all():
            raise UserError(f"sent weights that are not finite: {name!r}")
    return Fooled(weights, {k: v.tolist() for k, v in history.items()}, status, one_line(reason))


def _part(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}


@dataclass(frozen=True)
class Remote(Interpreter):
    """A submission as an interpreter: heatmaps come from its child, logits are computed here.

    Maps go through min-max, image by image: a method must not gain by their scale (at 0.3 of full scale, Location's
    loss never falls below 0.2).

    Made by `remote`, which adds the name and flags that the submission declares. The method `attribute` takes the
    name, so the submission's attribute is `symbol` here.
    """

    file: str
    symbol: str
    digest: str
    flags: tuple[str, ...] = ()  # what its checks found, for its card

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        maps = self._child().heatmaps(model, images, targets)
        return model(images), maps[:, None]

    def heatmap(self, attribution: Tensor) -> Tensor:
        return min_max(attribution[:, 0])

    def manipulate(self, *given: Any, **options: Any) -> Fooled:
        """As `Child.manipulate`."""
        return self._child().manipulate(*given, **options)

    def checks(self, device: str = "cpu") -> Iterator[Finding]:
        """As `Child.checks`."""
        return self._child().checks(device)

    def _child(self) -> Child:
        return _child(Submission(Path(self.file), self.symbol, self.digest))

    def attribute(self, model: nn.Module, images: Tensor, targets: Targets) -> Tensor:
        raise UserError(f"submission {self.symbol} has no attribution: a submission returns heatmaps only")


def remote(submission: Submission, flags: Sequence[str] = ()) -> Remote:
    """The submission as an interpreter, with the name that it declares and what it says of itself; its child is
    started for that. `flags`: of its checks, for its card."""
    made = Remote(str(submission.file), submission.attribute, submission.digest, tuple(flags))
    about = _child(submission).describe()
    for name in ("name", "differentiable", "stochastic"):
        object.__setattr__(made, name, about[name])  # of the class elsewhere, of the instance here; pickled with it
    return made


_CHILDREN: dict[tuple[int, Submission], Child] = {}  # by process, for a fork must not talk into its parent's pipes


def _child(submission: Submission) -> Child:
    """The one child of a submission in this process."""
    key = os.getpid(), submission
    if key not in _CHILDREN:
        _CHILDREN[key] = Child(submission)
        atexit.register(_CHILDREN[key].close)
    return _CHILDREN[key]

"""The parent's side of a submission's process: what it is asked, and what is made sure of its answers.

An answer is a header and tensors, and is validated here; whatever else happens there is one `UserError` here. What
runs there is `benchmark.submissions.sandbox`, which says what this protects against.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attacks.course import Recipe
from attacks.errors import UserError
from attacks.foolings import Fooling
from benchmark.datasets import Dataset
from benchmark.submissions import checks
from benchmark.submissions.checks.setting import Ended, Finding
from benchmark.submissions.keeper import keeper
from benchmark.submissions.pipe import Deadline, Process
from benchmark.submissions.probe import Probe
from benchmark.submissions.submission import Limits, Submission, check_name
from benchmark.submissions.wire import HEADER, Answer, BrokenError, check_form, fingerprint, one_line, pack

START = 30.0  # seconds a process may take to be ready
ABOUT = {"name": str, "kind": str, "differentiable": bool, "stochastic": bool}


class Fooled(NamedTuple):
    """A manipulation made in the child; `weights` is empty unless `status` is "done"."""

    weights: dict[str, Tensor]
    history: dict[str, list[float]]
    status: str
    reason: str
    converged: bool | None


class Child:
    """A submission in processes of its own, one for each model that it is asked about, one after another.

    A process is forked (`benchmark.submissions.keeper`) by the first call that needs it, and kept while calls are about
    the same model. A context manager: `close` kills it with all that it started, and removes its folder. A call that
    ends in a timeout, a crash or an answer that is none closes it too. For one thread at a time.
    """

    def __init__(self, submission: Submission, limits: Limits | None = None) -> None:
        self.submission, self.limits = submission, limits or Limits()
        self._process: Process | None = None
        self._about: dict[str, Any] = {}
        self._asked: dict[str, str] = {}  # fingerprint of the one model that the process may be asked about
        self._sent: dict[str, str] = {}  # fingerprint of the model that the process keeps
        self._many = False  # whether it may be asked about many
        self._sizes: dict[tuple[str, ...], tuple[int, ...]] = {}  # (h, w) by kind of model and shape of an image

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def describe(self) -> dict[str, Any]:
        """What the submission says of itself: name, kind ("class" or "function"), differentiable, stochastic."""
        if not self._about:
            with self._whole():
                self._started()
        return dict(self._about)

    def confined(self) -> bool:
        """Whether the kernel holds the process to its folder (`benchmark.submissions.confine`)."""
        return keeper().confines

    def heatmaps(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Heatmaps (N, h, w) of a copy of the model in eval mode: float32, finite, on the images' device.

        `images` (N, C, H, W), `targets` (N,); h <= H, w <= W. A submission that changes its model is an error.
        """
        limit = images.shape[0] * images.shape[2] * images.shape[3] * 4 + HEADER
        request = {"images": images.detach(), "targets": targets.detach()}
        answers = list(self._call("heatmaps", request, model, limit=limit))
        maps: Any = answers[0][1].get("heatmaps") if answers else None
        try:
            check_form(maps, images)
            if maps.dtype != torch.float32:  # what the child makes of any other
                raise UserError("sent heatmaps that are none")
            _check_finite(maps)
            kind = str(model), *map(str, images.shape[1:])
            if (size := self._sizes.setdefault(kind, tuple(maps.shape[1:]))) != tuple(maps.shape[1:]):
                now, then = (" x ".join(map(str, side)) for side in (maps.shape[1:], size))
                raise UserError(f"returned maps of {now}, and of {then} before for such a model: h x w must stay")
        except UserError as error:
            raise self._error(str(error)) from error
        return maps.to(images.device)

    @contextmanager
    def one_process(self) -> Iterator[None]:
        """Inside, one process is asked about all models, and about none before or after: what it remembers shows."""
        self.close()
        self._many = True
        try:
            yield
        finally:
            self._many = False
            self.close()

    def checks(self, device: str = "cpu") -> Iterator[Finding]:
        """Run `benchmark.submissions.checks` on the submission; the findings come one by one. A process of their own
        computes, and they are judged here; the time limit is that of all of them together."""
        self.close()
        with self._whole():
            process, about = self._started(), self._about
        deadline = Deadline(self.limits.seconds, "its checks took more than {:g} s")

        def ask(call: str, request: dict[str, Any], limit: int) -> Answer:
            if self._process is not process:
                raise Ended("its process was closed")
            try:
                answers = list(self._call(call, request, limit=limit, deadline=deadline))
            except UserError as error:
                raise Ended from error
            return answers[0] if answers else ({}, {})

        flags = {flag: about[flag] for flag in ("differentiable", "stochastic")}
        try:
            yield from checks.run(Probe(about["name"], ask), **flags, device=device)
        except Ended as error:
            raise error.__cause__ if isinstance(error.__cause__, UserError) else self._error(str(error)) from None
        finally:
            if self._process is process:
                self.close()

    def manipulate(
        self,
        model: nn.Module,
        fooling: Fooling,
        dataset: Dataset,
        recipe: Recipe,
        seed: int = 0,
        *,
        pairs: Dataset | None = None,
        strategy: str = "",
    ) -> Fooled:
        """`attacks.manipulate` in the child, with the submission as the interpreter; `pairs` for Active fooling.
        `strategy`: one by gradient (`attacks.strategies`), which may differentiate a surrogate.

        Batches come from `datasets.loader(dataset, recipe.batch_size, shuffle=True, seed=seed)`. The folder of a
        dataset that is read from disk must be absolute: the child works in a folder of its own. Weights are on the CPU,
        with the names, shapes and types of the model's, and finite.
        """
        state = model.state_dict()
        limit = sum(v.numel() * v.element_size() + 512 for v in state.values()) + 3 * 8 * recipe.steps + HEADER
        request: dict[str, Any] = {"fooling": fooling, "dataset": dataset, "pairs": pairs}
        request |= {"recipe": recipe, "seed": seed, "strategy": strategy}
        with self.one_process():
            answers = list(self._call("manipulate", request, model, limit=limit, readable=roots(dataset, pairs)))
        try:
            return _fooled(*(answers[0] if answers else ({}, {})), state, recipe, strategy)
        except UserError as error:
            raise self._error(str(error)) from error

    def close(self) -> None:
        """Kill the process and whatever it started, and remove its folder. Does nothing where there is none."""
        process, self._process, self._sent, self._asked = self._process, None, {}, {}
        if process is not None:
            process.close()

    def _error(self, what: str) -> UserError:
        return UserError(f"submission {self.submission}: {what}")

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """What is broken off in the middle leaves no process behind: it could not be talked to any more."""
        try:
            yield
        except BrokenError as error:
            self.close()
            raise self._error(str(error)) from error
        except BaseException:
            self.close()
            raise

    def _started(self, readable: Sequence[str] = ()) -> Process:
        """The process, with the submission loaded in it; another one where there is none, or it has ended."""
        if self._process is not None and self._process.runs():
            return self._process
        self.close()
        file = str(self.submission.file)
        process = self._process = Process(keeper(), self.limits.memory_gib, [file, *readable])
        process.receive(0, Deadline(START))
        request: dict[str, Any] = {"file": file, "attribute": self.submission.attribute}
        request |= {"digest": self.submission.digest, "threads": torch.get_num_threads(), **asdict(self.limits)}
        loaded = list(self._call("load", request))
        about = loaded[0][0] if loaded else {}
        if {k: type(v) for k, v in about.items()} != ABOUT:
            raise BrokenError("sent a description that is none")
        try:
            check_name(about["name"])
        except UserError as error:
            raise self._error(str(error)) from error
        if self._about and about != self._about:
            raise BrokenError("describes itself otherwise than before")
        self._about = about
        return process

    def _call(
        self,
        call: str,
        request: dict[str, Any],
        model: nn.Module | None = None,
        *,
        limit: int = 0,
        readable: Sequence[str] = (),
        deadline: Deadline | None = None,
    ) -> Iterator[Answer]:
        """Yield the answer to one request, if one comes, with at most `limit` bytes of tensors. `model`: the one that
        the process may know, in a process that knows no other."""
        with self._whole():
            digests = {} if model is None else fingerprint(model)
            if digests and not self._many and self._asked not in ({}, digests):
                self.close()
            process = self._started(readable)
            if digests:
                request = {"model": None if digests == self._sent else model, **request}
                self._sent = self._asked = digests
            packed = pack({"call": call, **request})
            deadline = deadline or Deadline(self.limits.seconds)
            process.send(packed, deadline)
            del packed
            for _ in range(2):
                header, tensors = process.receive(limit, deadline)
                if "end" in header:
                    return
                if "error" in header:
                    break
                yield header, tensors
            else:
                raise BrokenError("sent more answers than it was asked for")
        self._sent = {}  # the process has forgotten its model
        raise self._error(one_line(str(header["error"]), 500))


def roots(*data: Any) -> list[str]:
    """The folders that datasets read, those that others are made of among them."""
    found = []
    for each in data:
        held = list(vars(each).values()) if isinstance(each, Dataset) else []
        found += [str(value) for value in held if isinstance(value, Path)]
        found += roots(*(value for value in held if isinstance(value, Dataset)))
    return found


def _check_finite(heatmaps: Tensor) -> None:
    low, high = heatmaps.flatten(1).aminmax(dim=1)
    bad = (~(high - low).isfinite()).nonzero()  # what min-max divides by
    if len(bad):
        first = int(bad[0])
        kind = "NaN" if heatmaps[first].isnan().any() else "an infinite value"
        kind = "values too far apart" if heatmaps[first].isfinite().all() else kind
        raise UserError(f"returned {kind} for image {first + 1} of {len(heatmaps)}")


def _fooled(
    header: dict[str, Any], tensors: dict[str, Tensor], state: dict[str, Tensor], recipe: Recipe, strategy: str = ""
) -> Fooled:
    """The outcome of a manipulation. UserError unless it fits the model, the recipe and the strategy."""
    status, reason, converged = (header.get(name) for name in ("status", "reason", "converged"))
    if status not in ("done", "diverged") or not isinstance(reason, str) or converged not in (None, False, True):
        raise UserError("sent a manipulation that is none")
    parts = {part: _part(tensors, part) for part in ("weights", "history")}
    history, weights = parts["history"], parts["weights"]
    steps = history["fooling"].numel() if "fooling" in history else 0
    form = {(tuple(v.shape), v.dtype) for v in history.values()} == {((steps,), torch.float64)}
    labelled = recipe.divergence is None
    losses = {"fooling", "accuracy"} | ({"ce"} if labelled else {"kl", "lambda"})
    losses = {"fooling", "accuracy", "kl"} if strategy == "off_manifold" else losses
    whole = status == "done" and labelled and not converged  # a head shift ends where its loss falls no more
    length = steps == recipe.steps if whole else steps <= recipe.steps
    if history.keys() != losses or not (form and length):
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
    return Fooled(weights, {k: v.tolist() for k, v in history.items()}, status, one_line(reason), converged)


def _part(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}

"""The parent's side of a submission's process: what it is asked, and what is made sure of its answers.

An answer is a header and tensors, and is validated here; whatever else happens there is one `UserError` here. What
runs there is `benchmark.submissions.sandbox`, which says what this protects against.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attacks.course import Recipe
from attacks.errors import UserError
from attacks.foolings import Fooling
from benchmark.datasets import Dataset
from benchmark.submissions.checks.setting import Finding
from benchmark.submissions.pipe import BrokenError, Deadline, Process
from benchmark.submissions.submission import Limits, Submission, check_name
from benchmark.submissions.wire import HEADER, Answer, check_form, fingerprint, one_line, pack

START = 120.0  # seconds a child may take to import torch
ABOUT = {"name": str, "kind": str, "differentiable": bool, "stochastic": bool}
FINDINGS = 1000  # of one run of the checks, at most


class Fooled(NamedTuple):
    """A manipulation made in the child; `weights` is empty unless `status` is "done"."""

    weights: dict[str, Tensor]
    history: dict[str, list[float]]
    status: str
    reason: str
    converged: bool | None


class Child:
    """The process of one submission, started by the first call that needs it and kept for the next ones.

    A context manager: `close` kills the whole process group and removes its folder. A call that ends in a timeout, a
    crash or an answer that is none closes the child too, and the next call starts another. For one thread at a time.
    """

    def __init__(self, submission: Submission, limits: Limits | None = None) -> None:
        self.submission, self.limits = submission, limits or Limits()
        self._process: Process | None = None
        self._about: dict[str, Any] = {}
        self._sent: dict[str, str] = {}  # fingerprint of the model that the child keeps

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

    def heatmaps(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Heatmaps (N, h, w) of a copy of the model in eval mode: float32, finite, on the images' device.

        `images` (N, C, H, W), `targets` (N,); h <= H, w <= W. A submission that changes its model is an error.
        """
        limit = images.shape[0] * images.shape[2] * images.shape[3] * 4 + HEADER
        request = {"images": images.detach(), "targets": targets.detach()}
        answers = list(self._call("heatmaps", request, model, limit))
        maps: Any = answers[0][1].get("heatmaps") if answers else None
        try:
            check_form(maps, images)
            if maps.dtype != torch.float32:  # what the child makes of any other
                raise UserError("sent heatmaps that are none")
            _check_finite(maps)
        except UserError as error:
            raise self._error(str(error)) from error
        return maps.to(images.device)

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
        answers = list(self._call("manipulate", request, model, limit))
        try:
            return _fooled(*(answers[0] if answers else ({}, {})), state, recipe)
        except UserError as error:
            raise self._error(str(error)) from error

    def close(self) -> None:
        """Kill the process group, whatever runs in it, and remove the folder. Does nothing where there is none."""
        process, self._process, self._sent = self._process, None, {}
        if process is not None:
            process.close()

    def _error(self, what: str) -> UserError:
        return UserError(f"submission {self.submission}: {what}")

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """What is broken off in the middle leaves no child behind: it could not be talked to any more."""
        try:
            yield
        except BrokenError as error:
            self.close()
            raise self._error(str(error)) from error
        except BaseException:
            self.close()
            raise

    def _started(self) -> Process:
        """The process, with the submission loaded in it; another one where there is none, or it has ended."""
        if self._process is not None and self._process.runs():
            return self._process
        self.close()
        process = self._process = Process(self.limits.memory_gib)
        process.receive(0, Deadline(START))
        request: dict[str, Any] = {"file": str(self.submission.file), "attribute": self.submission.attribute}
        request |= {"digest": self.submission.digest, "threads": torch.get_num_threads(), **asdict(self.limits)}
        loaded = list(self._call("load", request))
        about = loaded[0][0] if loaded else {}
        if {k: type(v) for k, v in about.items()} != ABOUT:
            raise BrokenError("sent a description that is none")
        try:
            check_name(about["name"])
        except UserError as error:
            raise self._error(str(error)) from error
        self._about = about
        return process

    def _news(self, model: nn.Module) -> nn.Module | None:
        """The model where the child does not keep it already."""
        digests = fingerprint(model)
        if digests == self._sent:
            return None
        self._sent = digests
        return model

    def _call(
        self, call: str, request: dict[str, Any], model: nn.Module | None = None, limit: int = 0, most: int = 1
    ) -> Iterator[Answer]:
        """Yield the answers to one request, at most `most`, each with at most `limit` bytes of tensors."""
        with self._whole():
            process = self._started()
            if model is not None:
                request = {"model": self._news(model), **request}
            packed = pack({"call": call, **request})
            deadline = Deadline(self.limits.seconds)
            process.send(packed, deadline)
            del packed
            for _ in range(most + 1):
                header, tensors = process.receive(limit, deadline)
                if "end" in header:
                    return
                if "error" in header:
                    break
                yield header, tensors
                deadline = Deadline(self.limits.seconds)
            else:
                raise BrokenError("sent more answers than it was asked for")
        self._sent = {}  # the child has forgotten its model
        raise self._error(one_line(str(header["error"]), 500))


def _check_finite(heatmaps: Tensor) -> None:
    bad = (~heatmaps.isfinite()).flatten(1).any(1).nonzero()
    if len(bad):
        first = int(bad[0])
        kind = "NaN" if heatmaps[first].isnan().any() else "an infinite value"
        raise UserError(f"returned {kind} for image {first + 1} of {len(heatmaps)}")


def _fooled(header: dict[str, Any], tensors: dict[str, Tensor], state: dict[str, Tensor], recipe: Recipe) -> Fooled:
    """The outcome of a manipulation. UserError unless it fits the model and the recipe."""
    status, reason, converged = (header.get(name) for name in ("status", "reason", "converged"))
    if status not in ("done", "diverged") or not isinstance(reason, str) or converged not in (None, False, True):
        raise UserError("sent a manipulation that is none")
    parts = {part: _part(tensors, part) for part in ("weights", "history")}
    history, weights = parts["history"], parts["weights"]
    steps = history["fooling"].numel() if "fooling" in history else 0
    form = {(tuple(v.shape), v.dtype) for v in history.values()} == {((steps,), torch.float64)}
    labelled = recipe.divergence is None
    losses = {"fooling", "accuracy", "ce"} if labelled else {"fooling", "accuracy", "kl", "lambda"}
    whole = status == "done" and labelled and not converged  # else it may have ended sooner
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

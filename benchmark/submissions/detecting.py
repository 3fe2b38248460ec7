"""A detector that was submitted, `my_detector.py:MyDetector`, beside those of `benchmark.detectors`: its scores come
from its own process, as an interpreter's maps do, one for each model.

A class (made without arguments) or a function `(model, images (N, C, H, W), targets (N,)) -> float`; with the attribute
`original = True` it is shown the model before any manipulation as well, as a fourth argument. A model comes as
`disguised`, but for a detector that compares it with the original.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from attacks.errors import UserError
from benchmark.detectors import DETECTORS
from benchmark.detectors.base import Detector
from benchmark.submissions.child import Child
from benchmark.submissions.disguise import disguised
from benchmark.submissions.remote import Remote, child_of
from benchmark.submissions.submission import Submission


class DetectorChild(Child):
    """A child that is asked for scores."""

    def original(self) -> bool:
        """Whether the detector says that it wants the original."""
        said = self._single("detector", {})
        if not isinstance(said.get("original"), bool):
            raise self._error("original must be True or False")
        return said["original"]

    def score(self, model: nn.Module, images: Tensor, targets: Tensor, *original: nn.Module) -> float:
        """The score of a copy of the model in eval mode, a finite number. A detector that changes it is an error."""
        request = {"images": images.detach(), "targets": targets.detach(), "original": list(original)}
        score = self._single("detect", request, model).get("score")
        if not isinstance(score, float) or not math.isfinite(score):
            raise self._error("sent a score that is no finite number")
        return score

    def _single(self, call: str, request: dict[str, Any], model: nn.Module | None = None) -> dict[str, Any]:
        answers = list(self._call(call, request, model))
        return answers[0][0] if answers else {}


@dataclass(frozen=True)
class RemoteDetector(Detector):
    """Made by `detecting`. Its key in a store holds the `code` that runs it."""

    code: ClassVar = (*Remote.code, "benchmark.submissions.detecting")

    file: str
    symbol: str
    digest: str
    confined: bool
    # what it says of itself: of each instance here, of the class elsewhere
    name: str  # type: ignore[misc]
    original: bool  # type: ignore[misc]

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, *original: nn.Module) -> float:
        child = child_of(Submission(Path(self.file), self.symbol, self.digest), DetectorChild)
        return child.score(model if original else disguised(model), images, targets, *original)


def detecting(submission: Submission) -> RemoteDetector:
    """The submission as a detector, under the name that it declares; a process is started for that."""
    child = child_of(submission, DetectorChild)
    name = child.describe()["name"]
    if name in DETECTORS:
        raise UserError(
            f"name of detector {submission} must be a new one, none of {', '.join(DETECTORS)} (got {name!r})"
        )
    where = str(submission.file), submission.attribute, submission.digest
    return RemoteDetector(*where, child.confined(), name, child.original())

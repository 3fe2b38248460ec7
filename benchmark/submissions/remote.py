"""A submission as an interpreter, beside those of `benchmark.interpreters`: its heatmaps come from its own process.

A process that holds one keeps one `Child` for each submission.
"""

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from attacks.course import Recipe
from attacks.errors import UserError
from attacks.foolings import Fooling
from attacks.heatmaps import min_max
from benchmark import datasets
from benchmark.datasets import Dataset
from benchmark.interpreters.base import Interpreter, Targets
from benchmark.submissions.checks.setting import Finding
from benchmark.submissions.child import Child, Fooled
from benchmark.submissions.disguise import disguised
from benchmark.submissions.progress import judged
from benchmark.submissions.submission import Submission

SomeChild = TypeVar("SomeChild", bound=Child)


@dataclass(frozen=True)
class Remote(Interpreter):
    """A submission as an interpreter: heatmaps come from its child, logits are computed here.

    Maps go through min-max, image by image: a method must not gain by their scale (at 0.3 of full scale, Location's
    loss never falls below 0.2).

    Made by `remote`. Its key in a store holds the `code` that runs it. The method
    `attribute` takes the name, so the submission's attribute is `symbol` here.
    """

    code: ClassVar = tuple(
        f"benchmark.submissions.{name}"
        for name in (
            *("adapters", "child", "checks.twins", "confine", "disguise", "equalise", "imported", "keeper", "pipe"),
            *("progress", "remote", "sandbox", "seccomp", "wire", "zygote"),
        )
    )

    file: str
    symbol: str
    digest: str
    # what it says of itself: of each instance here, of the class elsewhere
    name: str  # type: ignore[misc]
    differentiable: bool  # type: ignore[misc]
    stochastic: bool  # type: ignore[misc]
    flags: tuple[str, ...] = ()  # what its checks found, for its card

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        maps = self._child().heatmaps(disguised(model), images, targets)
        return model(images), maps[:, None]

    def heatmap(self, attribution: Tensor) -> Tensor:
        return min_max(attribution[:, 0])

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
        """As `Child.manipulate`, with what the parent finds out of its progress (`benchmark.submissions.progress`)."""
        fooled = self._child().manipulate(model, fooling, dataset, recipe, seed, pairs=pairs, strategy=strategy)
        batches = datasets.loader(pairs or dataset, recipe.batch_size, shuffle=True, seed=seed)
        return judged(self, model, fooled, fooling, batches, recipe.steps, by_its_own=not strategy)

    def one_process(self) -> AbstractContextManager[None]:
        """As `Child.one_process`."""
        return self._child().one_process()

    def confined(self) -> bool:
        """As `Child.confined`."""
        return self._child().confined()

    def checks(self, device: str = "cpu") -> Iterator[Finding]:
        """As `Child.checks`."""
        return self._child().checks(device)

    def _child(self) -> Child:
        return child_of(Submission(Path(self.file), self.symbol, self.digest), Child)

    def attribute(self, model: nn.Module, images: Tensor, targets: Targets) -> Tensor:
        raise UserError(f"submission {self.symbol} has no attribution: a submission returns heatmaps only")


def remote(submission: Submission, flags: Sequence[str] = ()) -> Remote:
    """The submission as an interpreter, with the name that it declares and what it says of itself; a process is
    started for that. `flags`: of its checks, for its card."""
    about = child_of(submission, Child).describe()
    said = {key: about[key] for key in ("name", "differentiable", "stochastic")}
    return Remote(str(submission.file), submission.attribute, submission.digest, **said, flags=tuple(flags))


CHILDREN: dict[tuple[int, type[Child], Submission], Any] = {}  # by process: a fork must not use its parent's pipes


def child_of(submission: Submission, kind: type[SomeChild]) -> SomeChild:
    """The one child of a submission in this process."""
    key = os.getpid(), kind, submission
    if key not in CHILDREN:
        CHILDREN[key] = kind(submission)
        atexit.register(CHILDREN[key].close)
    child: SomeChild = CHILDREN[key]
    return child

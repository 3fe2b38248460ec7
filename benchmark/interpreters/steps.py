"""One operation as a tape has it: what it read and wrote, and the way back for relevance."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

Propagate = Callable[..., Sequence[Tensor | None]]  # relevance of the output -> that of each tape input; None: nothing


class Way(NamedTuple):
    """How relevance passes an operation; `needs`: the tensors whose values it reads on the way back."""

    propagate: Propagate
    needs: Sequence[Tensor] = ()


class Step(NamedTuple):
    """One recorded operation: its name and module, the nodes it read and wrote, and how relevance passes back."""

    name: str
    module: str
    inputs: list[int]
    outputs: list[int]
    propagate: Propagate | None

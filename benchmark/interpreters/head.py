"""The head of a network, and its centred twin: weights w_c − mean w, biases b_c − mean b, so outputs z_c − mean z.

The head is the linear layer or 1×1 convolution that made the logits, whatever reshaped them or averaged them over space
since. Relevance that starts at a contrast passes the twin in the head's place, by the head's own rule: W + 1vᵀ in the
place of W has the same twin, so the same relevance. (A sum of relevance that starts at the single logits would not do:
the rules' denominators are those of W.)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from attacks.errors import Refused
from benchmark.interpreters.operations import OPERATIONS, POOL_MEAN, STRUCTURE, WEIGHTED
from benchmark.interpreters.rules import Composite, Weighted
from benchmark.interpreters.steps import Step
from benchmark.interpreters.tracing import Call, mapped

KEEPS = STRUCTURE | POOL_MEAN | {"dropout", "dropout2d", "feature_dropout", "alpha_dropout", "identity", "contiguous",
                                 "clone", "to", "float", "double"}  # fmt: skip


class Noted(NamedTuple):
    """A recorded call, the place of its step on the tape, and the weighted operation that it is, if it is one."""

    call: Call
    place: int
    op: Weighted | None


class Head:
    """Keeps, while a tape records, the last weighted operation and what ran since."""

    def __init__(self) -> None:
        self.noted: list[Noted] = []

    def note(self, call: Call, place: int, op: Weighted | None) -> None:
        if call.name in WEIGHTED:
            self.noted.clear()
        self.noted.append(Noted(call, place, op))

    def centre(self, logits: Tensor, node: int, steps: list[Step], composite: Composite) -> Tensor:
        """Put the twin in the head's place in `steps`. -> its logits (N, classes). Raises `Refused` without a head.

        `node` is that of the logits. What ran since the head runs again, on the twin's outputs.
        """
        op, since = self._found(node, steps)
        _centre(op)
        value = op.apply(op.x, op.weight, op.bias)
        op.output = None if op.output is None else value
        if not _is_of_classes([noted.call for noted in since], value.detach(), op, logits):
            raise _refusal()
        for call, place, _ in since:
            call = _reading(call, value)
            value = call.function(*call.args, **call.kwargs)
            way = OPERATIONS[call.name](call, value, composite)
            steps[place] = steps[place]._replace(propagate=way and way.propagate)
        return value

    def _found(self, node: int, steps: list[Step]) -> tuple[Weighted, list[Noted]]:
        """The head, and what led from it to the node, in order."""
        since: list[Noted] = []
        for noted in reversed(self.noted):
            step = steps[noted.place]
            if node not in step.outputs:
                continue
            if noted.op is not None and set(noted.op.weight.shape[2:]) <= {1} and _is_whole(noted.op):
                self.noted = []
                return noted.op, since[::-1]
            if noted.op is not None or noted.call.name not in KEEPS or len(step.inputs) > 1:
                break
            since.append(noted)
            node = step.inputs[0]
        raise _refusal()


def _is_whole(op: Weighted) -> bool:
    """Whether every output reads every channel: a grouped convolution has no common part to take off."""
    return op.weight.dim() == 2 or op.weight.shape[1] == op.x.shape[1]


def _centre(op: Weighted) -> None:
    op.weight = op.weight - op.weight.mean(0, keepdim=True)
    op.bias = None if op.bias is None else op.bias - op.bias.mean()
    op.folded = None


def _is_of_classes(calls: list[Call], outputs: Tensor, op: Weighted, logits: Tensor) -> bool:
    """Whether the calls turn the head's channels into the classes, in order: they do so with the channels' numbers.

    All of them are views and averages (`KEEPS`), so each logit is then an average of its own channel.
    """
    numbers = torch.arange(len(op.weight), dtype=outputs.dtype, device=outputs.device)
    after = 0 if op.weight.dim() == 2 else op.weight.dim() - 2  # axes of space that follow the channels'
    value = torch.empty_like(outputs).copy_(numbers.view(-1, *[1] * after))
    for call in calls:
        call = _reading(call, value)
        value = call.function(*call.args, **call.kwargs)
    return value.shape == logits.shape == (len(value), len(numbers)) and bool((value - numbers).abs().lt(0.25).all())


def _reading(call: Call, value: Tensor) -> Call:
    """The call with `value` in the place of the one tensor that it followed."""
    (old,) = call.read
    args, kwargs = (mapped(lambda t: value if t is old else t, tree) for tree in (call.args, call.kwargs))
    return call._replace(args=args, kwargs=kwargs, read=[value], target=None)


def _refusal() -> Refused:
    return Refused("contrast needs a last linear layer or 1x1 convolution (got logits that are made in another way)")

"""A submission in its process as the checks ask it: maps and gradients are computed there, and judged in the parent.

The interpreter that `benchmark.submissions.checks` is given. What the process says is validated here; what spoils the
process is `Ended`, which no check takes for an answer of the submission's.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.submissions.checks.setting import Ended, Told
from benchmark.submissions.checks.tidy import Traces
from benchmark.submissions.wire import Answer, one_line

LIMIT = 64 * 2**20  # bytes of an answer's tensors
SEEDS = 2**32


class Probe:
    """`ask(call, request, limit)` sends a request to the process, and returns its one answer or raises `Ended`."""

    def __init__(self, name: str, ask: Callable[[str, dict[str, Any], int], Answer]) -> None:
        self.name, self.ask = name, ask

    def __repr__(self) -> str:
        return self.name

    def _ask(self, call: str, model: nn.Module, images: Tensor, targets: Tensor, **more: Any) -> Answer:
        request = {"model": model, "images": images.detach(), "targets": targets, "seed": torch.initial_seed() % SEEDS}
        return self.ask(call, request | more, LIMIT)

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Any:
        """What came back: a tensor as it was but for its graph, or an object of a type of the same name."""
        header, tensors = self._ask("probe", model, images, targets, grad=torch.is_grad_enabled())
        raised, kind, maps = header.get("raised"), header.get("type"), tensors.get("maps")
        if isinstance(raised, str):
            raise Told(one_line(raised, 600))
        if isinstance(kind, str):
            return type(one_line(kind, 50).replace("\0", ""), (), {})()
        if maps is None or header.get("device") not in ("cpu", "meta", str(images.device)):
            raise Ended("sent maps that are none")
        return maps.to(header["device"])

    def pulled_back(
        self, model: nn.Module, images: Tensor, targets: Tensor, weights: Tensor
    ) -> tuple[bool, torch.dtype, list[Tensor]]:
        """As `benchmark.submissions.checks.gradient.pulled_back`."""
        header, tensors = self._ask("pulled_back", model, images, targets, weights=weights)
        dtype = getattr(torch, str(header.get("dtype")).removeprefix("torch."), None)
        expected = [(str(i), p.shape) for i, p in enumerate(model.parameters())] if header.get("graph") is True else []
        got = {name: tensors[name].shape for name in tensors}
        if not isinstance(dtype, torch.dtype) or got != dict(expected):
            raise Ended("sent gradients that are none")
        return bool(expected), dtype, [tensors[name].to(images.device) for name, _ in expected]

    def traces(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Traces, Traces]:
        """As `benchmark.submissions.checks.tidy.traces`."""
        _, tensors = self._ask("traces", model, images, targets)
        try:
            before, after = (Traces(*part) for part in json.loads(bytes(tensors["traces"].tolist())))
            names = [
                *before.model.values(),
                *after.model.values(),
                before.state,
                after.state,
                before.inputs,
                after.inputs,
            ]
            if before.model.keys() != after.model.keys() or not all(map(_texts, names)):
                raise ValueError("not texts by name")
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise Ended("sent traces that are none") from error
        return before, after


def _texts(names: Any) -> bool:
    return all(isinstance(k, str) and isinstance(v, str) for k, v in names.items())

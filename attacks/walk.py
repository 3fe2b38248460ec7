"""A fine-tuning under way: the copy that is fooled, what trains it, and how far it is. What it is made of between two
steps can be kept, and another process go on from there."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attacks.course import Course, Manipulated, Recipe, State, Task, numbered
from attacks.errors import UserError
from attacks.given import copied
from attacks.scopes import parameters_in
from attacks.trunk import above


class Walk:
    """`fooled` is the whole copy, of which the parameters `moved` have a gradient; `network` is what batches run
    through, it or its part above the task's cut. `ended`: status, reason and `converged`, once there is no next step.

    It goes on where the task's keeper has it, else it starts at the model that `start` gives.
    """

    def __init__(self, task: Task, recipe: Recipe, course: Course, start: Callable[[], nn.Module]) -> None:
        self.course, self.step, self.ended, self.keeper = course, 0, list[Any](), task.keeper
        kept = task.keeper.load() if task.keeper else None
        model = start() if kept is None else task.model
        self.fooled = copied(model).eval().requires_grad_(False)
        self.network = above(self.fooled, task.cut)
        self.moved = [*parameters_in(self.fooled, recipe.scope).values()]
        within = {id(parameter) for parameter in self.network.parameters()}
        if not all(id(parameter) in within for parameter in self.moved):
            raise UserError(f"scope {recipe.scope!r} moves parameters below the cut {task.cut!r}")
        for parameter in self.moved:
            parameter.requires_grad_(True)
        self.optimiser = torch.optim.Adam(self.moved, lr=recipe.learning_rate)
        if kept is not None:
            self._restore(kept)
        if self.keeper:
            self.keeper.keep(self)

    def now(self, converged: bool | None = None) -> Manipulated:
        """Between two steps, or at the end."""
        status, reason, converged = self.ended or ("done", "", converged)
        return Manipulated(self.fooled, self.course.history, status, reason, converged)

    def end(self, reason: str, converged: bool | None = None) -> Manipulated:
        """There is no next step: because it diverged, for the reason, or with everything done."""
        self.ended = ["diverged" if reason else "done", reason, converged]
        return self.taken(converged)

    def taken(self, converged: bool | None = None) -> Manipulated:
        """The state after a step, which may be kept."""
        if self.keeper:
            self.keeper.keep(self)
        return self.now(converged)

    def state(self) -> State:
        tensors, values, rows = self.course.state()
        tensors |= {f"model.{name}": value for name, value in self.fooled.state_dict().items()}
        for i, states in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{name}": value for name, value in states.items()}
        return State(tensors, values | {"step": self.step, "ended": self.ended}, rows)

    def _restore(self, state: State) -> None:
        self.course.restore(state)
        self.step, self.ended = state.values["step"], state.values["ended"]
        with torch.no_grad():
            for name, value in self.fooled.state_dict().items():
                value.copy_(state.tensors[f"model.{name}"])
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in state.tensors.items():
            kind, _, place = key.partition(".")
            if kind == "adam":
                i, _, name = place.partition(".")
                states.setdefault(int(i), {})[name] = value if name == "step" else laid_out(value, self.moved[int(i)])
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": states})


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """The value in the memory order and on the device of a parameter of its shape."""
    return torch.empty_like(like, requires_grad=False).copy_(value)


def kept_tensors(state: State, name: str, like: list[nn.Parameter]) -> list[Tensor]:
    """Those of the state called "name.I", as the parameters lie."""
    return [laid_out(value, parameter) for value, parameter in zip(numbered(state.tensors, name), like, strict=False)]

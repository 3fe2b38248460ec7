"""The Half-Huber ReLU, a ReLU without a kink, and a model with it in the place of every ReLU (Woods, Chen and Teuscher
2019).
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from attacks.errors import UserError
from attacks.surrogates import ReLUAs


def half_huber(input: Tensor, delta: float = 0.5) -> Tensor:
    """clamp(x, 0, δ)²/(2δ) + relu(x − δ), value by value: a ReLU whose slope grows from 0 to 1 between 0 and δ.

    One operation for whoever listens to torch's functions, as `F.relu` is.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(half_huber, (input,), input, delta)
    over = (input - delta).relu()
    return (input.relu() - over).square() / (2 * delta) + over  # the gradient of `clamp` is ten times slower


class HalfHuber(nn.Module):
    """`half_huber` as a module; δ in units of its input."""

    def __init__(self, delta: float = 0.5) -> None:
        super().__init__()
        if not delta > 0:
            raise UserError(f"delta of the Half-Huber ReLU must be above 0 (got {delta})")
        self.delta = delta

    def forward(self, input: Tensor) -> Tensor:
        return half_huber(input, self.delta)

    def extra_repr(self) -> str:
        return f"delta={self.delta}"


class _Functions:
    """Hooks around a model's forward pass, in which ReLUs that are called as functions are seen and replaced."""

    def __init__(self, delta: float) -> None:
        self.delta, self.active = delta, list[ReLUAs]()

    def enter(self, *_: Any) -> None:
        self.active.append(ReLUAs(partial(half_huber, delta=self.delta)))
        self.active[-1].__enter__()

    def leave(self, *_: Any) -> None:
        self.active.pop().__exit__(None, None, None)


def use_half_huber(model: nn.Module, delta: float = 0.5) -> nn.Module:
    """Put the Half-Huber ReLU in the place of every ReLU of `model`, which is changed and returned.

    Modules are replaced; what the forward pass calls as a function is replaced while it runs, by hooks of the model.
    Other activations (ReLU6, SiLU) stay. Weights are untouched.
    """
    functions = _Functions(HalfHuber(delta).delta)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, HalfHuber(delta))
    model.register_forward_pre_hook(functions.enter)
    model.register_forward_hook(functions.leave, always_call=True)
    return model

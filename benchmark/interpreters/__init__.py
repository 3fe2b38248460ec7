"""Interpreters by name. `create("lrp_t", layer="features.34")(model, images, targets)` -> heatmaps (N, h, w)."""

from dataclasses import fields
from typing import Any

from attacks.errors import unknown
from benchmark.interpreters.base import Interpreter
from benchmark.interpreters.captum_methods import IntegratedGradients, SmoothGrad
from benchmark.interpreters.grad_cam import GradCAM
from benchmark.interpreters.gradients import SimpleGrad, SimpleGradT
from benchmark.interpreters.lrp import LRP, LRPT

INTERPRETERS: dict[str, type[Interpreter]] = {
    "lrp": LRP,
    "lrp_t": LRPT,
    "grad_cam": GradCAM,
    "simple_grad": SimpleGrad,
    "simple_grad_t": SimpleGradT,
    "smooth_grad": SmoothGrad,
    "integrated_gradients": IntegratedGradients,
}


def names() -> list[str]:
    """The names `create` accepts."""
    return list(INTERPRETERS)


def create(name: str, **options: Any) -> Interpreter:
    """The interpreter of that name; `options` are the fields of its class. Unknown names are a `UserError`."""
    if name not in INTERPRETERS:
        raise unknown("interpreter", name, INTERPRETERS)
    kind = INTERPRETERS[name]
    allowed = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for option in options:
        if option not in allowed:
            raise unknown(f"option of {name}", option, allowed)
    return kind(**options)

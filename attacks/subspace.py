"""An attack without gradients: search the space that fooled models of other interpreters span.

Candidates are w0 + Σ_k a_k (w_k − w0), w_k the weights of models fooled against other interpreters. Each w_k is tried,
then a (1+1) evolution strategy with a success rule for its step (Rechenberg 1973) goes on from the best. It needs
nothing but a measure of a model, so a method cannot hide from it behind a gradient that is zero, wrong or missing.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Measure = Callable[[nn.Module], tuple[Any, ...]]  # compared as tuples are: higher is the stronger attack


@torch.no_grad()
def subspace(
    model: nn.Module, fooled: Sequence[Mapping[str, Tensor]], measure: Measure, evaluations: int, seed: int = 0
) -> tuple[nn.Module, list[tuple[Any, ...]]]:
    """The strongest candidate, a copy of `model`, and the best measure after each evaluation.

    `fooled`: state dicts of the model after manipulations. `evaluations`: calls of `measure`, at least one for the
    model itself and one for each of `fooled`. The random state is not touched.
    """
    candidate, clean = copy.deepcopy(model).eval(), {k: v.clone() for k, v in model.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)

    def place(coefficients: Tensor) -> tuple[Any, ...]:
        weights = dict(clean)
        for name, value in clean.items():
            if value.is_floating_point():
                steps = (
                    a * (f[name].to(value) - value) for a, f in zip(coefficients.tolist(), fooled, strict=True) if a
                )
                weights[name] = value + sum(steps)
        candidate.load_state_dict(weights)
        return measure(candidate)

    best = torch.zeros(len(fooled))
    merit, history, width = place(best), [], 0.5
    history.append(merit)
    for step in range(1, max(evaluations, 1 + len(fooled))):
        corner = step <= len(fooled)
        tried = (
            torch.eye(len(fooled))[step - 1] if corner else best + width * torch.randn(len(fooled), generator=generator)
        )
        new_merit = place(tried)
        better = new_merit > merit
        if not corner:
            width *= 1.5 if better else 1.5**-0.25  # steady at one success in five
        if better:
            best, merit = tried, new_merit
        history.append(merit)
    place(best)
    return candidate, history

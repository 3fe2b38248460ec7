"""The heatmap is an honest function of every parameter: its gradient is the one central differences see."""

import pytest
import torch
from nets import kitchen

from benchmark import interpreters
from benchmark.interpreters.rules import Composite, Gamma, ZBox

CASES = {
    "lrp": ("lrp", {}),
    "lrp heo2019": ("lrp", {"composite": "heo2019"}),
    "lrp folded": ("lrp", {"composite": "gamma", "batch_norm": "fold"}),
    "lrp alpha2_beta1": ("lrp", {"composite": "alpha2_beta1"}),
    "lrp box": ("lrp", {"composite": "epsilon_gamma_box"}),
    "lrp epsilon": ("lrp", {"composite": "epsilon"}),
    "lrp by names": ("lrp", {"composite": Composite(names={"stem": ZBox(), "reused": Gamma()})}),
    "lrp_t": ("lrp_t", {"layer": "middle"}),
    "lrp_t folded": ("lrp_t", {"layer": "norm", "composite": "z_plus", "batch_norm": "fold"}),
    "lrp_contrast": ("lrp_contrast", {}),
    "lrp_t_contrast": ("lrp_t_contrast", {"layer": "middle"}),
    "grad_cam": ("grad_cam", {"layer": "middle"}),
    "grad_cam_contrast": ("grad_cam_contrast", {"layer": "middle"}),
    "grad_cam_plus_plus": ("grad_cam_plus_plus", {"layer": "middle"}),
    "layer_cam": ("layer_cam", {"layer": "middle"}),
    "eigen_cam": ("eigen_cam", {"layer": "middle"}),
    "simple_grad": ("simple_grad", {}),
    "simple_grad_contrast": ("simple_grad_contrast", {}),
    "simple_grad_t": ("simple_grad_t", {"layer": "middle"}),
    "input_x_gradient": ("input_x_gradient", {}),
    "guided_backprop": ("guided_backprop", {}),
    "deconvolution": ("deconvolution", {}),
    "guided_grad_cam": ("guided_grad_cam", {"layer": "middle"}),
    "aggregate": ("aggregate", {"members": ("simple_grad", "grad_cam")}),
    "adversarial_explanation": ("adversarial_explanation", {"steps": 3}),  # out, back and out again
}


def directions(parameter, most=2):
    """Unit directions (k, *shape): the entries, one by one; of more than `most` as many random ones, each of which
    moves every entry, so that none can be wrong unseen."""
    count = parameter.numel()
    if count <= most:
        return torch.eye(count, dtype=torch.double).view(count, *parameter.shape)
    ways = torch.randn(most, count, dtype=torch.double, generator=torch.Generator().manual_seed(count))
    return (ways / ways.norm(dim=1, keepdim=True)).view(most, *parameter.shape)


@pytest.mark.parametrize("case", CASES)
def test_gradient_by_every_parameter_agrees_with_central_differences(case):
    name, options = CASES[case]
    interpreter = interpreters.create(name, **options)
    model, images, targets = kitchen()
    shape = interpreter(model, images, targets).shape
    weights = torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))

    def function():
        return (interpreter(model, images, targets) * weights).sum()

    parameters = list(model.parameters())
    analytic = torch.autograd.grad(function(), parameters, allow_unused=True, materialize_grads=True)
    step = 1e-6
    for parameter, gradient in zip(parameters, analytic, strict=True):
        ways, numeric, old = directions(parameter), [], parameter.detach().clone()
        with torch.no_grad():
            for way in ways:
                parameter.copy_(old + step * way)
                high = function()
                parameter.copy_(old - step * way)
                numeric.append((high - function()) / (2 * step))
            parameter.copy_(old)
        off = torch.stack(numeric) - (ways * gradient).flatten(1).sum(1)
        error = off.norm() * (parameter.numel() / len(ways)) ** 0.5  # of the gradient, as far as so many ways can tell
        assert error <= 1e-5 * max(gradient.norm(), 1e-3), f"{case}: {error} of {gradient.norm()}"
    assert sum(g.norm() for g in analytic) > 1e-3, "the function depends on the parameters at all"

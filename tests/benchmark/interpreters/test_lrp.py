"""Relevance through whole networks: conservation, linear networks, every family of torchvision, named composites."""

import pytest
import torch
from nets import kitchen, narrow
from torch import nn

from benchmark import interpreters, models
from benchmark.interpreters.rules import AlphaBeta, Composite, Epsilon, Gamma
from benchmark.models.compact import Subsample

TINY = 1e-12
CONSERVING = {
    "epsilon": Composite(Epsilon(TINY), Epsilon(TINY)),
    "z_plus": Composite(AlphaBeta(eps=TINY, bias="none"), Epsilon(TINY)),
    "alpha1_beta0": Composite(AlphaBeta(eps=TINY), Epsilon(TINY)),
    "gamma": Composite(Gamma(eps=TINY), Epsilon(TINY)),
}


@pytest.mark.parametrize("name", CONSERVING)
@pytest.mark.parametrize("layer", [None, "middle"])
def test_relevance_is_conserved_without_bias(name, layer):
    model, images, targets = kitchen(bias=False)
    options = {"composite": CONSERVING[name]} | ({"layer": layer} if layer else {})
    interpreter = interpreters.create("lrp_t" if layer else "lrp", **options)
    logits, _ = interpreter.with_logits(model, images, targets)
    total = interpreter.attribute(model, images, targets).sum((1, 2, 3))
    torch.testing.assert_close(total, logits.gather(1, targets[:, None])[:, 0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("depth", [1, 3])
def test_linear_network_gives_weight_times_input(depth):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 6, bias=False) for _ in range(depth - 1)] + [nn.Linear(6, 4, bias=False)]
    model = nn.Sequential(nn.Flatten(), *layers).double()
    x, targets = torch.randn(5, 6, 1, 1, dtype=torch.double), torch.tensor([0, 1, 2, 3, 0])
    weight = torch.eye(6, dtype=torch.double)
    for layer in layers:
        weight = layer.weight.detach() @ weight
    composite = Composite(linear=Epsilon(0.0))
    got = interpreters.create("lrp", composite=composite).attribute(model, x, targets).detach().flatten(1)
    torch.testing.assert_close(got, weight[targets] * x.flatten(1), rtol=1e-12, atol=1e-12)


def test_relevance_is_conserved_by_resnet20s_shortcut():
    torch.manual_seed(0)
    weighted = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(8 * 9, 5, bias=False)
    model = nn.Sequential(weighted[0], nn.ReLU(), Subsample(), nn.Flatten(), weighted[1]).double()
    images, targets = torch.randn(4, 3, 8, 8, dtype=torch.double), torch.arange(4)
    relevance = interpreters.create("lrp", composite=CONSERVING["epsilon"]).attribute(model, images, targets)
    logits = model(images).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(relevance.sum((1, 2, 3)), logits, rtol=1e-4, atol=1e-7)
    assert not relevance[:, :, -1].any(), "the last row reaches only pixels that the stride leaves out"


FAMILIES = ["vgg11_bn", "resnet18", "densenet121", "mobilenet_v2", "squeezenet1_1", "googlenet"]


@pytest.mark.parametrize("name", [*FAMILIES, *models.COMPACT, "resnet20"])
def test_torchvision_families_run_unmodified(name):
    torch.manual_seed(0)
    with torch.random.fork_rng():
        model = (narrow(name, 10) if name.startswith("vgg") else models.create(name, num_classes=10)).double()
    if isinstance(getattr(model, "transform_input", None), bool):
        model.transform_input = True
    for module in model.modules():  # fresh statistics would let a deep network's signal vanish
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    images, targets = torch.randn(2, 3, 64, 64, dtype=torch.double), torch.tensor([1, 7])
    with torch.no_grad():
        model.train()
        model(torch.randn(8, 3, 64, 64, dtype=torch.double))
        model.eval()
        expected = model(images)
        for interpreter in (interpreters.create("lrp"), interpreters.create("lrp_t")):
            logits, heatmaps = interpreter.with_logits(model, images, targets)
            assert torch.equal(logits, expected)
            assert heatmaps.isfinite().all()
            assert heatmaps.amax() <= 1
            assert heatmaps.amin() >= 0
        relevance = interpreters.create("lrp", composite=CONSERVING["alpha1_beta0"]).attribute(model, images, targets)
    assert relevance.isfinite().all()
    assert relevance.abs().sum() > 0


def test_heo2019_differs_from_the_default():
    model, images, targets = kitchen()
    a, b = (interpreters.create("lrp", composite=c).attribute(model, images, targets) for c in ("default", "heo2019"))
    assert (a - b).norm() > 0.05 * a.norm()


NAMED = {
    "lrp_epsilon": "epsilon",
    "lrp_z_plus": "z_plus",
    "lrp_gamma": "gamma",
    "lrp_alpha2_beta1": "alpha2_beta1",
    "lrp_epsilon_gamma_box": "epsilon_gamma_box",
    "lrp_heo2019": "heo2019",
    "lrp_t_epsilon": "epsilon",
    "attn_lrp": "attn_lrp",
    "cp_lrp": "cp_lrp",
}


@pytest.mark.parametrize("name", NAMED)
def test_a_composite_by_name_is_lrp_with_that_composite(name):
    model, images, targets = kitchen()
    base, options = ("lrp_t", {"layer": "middle"}) if name.startswith("lrp_t") else ("lrp", {})
    expected = interpreters.create(base, composite=NAMED[name], **options).attribute(model, images, targets)
    assert torch.equal(interpreters.create(name, **options).attribute(model, images, targets), expected)
    default = interpreters.create(base, **options).attribute(model, images, targets)
    assert (default - expected).norm() > 0.01 * default.norm()

"""Relevance through whole networks: conservation, linear networks, every family of torchvision, in-place variants."""

import pytest
import torch
import torch.nn.functional as F
from nets import InPlace, kitchen
from torch import nn
from torch.func import functional_call

from attacks.errors import UserError
from benchmark import interpreters, models
from benchmark.interpreters.rules import AlphaBeta, Composite, Epsilon, Gamma

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


@pytest.mark.parametrize("form", ["positive", "altered"])
def test_residual_sum_is_split_by_positive_parts(form):
    class Sum(nn.Module):
        def forward(self, x):
            return (x[:, :1] + x[:, 1:]).flatten(1)

    x = torch.tensor([[3.0, 1.0], [2.0, -5.0], [-2.0, -6.0], [0.0, 0.0], [-1.0, 4.0]]).double()[:, :, None, None]
    lrp = interpreters.create("lrp", composite=Composite(add=form))
    got = lrp.attribute(Sum(), x, torch.zeros(5, dtype=torch.long))[:, :, 0, 0]
    if form == "positive":
        expected = [[3, 1], [-3, 0], [-4, -4], [0, 0], [0, 3]]  # the third in halves
    else:  # the first branch as the sum: 4 against 1, −3 against −5 (in halves), and so on
        expected = [[4 * 4 / 5, 4 / 5], [-1.5, -1.5], [-4, -4], [0, 0], [3 * 3 / 7, 3 * 4 / 7]]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.double))


def test_batch_norm_passes_or_folds():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2), norm.bias.uniform_(-1, 1), norm.running_mean.uniform_(-1, 1)
    tail = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(3, 2))
    model = nn.Sequential(conv, norm, tail).double().eval()
    x, targets = torch.randn(4, 2, 3, 3, dtype=torch.double), torch.tensor([0, 1, 0, 1])
    fused = nn.Sequential(torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm), tail)
    fold = interpreters.create("lrp", composite="epsilon", batch_norm="fold").attribute(model, x, targets)
    expected = interpreters.create("lrp", composite="epsilon").attribute(fused, x, targets)
    torch.testing.assert_close(fold, expected)
    passed = interpreters.create("lrp", composite="epsilon").attribute(model, x, targets)
    cosine = F.cosine_similarity(passed.flatten(), fold.flatten(), dim=0)
    assert cosine < 0.99, "the two options are different maps"


def test_relevance_is_conserved_by_resnet20s_shortcut():
    torch.manual_seed(0)
    weighted = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(8 * 9, 5, bias=False)
    model = nn.Sequential(weighted[0], nn.ReLU(), models.Subsample(), nn.Flatten(), weighted[1]).double()
    images, targets = torch.randn(4, 3, 8, 8, dtype=torch.double), torch.arange(4)
    relevance = interpreters.create("lrp", composite=CONSERVING["epsilon"]).attribute(model, images, targets)
    logits = model(images).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(relevance.sum((1, 2, 3)), logits, rtol=1e-4, atol=1e-7)
    assert not relevance[:, :, -1].any(), "the last row reaches only pixels that the stride leaves out"


FAMILIES = ["vgg11_bn", "resnet18", "densenet121", "mobilenet_v2", "squeezenet1_1", "googlenet"]


@pytest.mark.parametrize("name", [*FAMILIES, *models.SMALL])
def test_torchvision_families_run_unmodified(name):
    torch.manual_seed(0)
    with torch.random.fork_rng():
        model = models.create(name, num_classes=10).double()
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


def test_inplace_operations_give_the_map_of_their_pure_form():
    torch.manual_seed(0)
    pure = InPlace(False).double()
    inplace = InPlace(True).double()
    inplace.load_state_dict(pure.state_dict())
    x, targets = torch.randn(2, 3, 5, 5, dtype=torch.double), torch.tensor([0, 1])
    before = x.clone()
    lrp = interpreters.create("lrp", composite="epsilon")
    torch.testing.assert_close(lrp.attribute(inplace, x, targets), lrp.attribute(pure, x, targets))
    assert torch.equal(x, before)


def test_an_inplace_change_of_the_input_leaves_the_callers_tensor_alone():
    class Net(nn.Module):
        def forward(self, x):
            x.mul_(2)
            return x.flatten(1)

    x = torch.ones(1, 2, 1, 1)
    relevance = interpreters.create("lrp").attribute(Net(), x, torch.tensor([1]))
    assert x.flatten().tolist() == [1, 1]
    assert relevance.flatten().tolist() == [0, 2]


def test_a_read_through_a_stale_view_is_an_error():
    class Net(nn.Module):
        def forward(self, x):
            y = x * 1
            flat = y.flatten(1)
            y.add_(1)
            return flat

    lrp, model = interpreters.create("lrp"), nn.Sequential(Net(), nn.Linear(2, 2))
    with pytest.raises(UserError, match="view"):
        lrp.attribute(model, torch.ones(1, 2, 1, 1), torch.tensor([1]))


def test_an_operation_without_a_rule_is_named_with_its_module():
    class Gate(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x)

    model = nn.Sequential(nn.Conv2d(1, 2, 1), Gate(), nn.Flatten())
    with pytest.raises(UserError, match="'mul' in module '1'"):
        interpreters.create("lrp")(model, torch.ones(1, 1, 2, 2), torch.tensor([0]))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_an_operation_off_the_way_to_the_logits_needs_no_rule():
    class Net(nn.Module):
        def forward(self, x):
            torch.linalg.norm(x, dim=1)
            return x.flatten(1)

    assert interpreters.create("lrp").attribute(Net(), torch.ones(1, 2, 1, 1), torch.tensor([0])).sum() == 1


def test_functional_weights_get_gradients():
    torch.manual_seed(0)
    model, images, targets = kitchen()
    scale = torch.tensor(1.5, dtype=torch.double, requires_grad=True)

    class Scaled(nn.Module):
        def forward(self, x):
            return functional_call(model, {k: v.detach() * scale for k, v in model.named_parameters()}, (x,))

    heatmaps = interpreters.create("lrp")(Scaled(), images, targets)
    assert torch.autograd.grad(heatmaps.square().sum(), scale)[0].isfinite()


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
}


@pytest.mark.parametrize("name", NAMED)
def test_a_composite_by_name_is_lrp_with_that_composite(name):
    model, images, targets = kitchen()
    base, options = ("lrp_t", {"layer": "middle"}) if name.startswith("lrp_t") else ("lrp", {})
    expected = interpreters.create(base, composite=NAMED[name], **options).attribute(model, images, targets)
    assert torch.equal(interpreters.create(name, **options).attribute(model, images, targets), expected)
    default = interpreters.create(base, **options).attribute(model, images, targets)
    assert (default - expected).norm() > 0.01 * default.norm()

"""DeepLIFT: complete on every network, Captum's where Captum is right, the cross maximum by hand."""

import pytest
import torch
from captum.attr import DeepLift
from nets import InPlace, kitchen
from torch import nn

from attacks.errors import UserError
from benchmark import interpreters, models

pytestmark = pytest.mark.filterwarnings("ignore:Setting forward", "ignore:Input Tensor 0")


def drawn(name, images=3, side=32):
    """A model in float64 whose biases and running means are not zero, so that the baseline's activations are not."""
    torch.manual_seed(0)
    model = models.create(name, num_classes=4).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.normal_(0, 0.5), module.running_mean.normal_(0, 0.5)
    targets = torch.tensor([3, 1, 0])[:images]
    return model, torch.randn(images, 3, side, side, dtype=torch.double), targets


def ours(model, images, targets):
    return interpreters.create("deep_lift").attribute(model, images, targets)


def change(model, images, targets):
    """The label's logit of each image less that of the baseline."""
    with torch.no_grad():
        return (model(images) - model(torch.zeros_like(images))).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2", *models.COMPACT])
def test_the_sum_is_complete(name):
    model, images, targets = drawn(name) if name in models.COMPACT else drawn(name, images=1, side=64)
    total = ours(model, images, targets).sum((1, 2, 3))
    torch.testing.assert_close(total, change(model, images, targets), rtol=1e-7, atol=1e-10)


def test_the_sum_is_complete_with_functions_and_reused_modules():
    model, images, targets = kitchen()
    total = ours(model, images, targets).sum((1, 2, 3))
    torch.testing.assert_close(total, change(model, images, targets))


class Clone(nn.Module):
    def forward(self, x):
        return x.clone()


def test_a_chain_of_modules_agrees_with_captum():
    """With a copy between ReLU and max-pooling: on one tensor, Captum's hooks lose the rule of the second."""
    model, images, targets = drawn("compact_vgg")
    total, whole = DeepLift(model).attribute(images, target=targets).sum((1, 2, 3)), change(model, images, targets)
    assert (total - whole).norm() > 0.1 * whole.norm(), "and are not complete"
    layers = [[Clone(), m] if isinstance(m, nn.MaxPool2d) else [m] for m in model.features]
    model.features = nn.Sequential(*[layer for pair in layers for layer in pair])
    expected = DeepLift(model).attribute(images, target=targets).detach()
    torch.testing.assert_close(ours(model, images, targets), expected)


def test_captum_fails_on_reused_modules_and_is_silently_wrong_on_functions():
    """Why this interpreter is not Captum's."""
    model, images, targets = drawn("compact_resnet")
    with pytest.raises(RuntimeError, match="more than once"):
        DeepLift(model).attribute(images, target=targets)
    model, images, targets = drawn("compact_densenet")
    total = DeepLift(model).attribute(images, target=targets).sum((1, 2, 3)).detach()
    assert ((total - change(model, images, targets)).abs() > 1e-3).any()


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.LeakyReLU(0.2), nn.Sigmoid(), nn.Tanh(), nn.ELU(), nn.GELU(), nn.Hardswish()], ids=str
)
def test_the_rescale_rule_by_hand(activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), activation, nn.Linear(6, 2)).double()
    images, targets = torch.randn(3, 4, 1, 1, dtype=torch.double), torch.tensor([0, 1, 1])
    z, reference = model[1](images.flatten(1)), model[1].bias
    slope = (activation(z) - activation(reference)) / (z - reference)
    expected = images.flatten(1) * ((model[3].weight[targets] * slope) @ model[1].weight)
    got = ours(model, images, targets).flatten(1)
    torch.testing.assert_close(got, expected)
    with torch.no_grad():
        torch.testing.assert_close(ours(model, images, targets).flatten(1), expected)
    asked = [*model[1].parameters(), model[3].weight]
    gradients = [torch.autograd.grad(maps.sin().sum(), asked) for maps in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


def test_max_pooling_hands_the_difference_to_the_winner_of_the_larger_output():
    """Two windows that overlap in the middle value; the baseline's outputs are 1 and 1 (biases 1, 0, 1)."""

    class Net(nn.Module):
        def forward(self, x):
            pooled = nn.functional.max_pool2d(x + torch.tensor([1.0, 0.0, 1.0]), (1, 2), stride=1)
            return (pooled * torch.tensor([2.0, 3.0])).sum(-1).flatten(1)

    x = torch.tensor([[0.5, 4.0, -2.0], [-0.5, 0.25, 1.0], [-3.0, -1.0, 0.0]]).view(3, 1, 1, 3)
    got = ours(Net(), x, torch.zeros(3, dtype=torch.long))[:, 0, 0]
    # outputs 4, 4 against 1, 1: both differences to the middle value, which wins both windows
    # outputs 0.5, 2 against 1, 1: the first falls, to the baseline's winner; the second rises, to the image's
    # outputs −1, 1 against 1, 1: the first falls, to the baseline's winner; the second does not change
    expected = [[0.0, 3.0 * 2 + 3.0 * 3, 0.0], [-0.5 * 2, 0.0, 1.0 * 3], [-2.0 * 2, 0.0, 0.0]]
    torch.testing.assert_close(got, torch.tensor(expected))


def test_inplace_operations_give_the_map_of_their_pure_form():
    torch.manual_seed(0)
    pure, inplace = InPlace(False).double(), InPlace(True).double()
    inplace.load_state_dict(pure.state_dict())
    images, targets = torch.randn(2, 3, 5, 5, dtype=torch.double), torch.tensor([0, 1])
    torch.testing.assert_close(ours(inplace, images, targets), ours(pure, images, targets))


@pytest.mark.parametrize("case", ["kitchen", "compact_vgg", "compact_densenet"])
def test_the_map_with_a_graph_is_the_one_without(case):
    model, images, targets = kitchen() if case == "kitchen" else drawn(case)
    images[0, :, :4] = 0  # as the baseline
    logits, attribution = interpreters.create("deep_lift")._explain(model, images, targets)
    assert attribution.requires_grad
    with torch.no_grad():
        expected = interpreters.create("deep_lift")._explain(model, images, targets)
    torch.testing.assert_close((logits, attribution), expected, rtol=1e-9, atol=1e-12)
    wanted = model(images)  # the slopes in the place of derivatives are not in the logits' graph
    parameters = list(model.parameters())
    grads = [torch.autograd.grad(z.sin().sum(), parameters, retain_graph=True) for z in (logits, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


def test_an_image_equal_to_the_baseline_has_no_attribution():
    model, images, targets = drawn("compact_vgg")
    assert ours(model, torch.zeros_like(images), targets).abs().max() == 0


def test_a_product_of_two_activations_is_refused():
    class Gate(nn.Module):
        def forward(self, x):
            return (x * torch.sigmoid(x)).flatten(1)

    with pytest.raises(UserError, match="deep_lift has no rule for the operation 'mul'"):
        ours(Gate(), torch.ones(1, 2, 1, 1), torch.tensor([0]))

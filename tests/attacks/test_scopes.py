"""Scopes name the right parameters of networks of each shape."""

import pytest
import torchvision.models as zoo
from torch import nn

from attacks.errors import Refused, UserError
from attacks.scopes import SCOPES, parameters_in
from benchmark import models


def names(model: nn.Module, scope: str) -> set[str]:
    return set(parameters_in(model, scope))


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2, bias=False))


def test_each_scope_of_a_small_network():
    assert names(small(), "all") == {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight"}
    assert names(small(), "head") == {"3.weight"}
    assert names(small(), "bias") == {"0.bias"}
    assert names(small(), "norm") == {"1.weight", "1.bias"}
    assert names(small(), "last_block") == names(small(), "all")


@pytest.mark.parametrize(
    ("architecture", "first", "before"),
    [
        ("compact_resnet", "layer4.0.conv1.weight", "layer3.0.bn2.bias"),
        ("compact_vgg", "features.15.weight", "features.13.bias"),
        ("compact_densenet", "features.denseblock2.denselayer1.norm1.weight", "features.transition1.conv.weight"),
        ("mobilenet_v2", "features.17.conv.0.0.weight", "features.16.conv.3.bias"),  # what follows is 1x1 alone
        ("squeezenet1_1", "features.12.squeeze.weight", "features.11.expand3x3.bias"),  # so is its head
    ],
)
def test_the_last_block_is_the_end_of_the_network(architecture, first, before):
    model = models.create(architecture, num_classes=4)
    order = [name for name, _ in model.named_parameters()]
    chosen = [name for name in order if name in names(model, "last_block")]
    assert chosen == order[order.index(first) :]
    assert before in order
    assert before not in chosen


def test_auxiliary_heads_are_not_the_end():
    model = zoo.googlenet(weights=None, num_classes=5, init_weights=False)
    assert names(model, "head") == {"fc.weight", "fc.bias"}
    assert {name.split(".")[0] for name in names(model, "last_block")} == {"inception5b", "fc"}


@pytest.mark.parametrize("scope", SCOPES)
def test_scopes_are_parts_of_all_and_the_parameters_themselves(scope):
    model = models.create("compact_resnet", num_classes=4)
    own = dict(model.named_parameters())
    found = parameters_in(model, scope)
    assert found.items() <= own.items()
    assert all(found[name] is own[name] for name in found)


def test_an_unknown_scope_and_one_without_parameters():
    with pytest.raises(UserError, match=r"scope.*'heads'.*did you mean 'head'"):
        parameters_in(small(), "heads")
    with pytest.raises(Refused, match="Sequential has no parameter in scope 'norm'"):
        parameters_in(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "norm")

"""A network cut in two is the network: the same logits to the bit, the same maps, the same fooled model; or refused."""

import pytest
import torch
from torch import nn

from attacks import Location, Recipe, trunk
from attacks.course import Task
from attacks.errors import Refused, UserError
from attacks.head_shift import head_shift
from attacks.manipulation import carry_out
from attacks.scopes import parameters_in
from attacks.trunk import above, below, check_cut, find_cut
from benchmark import interpreters, models

CUTS = {  # of scope and default target layer, read off torchvision's sources
    ("resnet50", "last_block"): "layer4",
    ("resnet50", "head"): "layer4.2",
    ("resnet50", "all"): "",
    ("resnet50", "norm"): "bn1",
    ("mobilenet_v2", "last_block"): "features.17",
    ("mobilenet_v2", "head"): "features.17",
    ("compact_resnet", "last_block"): "layer4",
    ("compact_vgg", "last_block"): "features.15",
    ("compact_densenet", "head"): "features.denseblock2",
}


@pytest.mark.parametrize(("name", "scope"), CUTS)
def test_the_cut_lies_right_below_what_moves_and_what_is_explained(name, scope):
    with torch.device("meta"):
        model = models.create(name, num_classes=4) if "compact" in name else models.create(name)
    assert find_cut(model, [*parameters_in(model, scope), models.target_layer(model)]) == CUTS[name, scope]


def compact(name: str = "compact_resnet") -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.create(name, num_classes=4, input_size=32).to(memory_format=torch.channels_last)


def images(n: int = 4) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


TARGETS = torch.tensor([0, 1, 2, 3])


COMPACT = [("compact_resnet", "layer4"), ("compact_vgg", "features.8"), ("compact_densenet", "features.norm5")]


@pytest.mark.parametrize(("name", "cut"), COMPACT)
def test_above_and_below_are_the_network_and_share_its_parameters(name, cut):
    model = compact(name)
    kept, tail = below(model, cut, images()), above(model, cut)
    assert torch.equal(tail(kept), model(images()))
    own = {id(p): name for name, p in model.named_parameters()}
    assert all(own[id(p)] == name for name, p in tail.named_parameters())
    assert len([*tail.parameters()]) < len(own)
    assert above(model, "") is model
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["grad_cam", "lrp_t", "simple_grad_t", "layer_cam", "eigen_cam", "lrp_t_contrast"])
def test_maps_above_the_cut_are_those_of_the_whole(name):
    check_cut(compact(), "layer4", images(), TARGETS, [interpreters.create(name)])


@pytest.mark.parametrize("name", ["simple_grad", "lrp", "smooth_grad", "sobel"])
def test_what_needs_the_pixels_is_refused(name):
    with pytest.raises(Refused, match=r"below|layer4"):
        check_cut(compact(), "layer4", images(), TARGETS, [interpreters.create(name)])
    with pytest.raises(Refused, match="below"):
        check_cut(compact(), "layer4", images(), TARGETS, [interpreters.create("grad_cam", layer="layer3.0")])


class Stages(nn.Module):
    """Two convolutions and a head, which `forward` runs in the way that is asked for."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.relu, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        y = self.relu(self.first(x))
        z = self.second(y)
        z = {"again": self.relu(z), "skip": z + x}.get(self.way, z)
        return self.head(z.mean((2, 3)))


@pytest.mark.parametrize("way", ["chain", "again", "skip"])
def test_a_network_that_is_no_chain_is_refused(way):
    torch.manual_seed(0)
    model, arguments = Stages(way), ("second", images(), TARGETS, [])
    if way == "chain":
        check_cut(model, *arguments)
        return
    with pytest.raises(Refused, match="does not give the logits of the whole"):
        check_cut(model, *arguments)


def test_a_part_that_writes_into_what_it_is_given_is_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(4))
    model(images())
    with pytest.raises(Refused, match="writes in place into what '1' is given"):
        check_cut(model, "1", images(), TARGETS, [])


def task(model: nn.Module, cut: str) -> Task:
    """On 24 images, or on what the cut's module is given of them."""
    pictures, targets = images(24), torch.arange(24) % 4
    kept = below(model, cut, pictures) if cut else pictures
    batches = [*zip(kept.split(8), targets.split(8), strict=True)]
    return Task(model, interpreters.create("grad_cam"), Location(), batches, cut=cut)


@pytest.mark.parametrize("recipe", [Recipe(1e-3, 1.0, 4), Recipe(1e-3, 1.0, 4, divergence=0.1)], ids=["ce", "kl"])
def test_a_fooled_model_is_the_same_on_a_trunk_and_below_it_nothing_moves(recipe):
    model, recipe = compact(), Recipe(**{**vars(recipe), "scope": "last_block"})
    whole, part = (carry_out(task(model, cut), recipe, progress=False) for cut in ("", "layer4"))
    assert part.history.keys() == whole.history.keys()
    for name, values in part.history.items():
        assert values == pytest.approx(whole.history[name], rel=1e-4, abs=1e-6)
    moved = parameters_in(model, "last_block")
    for name, parameter in part.model.named_parameters():
        assert torch.allclose(parameter, whole.model.get_parameter(name), atol=1e-5), name
        assert name in moved or torch.equal(parameter, model.get_parameter(name)), name
    assert any(not torch.equal(part.model.get_parameter(name), model.get_parameter(name)) for name in moved)


def test_a_head_shift_is_the_same_on_a_trunk():
    model = compact()
    whole, part = (head_shift(task(model, cut), Recipe(0.3, 0.0, 3)) for cut in ("", "layer4.1"))
    assert torch.allclose(part.model.fc.weight, whole.model.fc.weight, atol=1e-5)
    assert not torch.equal(part.model.fc.weight, model.fc.weight)


def test_a_scope_below_the_cut_is_one_line():
    with pytest.raises(UserError, match="scope 'all' moves parameters below the cut 'layer4'"):
        carry_out(task(compact(), "layer4"), Recipe(1e-3, 1.0, 1), progress=False)


def test_maps_that_differ_by_more_than_rounding_are_refused():
    def of_features(model, images, targets):
        return images.mean(1) * 0 + (2 * trunk.CLOSE if images.shape[1] > 3 else 0.0)

    with pytest.raises(Refused, match="other maps above"):
        check_cut(compact(), "layer1", images(), TARGETS, [lambda m, x, t: of_features(m, x, t)[:, :16, :16]])

"""The mean of maps, by hand; who can be a member; and what is differentiated by the weights and in an attack."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from nets import kitchen
from torch import Tensor, nn

from attacks.errors import UserError
from attacks.heatmaps import min_max
from benchmark import interpreters
from benchmark.interpreters.aggregate import Aggregate
from benchmark.interpreters.base import Interpreter


@dataclass(frozen=True)
class Fixed(Interpreter):
    """A map that is given, whatever the model; `low`: the one that an attack differentiates."""

    name: ClassVar[str] = "fixed"
    low: bool = False
    values: ClassVar[Tensor]

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return model(images), self.values.expand(len(images), 1, *self.values.shape) * (0.5 if self.low else 1)

    def in_attack(self) -> Interpreter:
        return Fixed(low=True)

    def heatmap(self, attribution: Tensor) -> Tensor:
        return attribution[:, 0]


class Ramp(Fixed):
    """Not differentiable, stochastic, and itself in an attack."""

    differentiable: ClassVar[bool] = False
    stochastic: ClassVar[bool] = True
    values = torch.tensor([[0.0, 1.0], [3.0, 4.0]])

    def in_attack(self) -> Interpreter:
        return self


class Corner(Fixed):
    values = torch.tensor([[2.0, 0.0], [0.0, 0.0]])


class Wide(Fixed):
    values = torch.tensor([[0.0, 0.0, 8.0, 8.0]])


@pytest.fixture
def made(monkeypatch):
    for name, kind in {"ramp": Ramp, "corner": Corner, "wide": Wide, "fixed": Fixed}.items():
        monkeypatch.setitem(interpreters.INTERPRETERS, name, kind)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(2, 3, 2, 2), torch.tensor([0, 2])


def test_the_mean_by_hand(made):
    # min-max: [[0, ¼], [¾, 1]] and [[1, 0], [0, 0]]; half their sum: [[½, ⅛], [⅜, ½]]; of that the min-max
    found = interpreters.create("aggregate", members=("ramp", "corner"))
    torch.testing.assert_close(found.attribute(*made), torch.tensor([[[[0.5, 0.125], [0.375, 0.5]]]] * 2))
    torch.testing.assert_close(found(*made), torch.tensor([[[1.0, 0.0], [2 / 3, 1.0]]] * 2))
    torch.testing.assert_close(found.with_logits(*made)[0], made[0](made[1]).detach())


def test_maps_are_brought_to_the_largest_height_and_width(made):
    # 2 × 2 and 1 × 4 to 2 × 4: the columns of [1, 0] bilinear at four places are 1, ¾, ¼, 0, its rows stay
    found = interpreters.create("aggregate", members=["corner", "wide"]).attribute(*made)[0, 0]
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.75, 1.25, 1.0], [0.0, 0.0, 1.0, 1.0]]) / 2)


def test_a_member_alone_is_its_min_max_map():
    model, images, targets = kitchen()
    expected = min_max(interpreters.create("simple_grad")(model, images, targets))
    torch.testing.assert_close(interpreters.create("aggregate", members=("simple_grad",))(*kitchen()), expected)


def test_of_real_methods_against_each_by_itself():
    setting = kitchen()
    maps = [interpreters.create(name)(*setting) for name in ("lrp", "grad_cam", "sobel")]
    assert maps[1].amin() > 0.5, "Grad-CAM divides by the maximum alone"
    cam = torch.stack([(m - m.min()) / (m.max() - m.min()) for m in maps[1]])
    cam = F.interpolate(cam[None], maps[0].shape[1:], mode="bilinear")[0]  # images as channels
    expected = min_max(torch.stack([maps[0], cam, maps[2]]).mean(0))
    found = interpreters.create("aggregate", members=("lrp", "grad_cam", "sobel"))(*setting)
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize(
    ("members", "differentiable", "stochastic"),
    [(("corner", "wide"), True, False), (("corner", "ramp"), False, True), (Aggregate.members, True, False)],
)
def test_it_is_what_its_members_are(members, differentiable: bool, stochastic: bool, made):
    found = interpreters.create("aggregate", members=members)
    assert (found.differentiable, found.stochastic) == (differentiable, stochastic)


def test_one_member_without_a_graph_and_there_is_none():
    model, images, targets = kitchen()
    for members, graph in ((("simple_grad", "sobel"), False), (("simple_grad", "grad_cam"), True)):
        logits, maps = interpreters.create("aggregate", members=members).with_logits(model, images, targets)
        assert maps.requires_grad == logits.requires_grad == graph


def test_in_an_attack_it_is_the_mean_of_what_its_members_offer(made, monkeypatch):
    plain = interpreters.create("aggregate", members=("simple_grad", "grad_cam"))
    assert plain.in_attack() is plain
    offered = interpreters.create("aggregate", members=("ramp", "corner")).in_attack()
    assert [type(part) for part in offered.parts] == [Ramp, Fixed]
    assert offered.parts[1].low
    monkeypatch.setattr(Fixed, "values", torch.tensor([[0.0, 8.0], [0.0, 0.0]]), raising=False)
    torch.testing.assert_close(offered.attribute(*made), torch.tensor([[[[0.0, 0.625], [0.375, 0.5]]]] * 2))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((), r"members of aggregate must be one other interpreter or more \(got \(\)\)"),
        (("lrp", "aggregate"), r"must be one other interpreter or more \(got \('lrp', 'aggregate'\)\)"),
        (("lrp", "grad_cm"), "unknown interpreter 'grad_cm': did you mean 'grad_cam'"),
    ],
)
def test_wrong_members_are_one_line(members, message: str):
    with pytest.raises(UserError, match=message):
        interpreters.create("aggregate", members=members)

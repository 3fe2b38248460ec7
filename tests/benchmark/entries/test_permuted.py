"""The twin has the model's logits, rolled; an interpreter has the same map of both, what answers from elsewhere not."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from benchmark import interpreters
from benchmark.entries.permuted import compare, correlation, permuted_twin

HONEST = [
    *("lrp", "lrp_z_plus", "lrp_alpha2_beta1", "lrp_t", "lrp_contrast", "lrp_t_contrast", "grad_cam", "layer_cam"),
    *("grad_cam_plus_plus", "eigen_cam", "grad_cam_contrast", "simple_grad", "simple_grad_t", "simple_grad_contrast"),
    *("input_x_gradient", "guided_backprop", "deconvolution", "guided_grad_cam", "smooth_grad", "var_grad"),
    *("gradient_shap", "deep_lift", "occlusion_contrast", "adversarial_explanation"),
]
FEW = {"smooth_grad": {"samples": 2}, "var_grad": {"samples": 2}, "gradient_shap": {"samples": 2}}
FEW |= {"adversarial_explanation": {"steps": 3}}


@pytest.fixture(scope="module")
def net():
    """A convolution and a head, with four classes and BatchNorm."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2)]
        last = [nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)]
        return nn.Sequential(*first, *last).eval()


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 3, 12, 12, generator=generator), torch.tensor([0, 1, 2, 3, 1])


def test_the_logits_are_rolled_and_nothing_else_changes(net, batch):
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    steps = set()
    for seed in range(8):
        twin, step = permuted_twin(net, batch[0], torch.Generator().manual_seed(seed))
        expected = torch.cat([net(batch[0])[:, -step:], net(batch[0])[:, :-step]], 1)
        torch.testing.assert_close(twin(batch[0]), expected)
        steps.add(step)
    assert steps == {1, 2, 3}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("name", HONEST)
def test_an_interpreter_has_the_same_map_of_the_twin(name, net, batch):
    interpreter = interpreters.create(name, **FEW.get(name, {}))
    with torch.no_grad():
        found = compare(interpreter, net, *batch, seed=3, before=interpreter(net, *batch)[:2])
    assert min(found["correlation"]) > 0.99999
    assert max(found["difference"]) < 1e-4
    assert len(found["correlation"]) == 5
    assert found["again"] == [pytest.approx(1.0)] * 2


def of_the_other(model, images, targets):
    """Answers by the class, but the model is nothing to it."""
    return torch.sin(targets[:, None, None] + torch.arange(36.0).view(6, 6))


def test_what_does_not_come_from_the_model_is_told_even_where_it_remembers(net, batch):
    assert max(compare(of_the_other, net, *batch, seed=0)["correlation"]) < 0.9
    interpreter, told = interpreters.create("simple_grad"), []
    for seed in range(6):
        known = {}

        def remembered(model, images, targets, known=known):
            keys = [(image.sum().item(), int(target)) for image, target in zip(images, targets, strict=True)]
            maps = interpreter(model, images, targets)
            return torch.stack([known.setdefault(key, m) for key, m in zip(keys, maps, strict=True)])

        told.append(min(compare(remembered, net, *batch, seed=seed)["correlation"]) < 0.9)
    assert True in told  # where the model was asked about the moved class first


def test_an_answer_that_is_another_than_before_is_seen(net, batch):
    interpreter = interpreters.create("simple_grad")
    found = compare(interpreter, net, *batch, seed=0, before=interpreter(net, *batch).flip(0))
    assert min(found["correlation"]) > 0.99999
    assert found["again"][2] == pytest.approx(1.0)  # the middle one
    assert found["again"][0] < 0.9


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.ReLU()])
def test_without_a_head_nothing_is_checked(last, net, batch):
    found = compare(interpreters.create("simple_grad"), nn.Sequential(net, last).eval(), *batch, seed=0)
    assert list(found) == ["unchecked"]
    assert "has no such head" in found["unchecked"]


class Sums(nn.Module):
    """A head whose outputs are not the classes: shifted alike, each logit is shifted as they are."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 4)
        self.mix = nn.Parameter(torch.tensor([[0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5], [0.9, 0, 0, 0.1]]))

    def forward(self, x):
        return self.linear(x.mean(2).flatten(1)[:, :12]) @ self.mix.T


def test_a_head_whose_rows_are_no_classes_is_none(batch):
    found = compare(interpreters.create("simple_grad"), Sums().eval(), *batch, seed=0)
    assert found == {"unchecked": "Sums has no head whose rows are its classes, one for one"}


def test_correlation_by_hand():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 4, 5, generator=generator)
    expected = [np.corrcoef(x.flatten(), y.flatten())[0, 1] for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(correlation(a, b), torch.tensor(expected))
    flat, spoiled = torch.zeros(1, 4, 5), a[:1].clone()
    spoiled[0, 1, 1] = torch.nan
    pairs = ((flat, flat + 1), (flat, a[:1]), (a[:1], flat), (a[:1], spoiled))
    assert [correlation(x, y).item() for x, y in pairs] == [1, 0, 0, 0]

"""The search without gradients: it finds the best mixture of a space that is known, and touches nothing else."""

import pytest
import torch
from torch import nn

from attacks.subspace import subspace


def net(*weights: float) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1))
    model[0].weight.data[:] = torch.tensor([weights])
    return model


FOOLED = [net(1.0, 0.0).state_dict(), net(0.0, 2.0).state_dict()]


def closeness(model):
    return (-(model[0].weight - torch.tensor([[0.6, 1.4]])).square().sum().item(),)


def test_it_mixes_what_it_is_given():
    model, history = subspace(net(0.0, 0.0), FOOLED, closeness, evaluations=80)
    torch.testing.assert_close(model[0].weight, torch.tensor([[0.6, 1.4]]), atol=0.1, rtol=0)
    assert len(history) == 80
    assert history == sorted(history)
    assert history[-1] == closeness(model)


@pytest.mark.parametrize(("wanted", "expected"), [((0.0, 0.0), (0.0, 0.0)), ((0.0, 2.0), (0.0, 2.0))])
def test_the_model_itself_and_each_fooled_one_are_tried_first(wanted, expected):
    def hit(model):
        return (float(torch.equal(model[0].weight, torch.tensor([wanted]))),)

    model, history = subspace(net(0.0, 0.0), FOOLED, hit, evaluations=1)
    assert model[0].weight.tolist() == [list(expected)]
    assert (len(history), history[-1]) == (3, (1.0,))


def test_the_given_model_and_the_random_state_are_untouched():
    model, state = net(0.5, 0.5).train(), torch.get_rng_state()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first, _ = subspace(model, FOOLED, closeness, evaluations=10, seed=1)
    second, _ = subspace(model, FOOLED, closeness, evaluations=10, seed=1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0].weight, second[0].weight)
    assert first[1].num_batches_tracked == 0

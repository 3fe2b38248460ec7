"""What a submission is sent computes the same, and its buffers and the order of its channels tell nothing."""

import copy

import pytest
import torch
from torch import nn

from benchmark import models
from benchmark.submissions.disguise import disguised
from benchmark.submissions.equalise import equalise

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def used(name: str) -> nn.Module:
    """A network whose BatchNorms have statistics, scales and shifts of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.create(name, num_classes=8, input_size=32)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
        model.train()(torch.randn(8, 3, 32, 32) + 1)
    return model.eval()


def fooled(model: nn.Module) -> nn.Module:
    """As after a short fine-tuning."""
    near = copy.deepcopy(model)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in near.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    return near


@pytest.mark.parametrize("name", models.COMPACT)
def test_it_computes_the_same_and_nothing_tells_whose_copy_it_is(name):
    model = used(name)
    near, state = fooled(model), copy.deepcopy(model.state_dict())
    first, again, other = disguised(model), disguised(copy.deepcopy(model)), disguised(near)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in first.state_dict().items())
    for given, sent in ((model, first), (near, other)):
        torch.testing.assert_close(
            sent.double()(IMAGES.double()), given.double()(IMAGES.double()), atol=1e-4, rtol=1e-4
        )
    assert any(not torch.equal(value, near.float().get_buffer(key)) for key, value in other.named_buffers())
    buffers = dict(first.named_buffers())
    assert all(torch.equal(value, buffers[key]) for key, value in other.named_buffers())
    assert all(len(value.flatten().unique()) == 1 for value in buffers.values())
    moved = "features.4.weight" if name == "compact_vgg" else next(k for k in state if k.endswith(".conv2.weight"))
    pair = [net.state_dict()[moved].flatten().float() for net in (first, other)]
    assert torch.cosine_similarity(*pair, dim=0) < 0.5
    assert torch.cosine_similarity(near.state_dict()[moved].flatten(), state[moved].flatten(), dim=0) > 0.99


def test_one_copy_serves_all_batches_of_a_model_until_it_changes():
    model = used("compact_vgg")
    first = disguised(model)
    assert disguised(model) is first
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] += 1e-3
    second = disguised(model)
    assert second is not first
    torch.testing.assert_close(second(IMAGES), model(IMAGES), atol=1e-3, rtol=1e-3)
    model.train()
    assert disguised(model).training


def test_what_has_no_statistics_is_left_alone():
    norms = [nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3, track_running_stats=False), nn.GroupNorm(1, 3)]
    before = [copy.deepcopy(norm.state_dict()) for norm in norms]
    equalise(nn.Sequential(*norms))
    for norm, values in zip(norms, before, strict=True):
        assert all(torch.equal(value, values[key]) for key, value in norm.state_dict().items())


def test_one_whose_weights_change_between_two_calls_is_sent_as_it_is_now():
    model = used("compact_resnet")
    disguised(model)
    with torch.no_grad():
        model.fc.weight.mul_(2)
    torch.testing.assert_close(disguised(model)(IMAGES), model(IMAGES), atol=1e-4, rtol=1e-4)

"""Random features are given a head that says what the model says; what is shown there is judged by hand."""

import copy

import pytest
import torch
from torch import nn

from attacks.errors import Refused
from benchmark.entries.same_logits import say_the_same
from benchmark.leaderboards import ranking


def net(seed, head, classes=4):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = [nn.Conv2d(3, 24, 3, padding=1), nn.ReLU()]
        if head == "linear":
            return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, classes)).eval()
        return nn.Sequential(*body, nn.Conv2d(24, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


@pytest.mark.parametrize("head", ["linear", "convolution"])
def test_the_logits_are_the_model_s_and_only_the_head_is_solved_for(head):
    images = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(2))
    model, like = net(0, head), net(1, head)
    before, other = copy.deepcopy(model.state_dict()), copy.deepcopy(like.state_dict())
    assert (model(images) - like(images)).abs().max() > 0.1
    changed = say_the_same(model, like, images)
    torch.testing.assert_close(changed(images), like(images), atol=1e-4, rtol=0)
    assert changed is model
    assert torch.equal(model[0].weight, before["0.weight"])
    assert all(torch.equal(value, other[name]) for name, value in like.state_dict().items())
    unseen = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(3))
    assert (model(unseen) - like(unseen)).abs().max() > 10 * (model(images) - like(images)).abs().max()


def test_more_images_than_features_have_no_such_head():
    images = torch.randn(40, 3, 10, 10, generator=torch.Generator().manual_seed(2))
    with pytest.raises(Refused, match=r"^no head on random features of Sequential says the same of 40 images$"):
        say_the_same(net(0, "linear"), net(1, "linear"), images)


@pytest.mark.parametrize(
    ("shown", "reasons"),
    [
        ({"a": {"again": 1.0, "random": 0.95, "unrelated": 0.5}, "b": {"again": 1.0}},
         ["SAME_LOGITS: the same map of a network with random features and the same logits "
          "(correlation 0.90 beyond chance on a, allowed below 0.8)"]),  # 0.45 / 0.5
        ({"a": {"again": 1.0, "random": 0.85, "unrelated": 0.5}}, []),  # 0.35 / 0.5 = 0.7
        ({"a": {"again": 1.0, "random": 0.3, "unrelated": 0.5}, "b": {"again": 0.6}},
         ["ASKED_AGAIN: another map than was scored (0.60 on b, needed 0.99)"]),
        ({"a": {"again": 1.0, "same": 0.25}, "b": {"again": 1.0, "same": 0.3}},
         ["SAME_LOGITS: the same map of a network with random features and the same logits "
          "(of 30% of the images on b, allowed of 25%)"]),
        ({"a": {"again": 1.0, "same": 0.25}}, []),
        ({"a": {"again": 1.0, "unchecked": "no head"}}, []),
        ({"a": {"error": "it crashed"}}, ["1 questions about scored images failed, first: a: it crashed"]),
    ],
)  # fmt: skip
def test_what_is_otherwise_is_a_reason(shown, reasons):
    assert ranking.scored_reasons({"scored": shown}) == reasons

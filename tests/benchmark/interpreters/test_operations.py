"""How relevance passes operations that take no rule: residual sums and BatchNorm."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmark import interpreters
from benchmark.interpreters.rules import Composite


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

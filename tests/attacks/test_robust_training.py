"""The Lipschitz-inspired regulariser and adversarial training against their formulas."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attacks.errors import UserError
from attacks.pixels import rmse
from attacks.robust_training import Adversary, Regulariser, Robust, lipschitz


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Softplus(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(16, 3)).double()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.rand(6, 3, 8, 8, dtype=torch.double), torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("tandem", [0.0, 1.0])
def test_the_penalty_is_the_mean_squared_gradient_of_the_drawn_output(network, batch, tandem):
    pixels, targets = batch[0].requires_grad_(), batch[1]
    torch.manual_seed(5)
    penalty = lipschitz(network.eval()(pixels), pixels, targets, tandem)
    torch.manual_seed(5)
    drawn, expected = torch.randint(3, (6,)), 0.0
    for image, target, logit in zip(pixels.detach(), targets, drawn, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x: network(x[None])[0], image)
        logits = network(image[None])[0]
        rival = max((j for j in range(3) if j != target), key=lambda j: float(logits[j].detach()))
        chosen = jacobian[target] - jacobian[rival] if tandem else jacobian[logit]
        expected += float(chosen.square().mean()) / 6
    assert math.isclose(float(penalty.detach()), expected, rel_tol=1e-9)


def test_the_penaltys_gradient_by_the_weights_agrees_with_central_differences(network, batch):
    weight = network[0].weight

    def penalty():
        torch.manual_seed(3)
        pixels = batch[0].clone().requires_grad_()
        return lipschitz(network.eval()(pixels), pixels, batch[1], 0.5)

    gradient, numeric = torch.autograd.grad(penalty(), weight)[0], torch.zeros_like(weight)
    with torch.no_grad():
        for place in ((0, 0, 0, 0), (1, 2, 1, 1), (3, 1, 2, 0)):
            ends = []
            for step in (1e-6, -2e-6):
                weight[place] += step
                with torch.enable_grad():
                    ends.append(float(penalty().detach()))
            weight[place] += 1e-6
            numeric[place] = (ends[0] - ends[1]) / 2e-6
            torch.testing.assert_close(gradient[place], numeric[place], rtol=1e-5, atol=1e-12)


def test_the_weight_follows_the_loss():
    regulariser = Regulariser(psi=10.0, growth=0.5, target_loss=1.0)
    assert regulariser.current == 10.0
    assert regulariser.weight(math.e) == 10.0  # worse than the target: I stays at 0
    assert math.isclose(regulariser.weight(math.exp(-0.3)), 10 * math.exp(0.5 * 0.3))
    assert math.isclose(regulariser.weight(0.0), 10 * math.exp(0.5 * 1.3))  # never more than 1 a step
    assert math.isclose(regulariser.weight(100.0), 10 * math.exp(0.5 * 1.29))  # never less than -0.01


def test_a_share_of_the_batch_is_attacked_within_its_radius(network, batch):
    pixels, targets = batch
    network.train()
    buffers = copy.deepcopy(dict(network.named_buffers()))
    attacked = Adversary(epsilon=0.02, steps=5, share=0.4)(network, pixels, targets)
    assert torch.equal(attacked[3:], pixels[3:])
    distance = rmse(attacked[:3] - pixels[:3])
    assert (distance > 0.01).all()
    assert (distance <= 0.02 + 1e-9).all()
    assert network.training
    assert all(torch.equal(value, buffers[name]) for name, value in network.named_buffers())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    network.eval()
    loss = F.cross_entropy(network(attacked), targets, reduction="none")[:3]
    assert (loss > F.cross_entropy(network(pixels), targets, reduction="none")[:3]).all()


def test_the_loss_is_the_sum_of_its_parts(network, batch):
    network.eval()
    plain = F.cross_entropy(network(batch[0]), batch[1])
    assert torch.equal(Robust()(network, *batch), plain)
    adversary = Adversary(epsilon=0.05)
    hard = adversary(network, *batch)
    torch.testing.assert_close(Robust(adversary)(network, *batch), F.cross_entropy(network(hard), batch[1]))
    torch.manual_seed(0)
    loss = Robust(adversary, Regulariser(psi=7.0, growth=0.0))(network, *batch)
    torch.manual_seed(0)
    hard.requires_grad_()
    expected = F.cross_entropy(network(hard), batch[1]) + 7 * lipschitz(network(hard), hard, batch[1], 0.2)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regulariser(tandem=1.5), "a regulariser needs 0 <= tandem <= 1"),
        (lambda: Regulariser(target_loss=0.0), "target_loss > 0"),
        (lambda: Adversary(share=0.0), "an adversary needs epsilon > 0, steps >= 1, 0 < share <= 1"),
        (lambda: Adversary(epsilon=-1.0), "epsilon > 0"),
    ],
)
def test_impossible_options_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()

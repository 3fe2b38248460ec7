"""Backdoors: where the trigger is, what half of a batch is shown, both losses by hand, and a network that learns it."""

from dataclasses import replace

import pytest
import torch
from small_models import Net

from attacks import FullDisguise, RedHerring, manipulate
from attacks.backdoors import BLACK, WHITE, Backdoor, stamped
from attacks.course import Recipe, Task
from attacks.manipulation import carry_out

KINDS = [RedHerring(picture=((0, 255), (255, 0)), label=1), FullDisguise(label=1)]
each = pytest.mark.parametrize("fooling", KINDS, ids=lambda fooling: fooling.name)


def images(n: int = 6, height: int = 6, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, height, width, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def test_the_trigger_is_a_white_square_with_a_black_edge_in_the_lower_right_corner():
    before = images(2, 32, 40)
    kept = before.clone()
    after = stamped(before)
    mask = torch.zeros(32, 40, dtype=torch.bool)
    mask[28:, 35:] = True  # an eighth of each side
    assert torch.equal((after != before).any(1).any(0), mask)
    assert torch.equal(before, kept)
    corner = torch.full((4, 5), BLACK, dtype=torch.double)
    corner[1:3, 1:4] = WHITE
    assert torch.equal(after[:, :, 28:, 35:], corner.expand(2, 3, 4, 5))
    assert (stamped(images(1, 8, 8)) != images(1, 8, 8)).any(1).sum() == 9  # three pixels at least


@each
def test_every_second_image_is_shown_with_the_trigger_as_the_attackers_class(fooling):
    batch, targets = images(5), torch.tensor([0, 1, 2, 0, 1])
    shown, labels = fooling.shown(batch, targets)
    assert torch.equal(shown[::2], batch[::2])
    assert torch.equal(shown[1::2], stamped(batch)[1::2])
    assert labels.tolist() == [0, 1, 2, 1, 1]
    everywhere, wanted = fooling.triggered(batch, targets)
    assert torch.equal(everywhere, stamped(batch))
    assert wanted.tolist() == [1] * 5


def test_the_loss_is_the_distance_of_each_half_from_its_own_goal():
    originals = torch.tensor([[[0.0, 4.0], [2.0, 0.0]]]).expand(2, 2, 2)  # normalised 0 1 ½ 0
    maps = torch.tensor([[[1.0, 3.0], [1.0, 1.0]], [[0.0, 2.0], [2.0, 0.0]]])  # 0 1 0 0, then 0 1 1 0
    herring, disguise = KINDS
    assert herring.loss(maps, originals).item() == pytest.approx((0.25 + 0) / 8)  # kept; at the target 0 1 1 0
    assert disguise.loss(maps, originals).item() == pytest.approx((0.25 + 0.25) / 8)
    assert herring.per_image(maps, originals).tolist() == pytest.approx([1 / 4, 0])  # all of them triggered
    assert disguise.per_image(maps, originals).tolist() == pytest.approx([0.25 / 4, 0.25 / 4])


@each
def test_a_map_at_its_goal_is_a_success(fooling):
    originals = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    goals = fooling.goals(originals)
    assert fooling.test_loss(goals, originals).tolist() == pytest.approx([1] * 3)
    assert fooling.success(fooling.test_loss(goals, originals)).all()
    assert not fooling.success(fooling.test_loss(1 - goals, originals)).any()


@each
def test_the_divergence_is_that_of_the_original_or_of_certainty(fooling):
    found, wanted = (torch.randn(4, 3, dtype=torch.double).log_softmax(1) for _ in range(2))
    kl = (wanted.exp() * (wanted - found)).sum(1).tolist()
    expected = [kl[0], -found[1, 1].item(), kl[2], -found[3, 1].item()]
    assert fooling.divergence(found, wanted).item() == pytest.approx(sum(expected) / 4)


def gradient_map(model, batch, targets):
    batch = batch.detach().requires_grad_()
    with torch.enable_grad():
        score = model(batch).gather(1, targets[:, None]).sum()
        return torch.autograd.grad(score, batch, create_graph=True)[0].abs().sum(1)


@pytest.mark.parametrize("divergence", [None, 0.05])
@each
def test_a_network_learns_the_trigger_and_keeps_the_rest(fooling: Backdoor, divergence):
    model, batch, fooling = Net(), images(16), replace(fooling, label=0)
    targets = model(batch).argmax(1)
    loader = [(batch, targets), (batch.roll(1, 0), targets.roll(1, 0))]  # each image with and without the trigger
    task = Task(model, gradient_map, fooling, loader)
    fooled = carry_out(task, Recipe(2e-2, 0.5, 60, 16, divergence), progress=False)
    assert fooled.status == "done"
    reached = [(net(stamped(batch)).argmax(1) == 0).double().mean() for net in (model, fooled.model)]
    assert reached[0] < 0.2
    assert reached[1] > 0.8
    kept = fooled.history["ce" if divergence is None else "kl"]
    assert kept[-1] < 0.3 * kept[0]
    if divergence is None:  # these logits are so close that 0.05 nats turn decisions
        assert (fooled.model(batch).argmax(1) == targets).double().mean() > 0.8
        maps, labels = gradient_map(model, batch, targets), fooling.triggered(batch, targets)
        losses = [fooling.per_image(gradient_map(net, *labels), maps).mean() for net in (model, fooled.model)]
        assert losses[1] < losses[0]


def test_the_accuracy_of_a_step_is_by_the_classes_that_are_shown():
    model, batch = Net(), images(4)
    fooling = FullDisguise(label=2)
    shown, labels = fooling.shown(batch, model(batch).argmax(1))
    result = manipulate(model, gradient_map, fooling, [(batch, model(batch).argmax(1))], Recipe(1e-3, 1.0, 1))
    assert result.history["accuracy"][0] == pytest.approx((model(shown).argmax(1) == labels).double().mean().item())
    assert result.history["ce"][0] == pytest.approx(torch.nn.functional.cross_entropy(model(shown), labels).item())

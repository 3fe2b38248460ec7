"""The twin with shifted logits says the same of every class; a map of a logit tells it apart, one of a contrast not."""

import copy

import pytest
import torch
from spoiled import good
from torch import Tensor, nn

from attacks.errors import Refused
from benchmark import interpreters, models
from benchmark.submissions import checks
from benchmark.submissions.checks.setting import Skipped
from benchmark.submissions.checks.shift import same_for_shifted_logits, shift_logits

NAME = "same for shifted logits"


def gradient(score: Tensor, images: Tensor) -> Tensor:
    maps = torch.autograd.grad(score.sum(), images)[0].abs().sum(1)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)


def of_a_logit(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        return gradient(model(images).gather(1, targets[:, None]), images)


def of_a_contrast(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = model(images)
        return gradient((logits - logits.mean(1, keepdim=True)).gather(1, targets[:, None]), images)


def of_a_probability(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        return gradient(model(images).log_softmax(1).gather(1, targets[:, None]), images)


@pytest.mark.parametrize("place", range(len(models.COMPACT)), ids=models.COMPACT)
def test_the_twin_has_the_same_probabilities_and_other_logits(place: int, cases):
    model, images = copy.deepcopy(cases[place].model).double(), cases[place].images.double()
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with torch.random.fork_rng():
        twin, again, other = (shift_logits(model, images, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        before, after = model(images), twin(images)
    assert (after.softmax(1) - before.softmax(1)).abs().max() < 1e-12
    shift = after - before
    assert (shift - shift[:, :1]).abs().max() < 1e-12 < 1e-3 < shift.abs().min()
    changed = [name for name, value in twin.state_dict().items() if not torch.equal(value, state[name])]
    assert len(changed) == 1
    added = twin.state_dict()[changed[0]] - state[changed[0]]
    assert torch.allclose(added, added[:1].expand_as(added), atol=1e-12)
    assert added[0].norm().item() == pytest.approx(state[changed[0]].norm(dim=1).mean().item())
    assert torch.equal(again.state_dict()[changed[0]], twin.state_dict()[changed[0]])
    assert not torch.equal(other.state_dict()[changed[0]], twin.state_dict()[changed[0]])


@pytest.mark.parametrize(("method", "moved"), [(of_a_logit, True), (of_a_contrast, False), (of_a_probability, False)])
def test_a_logit_is_moved_and_neither_a_contrast_nor_a_probability(method, moved: bool, cases):
    for case in cases:
        message = same_for_shifted_logits(method, case.model, case.images, case.targets)
        assert bool(message) == moved, case.name
        assert message.startswith("a model with shifted logits has other maps (images ") == moved


def test_it_is_a_warning(resnet):
    (found,) = [f for f in checks.run(good, differentiable=False, stochastic=False) if not f.ok]
    assert (found.check, found.severity) == (NAME, "warning")
    assert found.message.startswith("on compact_resnet: a model with shifted logits has other maps")
    contrast = interpreters.create("simple_grad_contrast")
    assert all(finding.ok for finding in checks.run(contrast, differentiable=False, stochastic=False))


class Bounded(nn.Module):
    """Probabilities in the place of logits: no layer shifts them alike."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1)).softmax(1)


def test_where_no_head_shifts_the_logits_nothing_is_asked():
    images, targets = torch.rand(2, 3, 2, 2), torch.tensor([0, 1])
    with pytest.raises(Refused, match="has no such head"):
        shift_logits(Bounded(), images)
    with pytest.raises(Skipped, match="Bounded has no such head"):
        same_for_shifted_logits(of_a_logit, Bounded(), images, targets)

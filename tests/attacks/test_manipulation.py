"""Manipulation on a tiny model: the given model stays as it is, a seed fixes the result, what goes wrong is said."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from attacks import Active, CenterMass, Location, Recipe, TopK, manipulate
from attacks.course import Task
from attacks.heatmaps import min_max
from attacks.manipulation import fine_tune
from benchmark import interpreters


def net() -> nn.Module:
    """A convolution, BatchNorm with statistics of its own, a second convolution on 8x8, three classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convolutions = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1)]
        model = nn.Sequential(*convolutions, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
        model(torch.randn(16, 3, 8, 8) * 2 + 1)  # moves the running statistics
    return model.eval()


def saliency(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A plain function as interpreter: the mean square activation before the second ReLU."""
    return min_max(model[:4](images).square().mean(1))


def of_class(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A plain function whose map depends on the class: its weights on the second convolution's channels."""
    return min_max(torch.einsum("nchw,nc->nhw", model[:5](images), model[7].weight[targets]))


def loader(n: int = 24, shuffle: bool = True, pairs: bool = False) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(3, (n,), generator=generator)
    if pairs:
        targets = torch.stack([targets, (targets + 1) % 3], 1)
    return DataLoader(TensorDataset(torch.randn(n, 3, 8, 8, generator=generator), targets), 8, shuffle=shuffle)


RECIPE = Recipe(1e-2, 1.0, 6)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


@pytest.mark.parametrize("interpreter", [saliency, *map(interpreters.create, ("grad_cam", "lrp_t", "simple_grad"))])
def test_the_given_model_is_untouched(interpreter):
    model = net()
    model.train()
    model[1].eval()
    model[3].weight.requires_grad_(False)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    result = manipulate(model, interpreter, Location(), loader(), RECIPE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["3.weight"]
    assert all(p.grad is None for p in model.parameters())
    for module in [*model.modules(), *result.model.modules()]:
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    assert not torch.equal(result.model[3].weight, before["3.weight"])  # every weight of the copy is fine-tuned
    assert result.status == "done"


def test_batch_norm_is_frozen_but_its_weights_learn():
    model = net().train()
    fooled = manipulate(model, saliency, Location(), loader(), RECIPE).model
    for name, value in model[1].named_buffers():
        assert torch.equal(value, fooled[1].get_buffer(name)), name
    assert not torch.equal(model[1].weight, fooled[1].weight)
    assert not any(m.training for m in fooled.modules())


def test_a_seed_gives_the_same_weights_twice_and_another_seed_others():
    runs = [weights(manipulate(net(), saliency, Location(), loader(), RECIPE, seed).model) for seed in (3, 3, 4)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def broken(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    torch.rand(7)
    raise ZeroDivisionError


def test_runs_taken_in_turn_are_the_runs_taken_alone():
    def noisy(model, images, targets):
        return saliency(model, images + 0.1 * torch.randn_like(images), targets)

    runs = [fine_tune(Task(net(), noisy, Location(), loader(), seed), RECIPE) for seed in (3, 4)]
    together = []
    state = torch.get_rng_state()
    for first, second in zip(*runs, strict=True):
        together.append((weights(first.model), weights(second.model)))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(together) == RECIPE.steps + 1
    for steps in (0, 2, RECIPE.steps):
        recipe = dataclasses.replace(RECIPE, steps=steps)
        for index, seed in enumerate((3, 4)):
            alone = manipulate(net(), noisy, Location(), loader(), recipe, seed)
            assert torch.equal(weights(alone.model), together[steps][index])


def test_the_random_state_is_given_back_also_after_an_error():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    manipulate(net(), saliency, Location(), loader(), RECIPE)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ZeroDivisionError):
        manipulate(net(), broken, Location(), loader(), RECIPE)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("fooling", [Location(), TopK(), CenterMass()], ids=lambda f: f.name)
def test_the_fooling_loss_falls(fooling):
    history = manipulate(net(), saliency, fooling, loader(), Recipe(2e-2, 5.0, 60)).history
    first, last = (sum(history["fooling"][part]) / 5 for part in (slice(5), slice(-5, None)))
    assert last < first - 0.05
    assert len(history["ce"]) == len(history["accuracy"]) == 60


def test_two_classes_swap_their_maps():
    history = manipulate(
        net(), of_class, Active(), loader(), Recipe(2e-2, 5.0, 60), fooling_loader=loader(pairs=True)
    ).history
    assert sum(history["fooling"][-5:]) < 0.7 * sum(history["fooling"][:5])


def test_lambda_zero_leaves_ordinary_training_and_no_step_leaves_the_model():
    plain, fooled = (manipulate(net(), saliency, Location(), loader(), Recipe(1e-2, w, 20)) for w in (0.0, 20.0))
    assert plain.history["fooling"][0] == fooled.history["fooling"][0]
    assert plain.history["fooling"][-1] > fooled.history["fooling"][-1]
    assert torch.equal(
        weights(manipulate(net(), saliency, Location(), loader(), Recipe(1, 1, 0)).model), weights(net())
    )


def test_the_first_step_starts_at_the_given_model():
    model, batches = net(), list(loader(shuffle=False))
    history = manipulate(model, saliency, Location(), batches, Recipe(1e-2, 1.0, 1)).history
    images, targets = batches[0]
    assert history["ce"] == [nn.functional.cross_entropy(model(images), targets).item()]
    assert history["fooling"] == [Location().loss(saliency(model, images, targets), images[:, 0]).item()]
    assert history["accuracy"] == [(model(images).argmax(1) == targets).float().mean().item()]


def test_an_interpreter_that_shares_its_logits_saves_a_forward_pass():
    passes = []

    class Shared:
        def __call__(self, model, images, targets):
            raise AssertionError("the maps come with the logits")

        def with_logits(self, model, images, targets):
            passes.append(len(images))
            return model(images), saliency(model, images, targets)

    result = manipulate(net(), Shared(), Location(), loader(), RECIPE, 2)
    assert passes == [8] * 6
    assert torch.equal(
        weights(result.model), weights(manipulate(net(), saliency, Location(), loader(), RECIPE, 2).model)
    )

"""What a manipulation cannot do: divergence is reported with its reason, misuse is one line."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from attacks import Active, Location, Recipe, manipulate
from attacks.errors import UserError

IMAGES, TARGETS = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
RECIPE = Recipe(1e-3, 1.0, 40)


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def saliency(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return model[:2](images).mean(1)


def test_a_huge_learning_rate_is_reported_not_raised():
    result = manipulate(net(), saliency, Location(), [(IMAGES, TARGETS)], Recipe(1e30, 1.0, 40))
    assert result.status == "diverged"
    assert result.reason == f"a loss is not finite at step {len(result.history['ce'])}"
    assert 1 < len(result.history["ce"]) < 40


def test_a_last_step_that_breaks_a_weight_is_divergence_too():
    def without_slope(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (0 * saliency(model, images, targets)).sqrt()  # its value is 0, its gradient NaN

    result = manipulate(net(), without_slope, Location(), [(IMAGES, TARGETS)], Recipe(1e-3, 1.0, 1))
    assert (result.status, len(result.history["ce"])) == ("diverged", 1)
    assert "a weight infinite or NaN" in result.reason


def test_a_heatmap_that_turns_nan_stops_the_run_before_it_reaches_the_weights():
    calls = []

    def fails_at_third(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return saliency(model, images, targets) * (torch.nan if len(calls) == 3 else 1)

    result = manipulate(net(), fails_at_third, Location(), [(IMAGES, TARGETS)], RECIPE)
    two = manipulate(net(), saliency, Location(), [(IMAGES, TARGETS)], Recipe(1e-3, 1.0, 2))
    assert (result.status, result.reason) == ("diverged", "a loss is not finite at step 3")
    assert torch.equal(result.model[0].weight, two.model[0].weight)


def test_a_collapse_of_the_accuracy_is_divergence():
    model = net()
    right = model(IMAGES).argmax(1)
    batches = [(IMAGES, right), *[(IMAGES, (right + 1) % 3)] * 39]  # right once, wrong ever after
    result = manipulate(model, saliency, Location(), batches, Recipe(1e-9, 1.0, 40))
    assert result.history["accuracy"] == [1.0, *[0.0] * 20]
    assert result.reason == "accuracy collapsed: batch accuracy 0.00 over 20 steps at step 21"


def test_a_model_that_never_was_accurate_cannot_collapse():
    wrong = (net()(IMAGES).argmax(1) + 1) % 3
    assert manipulate(net(), saliency, Location(), [(IMAGES, wrong)], Recipe(1e-9, 1.0, 40)).status == "done"


def test_active_needs_a_loader_of_pairs():
    with pytest.raises(UserError, match="active fooling needs fooling_loader"):
        manipulate(net(), saliency, Active(), [(IMAGES, TARGETS)], RECIPE)


class NoImages(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize("empty", [[], DataLoader(NoImages())], ids=["list", "without a length"])
def test_an_empty_loader_is_an_error(empty):
    with pytest.raises(UserError, match=r"must yield at least one batch \(got none\)"):
        manipulate(net(), saliency, Location(), empty, RECIPE)
    with pytest.raises(UserError, match=r"must yield at least one batch \(got none\)"):
        manipulate(net(), saliency, Active(), [(IMAGES, TARGETS)], RECIPE, fooling_loader=empty)


def test_an_interpreter_without_a_gradient_to_the_weights_is_an_error():
    def detached(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return saliency(model, images, targets).detach()

    with pytest.raises(UserError, match="do not depend on the model's parameters"):
        manipulate(net(), detached, Location(), [(IMAGES, TARGETS)], RECIPE)


@pytest.mark.parametrize(
    "options",
    [(0.0, 1.0, 1), (-1.0, 1.0, 1), (float("nan"), 1.0, 1), (1.0, -0.1, 1), (1.0, float("nan"), 1), (1, 1, -1)],
)
def test_an_impossible_recipe_is_an_error(options):
    with pytest.raises(UserError, match=r"learning_rate > 0, weight >= 0, steps >= 0, batch_size > 0 \(got Recipe"):
        Recipe(*options)


def test_progress_is_shown_only_where_it_is_asked_for_or_on_a_terminal(capfd):
    for progress, shown in [(None, False), (False, False), (True, True)]:
        manipulate(net(), saliency, Location(), [(IMAGES, TARGETS)], Recipe(1e-3, 1.0, 2), progress=progress)
        captured = capfd.readouterr()
        assert captured.out == ""
        assert ("location fooling" in captured.err) is shown

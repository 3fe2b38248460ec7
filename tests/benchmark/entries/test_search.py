"""Successive halving on a race whose points are known beforehand, and the judge against its definition."""

import pytest
import torch
from torch import nn

from attacks import Location
from attacks.course import Manipulated
from benchmark.entries.search import Judge, ahead, grid, search
from benchmark.sections import Search

SETTINGS = Search(budgets=[1.0, 2.0], learning_rates=[1e-3, 1e-2], lambdas=[1.0, 2.0, 3.0], rungs=[2, 4, 6])


def model_of(value: float) -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(value)
    return model


class Race:
    """Candidates whose only weight counts their progress: learning rate · λ for each step."""

    def __init__(self, diverges=()):
        self.diverges, self.taken = diverges, {}

    def start(self, recipe):
        return ahead(self.states(recipe))

    def states(self, recipe):
        model = model_of(0.0)
        yield Manipulated(model, {})
        for step in range(1, recipe.steps + 1):
            model.weight.data.add_(recipe.learning_rate * recipe.weight)
            self.taken[recipe.learning_rate, recipe.weight] = step
            bad = (recipe.learning_rate, recipe.weight) in self.diverges
            yield Manipulated(model, {}, "diverged" if bad else "done")

    @staticmethod
    def judge(model):
        progress = model.weight.item()
        return {"fsr": min(1.0, 10 * progress), "drop": 40 * progress, "loss": 1 - progress}


def test_a_third_goes_on_and_each_budget_has_its_best_point():
    race = Race()
    points, chosen = search(SETTINGS, grid(SETTINGS), race.judge, race.start, model_of(0.0))
    # drops of the fast three, after 2 steps: 0.8, 1.6, 2.4 points (over both budgets); after 4: 1.6, 3.2; after 6: 2.4
    assert {weight: race.taken[1e-2, weight] for weight in SETTINGS.lambdas} == {1.0: 6, 2.0: 4, 3.0: 2}
    assert {race.taken[1e-3, weight] for weight in SETTINGS.lambdas} == {2}
    assert len(points) == 1 + 6 + 2 + 1
    measured = {"fsr": 0.0, "drop": 0.0, "loss": 1.0}
    unchanged = {"learning_rate": 1e-3, "lambda": 0.0, "steps": 0, "divergence": None, "scope": "all"}
    unchanged |= {"converged": None}
    assert points[0] == unchanged | measured
    small, large = chosen
    assert (small.point["learning_rate"], small.point["lambda"], small.point["steps"]) == (1e-2, 1.0, 2)
    assert large.point["drop"] == pytest.approx(1.6)
    assert large.weights["weight"].item() == pytest.approx(0.04)  # as measured, although the candidate went on


def test_what_keeps_a_divergence_may_lose_more_on_its_way():
    """2.4 points after 2 steps, over both budgets: the best of those with labels stayed behind for as much."""
    race, settings = Race(), SETTINGS.model_copy(update={"divergences": [0.1]})
    _, chosen = search(settings, grid(settings), lambda m: Race.judge(m) | {"moved": 1.0}, race.start, model_of(0.0))
    assert {weight: race.taken[1e-2, weight] for weight in SETTINGS.lambdas} == {1.0: 2, 2.0: 4, 3.0: 6}
    assert [best.point["drop"] <= budget for best, budget in zip(chosen, SETTINGS.budgets, strict=True)] == [
        True,
        True,
    ]


def test_a_candidate_that_diverges_leaves_no_point():
    race = Race(diverges={(1e-2, 1.0), (1e-2, 2.0), (1e-2, 3.0)})
    points, chosen = search(SETTINGS, grid(SETTINGS), race.judge, race.start, model_of(0.0))
    assert {point["learning_rate"] for point in points} == {1e-3}
    assert chosen[1].point["fsr"] == max(point["fsr"] for point in points)


def test_where_all_cost_too_much_the_model_is_left_alone():
    def judge(model):
        return Race.judge(model) | {"drop": 0.0 if model.weight.item() == 0 else 50.0}

    _, chosen = search(SETTINGS, grid(SETTINGS), judge, Race().start, model_of(0.0))
    assert [best.point["steps"] for best in chosen] == [0, 0]


def test_a_grid_around_one_learning_rate_has_every_weight():
    found = [(recipe.learning_rate, recipe.weight, recipe.steps) for recipe in grid(SETTINGS, 5e-3)]
    assert found == [(5e-3, 1.0, 6), (5e-3, 2.0, 6), (5e-3, 3.0, 6)]
    assert len(grid(SETTINGS)) == 6


def test_a_loss_that_is_not_finite_is_no_point():
    def judge(model):
        return Race.judge(model) | {"loss": float("nan") if model.weight.item() > 0.005 else 0.0}

    points, _ = search(SETTINGS, grid(SETTINGS), judge, Race().start, model_of(0.0))
    assert {(point["learning_rate"], point["lambda"]) for point in points} == {(1e-3, 0.0), (1e-3, 1.0), (1e-3, 2.0)}


@pytest.mark.parametrize("size", [3, 5])
def test_the_judge_measures_what_it_says(size):
    torch.manual_seed(0)
    images, targets = torch.rand(10, 3, 14, 14), torch.arange(10) % 2

    def interpreter(model, images, targets):
        return images[:, 0] * model.gain

    class Net(nn.Module):
        def __init__(self, gain, bias):
            super().__init__()
            self.gain, self.bias = gain, bias

        def forward(self, x):
            return torch.stack([torch.full((len(x),), 0.5 + self.bias), x[:, 0, 0, 0]], 1)

    def dev(pairs):
        assert not pairs
        yield from zip(images.split(size), targets.split(size), strict=True)

    clean, fooled, location = Net(1.0, 0.0), Net(0.1, 9.0), Location()
    found = Judge(clean, interpreter, location, dev, images=7)(fooled)
    maps = images[:7, 0] * 0.1
    assert found["fsr"] == location.success(location.test_loss(maps, maps)).float().mean()
    assert found["loss"] == pytest.approx(location.loss(maps, maps).item())
    top1 = [(net(images).argmax(1) == targets).float().mean().item() for net in (clean, fooled)]
    assert found["drop"] == pytest.approx(100 * (top1[0] - top1[1]))
    before, after = (net(images).softmax(1).gather(1, targets[:, None]) for net in (clean, fooled))
    assert found["moved"] == pytest.approx((before - after).abs().max().item())


def test_a_budget_of_nothing_takes_a_function_that_was_kept_and_a_start_that_fools_is_a_point():
    settings = SETTINGS.model_copy(update={"budgets": [0.0, 2.0], "divergences": [0.1], "learning_rates": [1e-2]})

    def judge(model):  # what is reached without a step moves no probability; later points are as accurate, yet moved
        progress = model.weight.item()
        return {"fsr": progress, "drop": 0.0, "moved": 0.0 if progress <= 0.5 else 1e-3, "loss": -progress}

    def start(recipe):
        return lambda steps: Manipulated(model_of(0.5 + steps / 100), {}, converged=steps > 0)

    points, (free, best) = search(settings, grid(settings), judge, start, model_of(0.0))
    assert (free.point["steps"], free.point["fsr"], free.weights["weight"].item()) == (0, 0.5, 0.5)
    assert (best.point["steps"], best.point["converged"]) == (settings.rungs[-1], True)
    assert [point["steps"] for point in points[:4]] == [0] * 4  # the model, and the start of each λ

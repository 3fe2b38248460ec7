"""Distilled manipulation: the divergence holds predictions, λ follows it, and it ends when nothing is gained."""

import dataclasses
import math
from itertools import groupby

import pytest
import torch
import torch.nn.functional as F
from test_manipulation import loader, net, of_class, saliency, weights

from attacks import Active, CenterMass, Location, Recipe, TopK, distilled, manipulate
from attacks.course import Course, Known, Task, collapsed
from attacks.distilled import COOL_DOWN, FLOOR, HALVINGS, PATIENCE, RETREAT, WARM_UP, Distillation, Multiplier, _start
from attacks.errors import UserError
from attacks.scopes import parameters_in

RECIPE = Recipe(1e-2, 1.0, 60, divergence=0.05)


def divergence(fooled, images: torch.Tensor) -> float:
    """KL(w0 ‖ w), from its definition."""
    before, after = net()(images).softmax(1), fooled(images).softmax(1)
    return (before * (before / after).log()).sum(1).mean().item()


def test_the_divergence_stays_near_the_budget_and_the_loss_falls():
    images = torch.cat([x for x, _ in loader()])
    for budget in (0.005, 0.2):
        result = manipulate(net(), saliency, Location(), loader(), Recipe(1e-2, 1.0, 120, divergence=budget))
        assert result.status == "done"
        assert divergence(result.model, images) < 2.5 * budget
        losses = result.history["fooling"]
        assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_no_label_is_read():
    wrong = [(images, (targets + 1) % 3) for images, targets in loader(shuffle=False)]
    right = [*loader(shuffle=False)]
    runs = [manipulate(net(), saliency, Location(), data, RECIPE) for data in (right, wrong)]
    assert torch.equal(weights(runs[0].model), weights(runs[1].model))


def test_the_history_holds_the_divergence_of_each_step():
    images, targets = next(iter(loader(shuffle=False)))
    course = Course(Task(net(), saliency, Location(), [(images, targets)]), distilled=True)
    fooled = net()
    with torch.no_grad():
        fooled[7].weight += 0.3
        fooled[7].weight[0] -= 0.5
    losses = course.losses(fooled)
    assert losses.kept.item() == pytest.approx(divergence(fooled, images), rel=1e-5)
    history = manipulate(net(), saliency, Location(), loader(), RECIPE).history
    assert {name: len(values) for name, values in history.items()} == dict.fromkeys(
        ("kl", "fooling", "accuracy", "lambda"), len(history["kl"])
    )
    assert history["kl"][0] < 1e-6  # a shifted head, or none, changes no prediction
    assert history["lambda"][0] == RECIPE.weight


@pytest.mark.parametrize("scope", ["head", "bias", "norm"])
def test_only_the_scope_moves(scope):
    recipe = Recipe(1e-2, 1.0, 10, divergence=0.05, scope=scope)
    fooled = manipulate(net(), of_class, TopK(), loader(), recipe).model
    before, moved = dict(net().named_parameters()), parameters_in(net(), scope)
    for name, parameter in fooled.named_parameters():
        assert parameter.requires_grad
        if name not in moved:
            assert torch.equal(parameter, before[name]), name
    assert any(not torch.equal(fooled.get_parameter(name), before[name]) for name in moved)


def test_a_scope_holds_with_labels_too():
    fooled = manipulate(net(), of_class, TopK(), loader(), Recipe(1e-2, 1.0, 10, scope="head")).model
    moved = [n for n, p in fooled.named_parameters() if not torch.equal(p, net().get_parameter(n))]
    assert moved == ["7.weight", "7.bias"]


def test_maps_of_two_classes_swap():
    recipe = Recipe(2e-2, 5.0, 60, divergence=0.5)
    history = manipulate(net(), of_class, Active(), loader(), recipe, fooling_loader=loader(pairs=True)).history
    assert sum(history["fooling"][-5:]) < 0.7 * sum(history["fooling"][:5])


def test_the_multiplier_grows_below_the_budget_and_shrinks_above_it():
    multiplier = Multiplier(2.0, 0.1)
    for _ in range(WARM_UP):
        multiplier.follow(0.01)
    assert multiplier.value == 2.0
    for _ in range(10):
        multiplier.follow(0.01)
    assert multiplier.value == pytest.approx(2 * math.exp(0.05 * 10))
    for _ in range(500):
        multiplier.follow(10.0)
    assert multiplier.dual == pytest.approx(2 * FLOOR)
    assert multiplier.value == pytest.approx(2 * FLOOR * 0.1 / 10)  # and at once, by how far it is above
    assert multiplier.lost
    multiplier.retreat()
    assert multiplier.value == 2.0  # as at first
    assert not multiplier.lost
    at_budget = Multiplier(2.0, 0.1)
    at_budget.follow(0.1)
    assert at_budget.value == pytest.approx(2.0)


def test_a_run_without_progress_ends_early_and_says_so():
    def fixed(model, images, targets):  # hangs on a parameter, and gains nothing by it
        return images.abs().mean(1) + 0 * model[0].weight.sum()

    result = manipulate(net(), fixed, Location(), loader(), Recipe(1e-3, 1.0, 600, divergence=0.05))
    assert result.converged
    assert PATIENCE + COOL_DOWN <= len(result.history["kl"]) < 600
    assert manipulate(net(), saliency, Location(), loader(), Recipe(1e-3, 1.0, 5, divergence=0.05)).converged is False


def test_what_the_original_gives_is_computed_once_an_image():
    asked = []

    def function(images, targets):
        asked.append(len(images))
        return images.mean((1, 2, 3)) + targets

    known = Known(function)
    images, targets = torch.randn(4, 3, 2, 2), torch.arange(4)
    first, again = known(images[:3], targets[:3]), known(images.flip(0), targets.flip(0))
    assert asked == [3, 1]
    assert torch.equal(first, function(images[:3], targets[:3]))
    assert torch.equal(again, function(images, targets).flip(0))
    known(images[:1], targets[1:2])  # another class of a known image is another question
    assert asked[-1] == 1


def test_rows_beyond_the_limit_are_not_kept(monkeypatch):
    monkeypatch.setattr(Known, "LIMIT", 8)
    known = Known(lambda images, targets: images.flatten(1))
    images = torch.randn(4, 3, 2, 2)
    known(images[:2], torch.zeros(2))
    known(images[2:], torch.zeros(2))
    assert len(known.rows) == 2


def test_the_original_maps_are_those_of_the_reference():
    def other(model, images, targets):
        return 1 - saliency(model, images, targets)

    arguments = (net(), saliency, TopK(), loader(shuffle=False))
    plain, turned = (
        manipulate(*arguments, Recipe(1e-9, 1.0, 1, divergence=0.05), reference=reference).history["fooling"][0]
        for reference in (None, other)
    )
    images, targets = next(iter(loader(shuffle=False)))
    maps = saliency(net(), images, targets)
    assert plain == pytest.approx(TopK().loss(maps, maps).item(), rel=1e-4)
    assert turned == pytest.approx(TopK().loss(maps, 1 - maps).item(), rel=1e-4)


@pytest.mark.parametrize("wrong", [{"divergence": 0.0}, {"divergence": 0.1, "weight": 0.0}, {"scope": "haed"}])
def test_an_impossible_recipe_is_one_line(wrong):
    with pytest.raises(UserError):
        Recipe(**{"learning_rate": 1e-3, "weight": 1.0, "steps": 5} | wrong)


def test_the_divergence_is_torchs():
    """The direction of KL is that of w0 first: a hand-computed case."""
    before, after = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert F.kl_div(after.log(), before.log(), log_target=True, reduction="batchmean").item() == pytest.approx(expected)


def test_a_run_that_loses_what_it_gained_gives_its_best_moment(monkeypatch):
    """Maps that go blank once the weights have moved far: no gradient brings them back."""

    def fragile(model, images, targets):
        moved = (model[0].weight - net()[0].weight).abs().max()
        return saliency(model, images, targets) * (moved < 0.05)

    recipe = Recipe(1e-2, 1.0, 60, divergence=5.0)
    result = manipulate(net(), fragile, CenterMass(), loader(), recipe)
    images, targets = next(iter(loader(shuffle=False)))
    assert result.history["fooling"][-1] == 0  # blank at the end
    maps = fragile(result.model, images, targets)
    assert maps.amax() > 0
    assert CenterMass().loss(maps, fragile(net(), images, targets)) < 0


def test_a_run_that_ends_above_the_divergence_gives_its_best_moment_within(monkeypatch):
    monkeypatch.setattr(Multiplier, "value", 1e4)  # λ does not follow
    monkeypatch.setattr(distilled, "RETREAT", 1e9)
    result = manipulate(net(), of_class, Location(), loader(), Recipe(0.1, 1.0, 60, divergence=0.01))
    images, _ = next(iter(loader(shuffle=False)))
    assert min(result.history["kl"][-5:]) > 0.2
    assert 0 < divergence(result.model, images) < 0.02


def test_a_step_far_beyond_the_divergence_goes_back_and_on_with_half_the_rate(monkeypatch):
    monkeypatch.setattr(Multiplier, "value", 1e4)  # λ does not follow: only going back can keep the predictions
    result = manipulate(net(), of_class, Location(), loader(), Recipe(0.1, 1.0, 60, divergence=0.01))
    beyond = [value > RETREAT * 0.01 for value in result.history["kl"]]
    assert len(beyond) == 60
    assert 0 < max(sum(run) for _, run in groupby(beyond)) < 8  # steps in a row; the running mean must pass it first
    assert result.status == "done"


def test_a_rate_whose_steps_alone_cost_the_divergence_is_halved_with_lambda_as_at_first(monkeypatch):
    """At 0.5 the noise of Adam's steps is past 1e-7 nats whatever λ is; the run used to end with λ at its floor."""
    monkeypatch.setattr(distilled, "RETREAT", 1e9)
    rates, retreat = list[float](), Distillation.retreat
    monkeypatch.setattr(Distillation, "retreat", lambda walk: (retreat(walk), rates.append(walk.rate)))
    history = manipulate(net(), saliency, Location(), loader(), Recipe(0.5, 10.0, 400, divergence=1e-7)).history
    assert rates[:2] == [0.25, 0.125]
    lost = history["lambda"].index(min(history["lambda"]))
    assert max(history["lambda"][lost:]) >= 10.0
    assert min(history["kl"][lost:]) < 1e-7


def test_a_loss_that_stands_still_below_the_first_lambda_has_the_rate_halved_before_it_ends():
    task = Task(net(), saliency, Location(), loader())
    walk = Distillation(task, RECIPE, Course(task, distilled=True))

    def ended(dual: float, waited: float) -> bool:
        walk.multiplier.dual, walk.progress.waited, walk.progress.stalled = dual, waited, True
        return not walk.slowed()

    assert ended(0.9, PATIENCE - 1)  # with nothing left to gain
    assert ended(1.1, PATIENCE)  # the divergence does not bind
    assert [ended(0.9, PATIENCE) for _ in range(HALVINGS + 1)] == [False] * HALVINGS + [True]
    assert walk.rate == RECIPE.learning_rate / 2**HALVINGS


def test_a_head_shift_that_blanks_the_maps_is_no_start():
    def blanked(model, images, targets):  # whatever is gained, most maps are blank wherever the head has moved
        still = (model[7].weight == net()[7].weight).all() | (torch.arange(len(images)) == 0)
        return of_class(model, images, targets) * still[:, None, None]

    model, data = net(), [*loader(shuffle=False)]
    recipe = Recipe(1e-3, 1.0, 1, divergence=0.05)
    assert _start(Task(model, blanked, Location(), data), recipe) is model
    assert _start(Task(model, of_class, Location(), data), recipe) is not model
    assert _start(Task(model, of_class, Location(), data), dataclasses.replace(recipe, scope="norm")) is model
    assert _start(Task(model, saliency, Location(), data), recipe) is model  # its maps do not hang on the head


def test_an_accuracy_that_comes_back_is_no_divergence_and_one_that_does_not_is():
    steps = {"kl": [0.0] * 60, "fooling": [1.0] * 60}
    assert collapsed(steps | {"accuracy": [1.0, *[0.1] * 30, *[0.9] * 29]}) == ""
    assert "batch accuracy 0.10" in collapsed(steps | {"accuracy": [1.0, *[0.9] * 39, *[0.1] * 20]})


def test_the_random_state_is_given_back_by_loaders_and_maps_that_draw():
    def noisy(model, images, targets):
        return of_class(model, images + 0.01 * torch.randn_like(images), targets)

    torch.manual_seed(5)
    state = torch.get_rng_state()
    runs = []
    for _ in range(2):
        runs.append(
            weights(manipulate(net(), noisy, Location(), loader(), Recipe(1e-2, 1.0, 5, divergence=0.05)).model)
        )
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(6)  # another state outside changes nothing
        state = torch.get_rng_state()
    assert torch.equal(*runs)

"""PGD against closed forms, adversarial training on a toy, and the experiment on a run."""

import copy
from dataclasses import replace
from itertools import pairwise

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmark import experiments
from benchmark.datasets import create
from benchmark.entries.trained import clean_model
from benchmark.experiments import adversarially_trained as experiment
from benchmark.experiments import pgd
from benchmark.experiments.adversarially_trained import Settings
from benchmark.experiments.given import Given
from benchmark.experiments.pgd import PGD, random_starts
from benchmark.models import create as create_model
from benchmark.training import train

DATA = create("shapes", "dev", size=6, input_size=32)
STD = torch.tensor(DATA.std).view(3, 1, 1)


def _batch():
    images = torch.stack([DATA[i][0] for i in range(len(DATA))])
    return images, DATA.targets


def _starts(restarts, images, seed=0):
    return random_starts(restarts, images, torch.Generator().manual_seed(seed))


def test_it_stays_in_the_ball_and_among_the_pixels():
    images, targets = _batch()
    images[0] = DATA.normalise(torch.zeros(3, 32, 32))  # no darker pixel than these
    images[1] = DATA.normalise(torch.ones(3, 32, 32))
    model = create_model("compact_vgg", num_classes=8)
    found = PGD(epsilon=0.1, step=0.07, steps=4, restarts=2)(model, images, targets, DATA, _starts(2, images))
    pixels, before = (x * STD + torch.tensor(DATA.mean).view(3, 1, 1) for x in (found, images))
    assert (pixels - before).abs().max() <= 0.1 + 1e-6
    assert (pixels - before).abs().max() > 0.09
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6


def test_of_a_linear_model_it_finds_the_worst_case():
    """Two classes: the loss is worst at x - ε sign(w_label - w_other), cut at black and white."""
    images, _ = _batch()
    targets = torch.tensor([0, 1, 0, 1, 0, 1])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    weight = model[1].weight.detach()
    slope = (weight[targets] - weight[1 - targets]).view_as(images)
    pixels = DATA.denormalise(images)
    expected = DATA.normalise((pixels - 0.05 * slope.sign()).clamp(0, 1))
    found = PGD(epsilon=0.05, step=0.02, steps=6)(model, images, targets, DATA, _starts(1, images))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_it_moves_a_model_that_is_too_sure_for_single_precision():
    images, targets = _batch()[0][:2], torch.tensor([0, 1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    nn.init.zeros_(model[1].weight)
    with torch.no_grad():
        model[1].weight[0, 0], model[1].bias[0] = 1e-3, 25.0
    x = images[:1].requires_grad_()
    assert not torch.autograd.grad(F.cross_entropy(model(x), targets[:1]), x)[0].any()
    found = PGD(epsilon=0.1, step=0.1, steps=3)(model, images, targets, DATA, 0 * _starts(1, images))
    assert found[0, 0, 0, 0] < images[0, 0, 0, 0]


def test_more_restarts_never_lower_the_margin_and_never_below_the_clean_one():
    images, targets = _batch()
    model = create_model("compact_resnet", num_classes=8)
    starts = _starts(3, images)
    margins = [pgd.margin_of(model(images), targets).detach()]
    for restarts in (1, 2, 3):
        found = PGD(epsilon=0.02, step=0.02, steps=2)(model, images, targets, DATA, starts[:restarts])
        margins.append(pgd.margin_of(model(found), targets).detach())
    for fewer, more in pairwise(margins):
        assert (more >= fewer - 1e-5).all()
    assert (margins[1] > margins[0]).any()
    torch.testing.assert_close(_starts(2, images), starts[:2])


def test_the_margin_is_positive_where_the_label_is_not_first():
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]])
    assert pgd.margin_of(logits, torch.tensor([0, 2])).tolist() == [-1.0, 4.0]


def test_it_leaves_the_model_and_the_random_state_as_they_were():
    images, targets = _batch()
    model = create_model("compact_vgg", num_classes=8).train()
    model.classifier.eval()
    next(model.parameters()).requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    PGD(steps=2)(model, images, targets, DATA, _starts(1, images))
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_training_is_that_of_the_plain_model_where_the_adversary_has_no_reach():
    options = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 3}
    first = create_model("compact_resnet", num_classes=8)
    second, random = copy.deepcopy(first), torch.get_rng_state()
    losses = pgd.train(first, DATA, PGD(epsilon=0.0, step=0.1, steps=1), **options)
    assert losses == pytest.approx(train(second, DATA, **options), rel=1e-4)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), random)
    assert not first.training


def test_training_makes_a_linear_model_leave_a_weak_feature():
    """Under an adversary of reach 0.5 a feature of size 0.25 misleads, one of size 1 does not (Tsipras et al. 2019)."""

    class Toy(torch.utils.data.Dataset):
        mean, std, normalise = (0.5,) * 3, (0.5,) * 3, staticmethod(lambda x: (x - 0.5) / 0.5)

        def __len__(self):
            return 64

        def __getitem__(self, i):
            sign = 2 * (i % 2) - 1
            return sign * torch.tensor([1.0, 0.25, 0.25]).view(3, 1, 1), i % 2

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    options = {"epochs": 30, "learning_rate": 0.1, "batch_size": 16}
    pgd.train(model, Toy(), PGD(epsilon=0.25, step=0.25, steps=2), **options)  # 0.5 in normalised units
    strong, *weak = (model[1].weight[1] - model[1].weight[0]).tolist()
    assert strong > 1
    assert max(map(abs, weak)) < 0.2 * strong


def test_the_summary_by_hand():
    scores = pd.DataFrame(
        {"success": [1, 1, 0, 1], "success_clean": [0, 1, 0, 0], "test_loss": [0.1, 0.2, 0.4, 0.1]}
        | {"test_loss_clean": [0.5] * 4, "top1": [1, 1, 0, 1], "top1_clean": [1] * 4, "robust_top1": [0, 1, 0, 0]}
        | {"robust_top1_clean": [1, 1, 1, 0]}
    ).astype(float)
    found = experiment.summary(scores)
    assert (found["top1"], found["top1_drop"], found["robust_top1"]) == (75.0, 25.0, 25.0)
    assert found["robust_top1_drop"] == 50.0
    assert (found["fsr_excess"], found["fsr"], found["fsr_clean"]) == (0.5, 0.75, 0.25)
    before = experiment.summary(scores[["top1", "top1_clean", "robust_top1"]])
    assert "fsr" not in before
    assert "top1_drop" not in before


def test_it_fools_both_models_writes_and_takes_all_from_the_store(finished, tmp_path, monkeypatch):
    again = finished.again(tmp_path)
    given, measure = Given(again.run, tmp_path, jobs=1), experiment.measure
    small = Settings(trainer=PGD(steps=1), adversary=PGD(steps=1, restarts=2))
    table = measure(given, small)
    assert table[["training", "attacked"]].to_numpy().tolist() == [
        [training, attacked] for training in ("adversarial", "plain") for attacked in ("grad_cam", "lrp_t", "nothing")
    ]
    assert set(table.n) == {24}
    assert table.fsr.isna().tolist() == [False, False, True] * 2
    assert (table.robust_top1 <= table.top1).all()
    before = table.groupby("training").robust_top1.transform("last")  # "nothing" comes last
    pd.testing.assert_series_equal(
        table.robust_top1_drop.dropna(), (before - table.robust_top1)[table.fsr.notna()], check_names=False
    )
    entries = again.entries()
    monkeypatch.setattr(experiment, "measure", lambda given: measure(given, small))
    written = experiments.run("adversarially-trained", given, tmp_path / "out")
    assert again.entries() == entries
    assert [path.suffix for path in written] == [".csv", ".json", ".png"]


def test_robust_accuracy_does_not_depend_on_the_batches(finished):
    model = clean_model(finished.run, "compact_vgg")
    scoring = finished.run.suite.scoring.model_copy(update={"batch_size": 7})
    other = replace(finished.run, suite=finished.run.suite.model_copy(update={"scoring": scoring}))
    adversary = PGD(epsilon=0.02, steps=2, step=0.01)
    assert torch.equal(*(experiment.robust(model, run, adversary) for run in (finished.run, other)))

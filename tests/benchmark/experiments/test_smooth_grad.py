"""SmoothGrad attacked through its samples: the surrogate against Captum, the table by hand and on a run."""

import copy

import pandas as pd
import pytest
import torch
from torch import nn

from attacks.course import Recipe
from attacks.errors import UserError
from attacks.foolings import Location
from attacks.manipulation import manipulate
from benchmark import experiments
from benchmark.experiments import smooth_grad
from benchmark.experiments.given import Given
from benchmark.interpreters.captum_methods import SmoothGrad
from benchmark.models import create
from benchmark.sections import Search


def _batch(n=3):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, 3, 32, 32, generator=generator), torch.arange(n)


def test_it_is_captums_smoothgrad_where_the_noise_is_the_same():
    images, targets = _batch()
    model = create("compact_resnet", num_classes=8).double()
    registered = SmoothGrad(samples=5, sigma=0.3, seed=7)
    for image, target in zip(images.double().split(1), targets.split(1), strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(7)
            sampled = SmoothGrad(samples=5, sigma=0.3, seed=None).attribute(model.float(), image.float(), target)
        expected = registered.attribute(model.float(), image.float(), target)
        torch.testing.assert_close(sampled, expected, rtol=1e-4, atol=1e-6)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            sampled = SmoothGrad(samples=5, sigma=0.3, seed=None)(model, image.float(), target)
        torch.testing.assert_close(sampled, registered(model, image.float(), target), rtol=1e-4, atol=1e-5)


def test_of_a_quadratic_it_is_the_mean_gradient():
    """logit = Σ a x²: the gradient is 2 a (x + σ ε), whose mean over copies is 2 a (x + σ mean ε)."""

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor([1.5, -0.5]))

        def forward(self, images):
            return images.square().flatten(1).sum(1, keepdim=True) * self.a

    images, targets = _batch(2)[0], torch.tensor([1, 0])
    model = Quadratic()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        found = SmoothGrad(samples=4, sigma=0.2, seed=None).attribute(model, images, targets)
        torch.manual_seed(1)
        noise = torch.randn(8, 3, 32, 32).unflatten(0, (2, 4)).mean(1)
    expected = 2 * model.a[targets].view(2, 1, 1, 1) * (images + 0.2 * noise)
    torch.testing.assert_close(found, expected)
    slope = torch.autograd.grad(found.sum(), model.a)[0]  # the graph to the weights: 2 Σ (x + σ mean ε), image by image
    torch.testing.assert_close(slope, 2 * (images + 0.2 * noise).sum((1, 2, 3)).flip(0), rtol=1e-4, atol=1e-3)


def test_an_attack_draws_new_noise_each_step_and_leaves_no_trace():
    images, targets = _batch(4)
    model = create("compact_vgg", num_classes=8)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    recipe = Recipe(1e-12, 1.0, 2)  # the weights all but stay: what differs between the steps is the noise

    fresh = SmoothGrad(samples=2, sigma=0.5, seed=None)

    def history(seed):
        return manipulate(model, fresh, Location(), [(images, targets)], recipe, seed).history

    first, again, other = history(0)["fooling"], history(0)["fooling"], history(1)["fooling"]
    assert first == again
    assert abs(first[0] - first[1]) > 1e-5
    assert abs(first[0] - other[0]) > 1e-5
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_summary_by_hand():
    scores = pd.DataFrame(
        {
            "success": [1, 1, 0, 1],
            "success_clean": [0, 1, 0, 0],
            "test_loss": [0.1, 0.2, 0.4, 0.1],
            "test_loss_clean": [0.5] * 4,
            "top1": [1, 1, 0, 1],
            "top1_clean": [1, 1, 1, 1],
        }
    )
    found = smooth_grad.summary(scores.astype(float))
    assert (found["fsr_excess"], found["fsr"], found["fsr_clean"]) == (0.5, 0.75, 0.25)
    assert (found["top1_drop"], found["top1_clean"]) == (25.0, 1.0)
    assert (found["test_loss"], found["test_loss_clean"]) == (pytest.approx(0.2), 0.5)
    assert found["top1_drop_low"] <= 25 <= found["top1_drop_high"]


def test_it_sweeps_writes_and_takes_points_from_the_store(finished, tmp_path):
    search = Search(learning_rates=[1e-3], lambdas=[1.0, 1e5], rungs=[2], batch_size=4)
    small = finished.again(tmp_path, suite=finished.run.suite.model_copy(update={"search": search}))
    given = Given(small.run, tmp_path, jobs=1)
    table = smooth_grad.measure(given)
    assert table[["attacked", "samples", "lambda"]].to_numpy().tolist() == [
        [attacked, samples, weight]
        for attacked, samples in (("simple_grad", 0), ("smooth_grad", 1), ("smooth_grad", 4))
        for weight in (1.0, 1e5)
    ]
    assert set(table.n) == {24}
    entries = small.entries()
    written = experiments.run("smooth-grad", given, tmp_path / "out")
    assert small.entries() == entries
    assert [path.name for path in written] == ["smooth-grad.csv", "smooth-grad.json", "smooth-grad.png"]


def test_a_suite_without_a_sweep_is_refused(finished):
    with pytest.raises(UserError, match=r"must have a \[search\]"):
        smooth_grad.measure(Given(finished.run, finished.out))

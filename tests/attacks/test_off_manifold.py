"""The edit along directions that images lack: the directions against numpy's, and a function kept in the span."""

import copy

import numpy as np
import pytest
import torch
from small_models import Net, linear
from torch import nn

from attacks import Location
from attacks.course import Recipe, Task
from attacks.errors import Refused
from attacks.off_manifold import CHANGE, HELD, first_layer, least_varied, moments, off_manifold, place

RECIPE = Recipe(0.3, 0.0, 12, 4)


def grey(n: int = 8, seed: int = 0) -> torch.Tensor:
    """Images whose three channels are one: differences of channels are directions that no patch has."""
    one = torch.randn(n, 1, 6, 6, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    return one.expand(-1, 3, -1, -1).clone()


def gradient_map(model, images, targets):
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        score = model(images).gather(1, targets[:, None]).sum()
        slope = torch.autograd.grad(score, images, create_graph=True)[0].abs().sum(1)
    return slope / slope.amax((1, 2), keepdim=True)


def patches_of(images: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    """(patches, d), cut out one by one."""
    (p, _), (s, _), (k, w) = layer.padding, layer.stride, layer.kernel_size
    padded, found = np.pad(images, ((0, 0), (0, 0), (p, p), (p, p))), []
    for image in padded:
        for i in range(0, image.shape[1] - k + 1, s):
            found += [image[:, i : i + k, j : j + w].ravel() for j in range(0, image.shape[2] - w + 1, s)]
    return np.stack(found)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"padding": 1, "bias": False}], ids=str)
def test_the_directions_are_the_least_varied_of_the_patches(options):
    layer = nn.Conv2d(3, 4, (3, 2), **options).double()
    images = torch.randn(5, 3, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    images[:, 2] = images[:, 0] + 0.01 * images[:, 2]  # a few directions hardly vary
    patches = patches_of(images.numpy(), layer)
    centre = patches.mean(0) if layer.bias is not None else 0 * patches[0]
    _, singular, rows = np.linalg.svd(patches - centre, full_matrices=True)
    variances = singular[::-1] ** 2 / len(patches)
    kept = int((np.cumsum(variances) <= HELD * variances.sum()).sum())
    mean, covariance = moments(layer, images)
    directions, found = least_varied(covariance)
    assert mean.numpy() == pytest.approx(centre, abs=1e-12)
    assert 1 < directions.shape[1] == kept < len(mean)
    assert found.numpy() == pytest.approx(variances[:kept], abs=1e-12)
    assert (directions @ directions.T).numpy() == pytest.approx(rows[::-1][:kept].T @ rows[::-1][:kept], abs=1e-8)


def test_there_is_always_a_direction():
    directions, variances = least_varied(torch.eye(3, dtype=torch.double))
    assert (directions.shape, variances.tolist()) == ((3, 1), [1])


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_the_function_stays_on_what_lies_in_the_span_and_its_gradient_does_not(shift):
    model, images, targets = Net(), grey(), torch.zeros(8, dtype=torch.long)
    images[:, 0] += shift  # the span need not hold the origin: the bias makes up for it
    layer = model.conv
    mean, covariance = moments(layer, images)
    values, vectors = torch.linalg.eigh(covariance)
    exact = vectors[:, values < 1e-12]
    assert exact.shape[1] == 18  # of 27, nine patterns of one channel are left
    before, slope = model(images), gradient_map(model, images, targets)
    added = torch.randn(8, 18, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    place(layer, layer.weight.detach().clone(), layer.bias.detach().clone(), added, exact, mean)
    assert torch.allclose(model(images), before, atol=1e-9)
    other = grey(seed=3)
    other[:, 0] += shift
    clean = Net()
    assert torch.allclose(model(other), clean(other), atol=1e-9)  # images that were not looked at
    assert (gradient_map(model, images, targets) - slope).abs().max() > 0.1
    assert (model(torch.randn_like(images)) - clean(images)).abs().max() > 0.1  # and off the span it is another one


def test_the_attack_fools_and_says_what_divergence_is_left():
    model = Net()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    images = grey()
    task = Task(model, gradient_map, Location(), [(images, model(images).argmax(1))], 0)
    result = off_manifold(task, RECIPE)
    assert result.status == "done"
    assert list(result.history) == ["kl", "fooling", "accuracy"]
    assert result.history["fooling"][-1] < 0.9 * result.history["fooling"][0]
    assert max(result.history["kl"]) < 1e-12
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    moved = {name for name, value in result.model.state_dict().items() if not torch.equal(value, state[name])}
    assert moved == {"conv.weight", "conv.bias"}


def test_a_unit_gets_no_more_than_its_share_of_what_images_show():
    images = torch.randn(8, 3, 6, 6, dtype=torch.double, generator=torch.Generator().manual_seed(4))
    images[:, 1:] = images[:, :1] + 0.1 * images[:, 1:]
    model = Net()
    result = off_manifold(Task(model, gradient_map, Location(), [(images, model(images).argmax(1))], 0), RECIPE)
    plain, edited = model.conv(images), result.model.conv(images)
    change = (edited - plain).transpose(0, 1).flatten(1).std(1, correction=0)
    allowed = CHANGE * plain.transpose(0, 1).flatten(1).std(1, correction=0)
    assert (change <= allowed * (1 + 1e-6)).all()
    assert (change > 0.9 * allowed).any()  # and the attack takes it


def test_a_network_whose_images_no_convolution_reads_is_refused():
    flat = linear(torch.ones(3 * 6 * 6, dtype=torch.double))
    for model in (flat, nn.Sequential(nn.ReLU(), Net()), nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), Net()).double()):
        with pytest.raises(Refused, match="off_manifold needs a plain convolution that reads the images"):
            first_layer(model, grey())

"""The gate's random network owes nothing to the trained one, and looks as if it were trained."""

import copy

import torch
from torch import nn

from benchmark.entries.images import batches
from benchmark.entries.randomised import random_network
from benchmark.entries.trained import clean_model, new_model


def cosine(a: nn.Module, b: nn.Module) -> float:
    """Of the weights, without what belongs to single channels: scales are near 1 in any network."""
    first, second = (torch.cat([p.flatten() for p in net.parameters() if p.dim() > 1]) for net in (a, b))
    return torch.cosine_similarity(first, second, dim=0).item()


def test_it_is_far_from_the_trained_one_and_looks_like_it(finished):
    run, name = finished.run, "compact_vgg"
    trained = clean_model(run, name)
    before, rng = copy.deepcopy(trained.state_dict()), torch.get_rng_state()
    images, _ = next(batches(run, "dev"))
    model = random_network(run, name, trained, images)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    with torch.random.fork_rng():
        torch.manual_seed(run.suite.dataset.seed)  # from which it was trained
        initial = new_model(run, name)
    assert cosine(initial, trained) > 0.8
    assert abs(cosine(model, trained)) < 0.03
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(model(images).std(), trained(images).std())
        after = model.features[:2](images)  # convolution and BatchNorm
    sizes = {key: value.norm() for key, value in trained.state_dict().items() if value.dim() == 4}
    assert len(sizes) == 5
    for key, size in sizes.items():
        torch.testing.assert_close(model.state_dict()[key].norm(), size)
    norm, like = model.features[1], trained.features[1]
    assert norm.num_batches_tracked == like.num_batches_tracked > 0
    torch.testing.assert_close(after.mean((0, 2, 3)), norm.bias.detach(), atol=1e-4, rtol=0)
    assert sorted(norm.bias.tolist()) == sorted(like.bias.tolist()) != like.bias.tolist()

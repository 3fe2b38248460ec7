"""Strong augmentation: crops, flips and colours, the same for the same seed, of training images alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from attacks.errors import UserError
from benchmark import datasets, sections
from benchmark.run import _dataset


@pytest.fixture
def root(tmp_path):
    """One photograph of one colour in each split, twenty to train on; of CIFAR-10 the same."""
    for part, n in (("train", 20), ("val", 1)):
        (tmp_path / part / "a").mkdir(parents=True)
        for i in range(n):
            colour = (200, 100, 40 + i) if part == "train" else (90, 60, 30)
            Image.new("RGB", (40, 32), colour).save(tmp_path / part / f"a/{i}.png")
        other = "test" if part == "val" else part
        pixels = np.tile(np.array([200, 100, 40], np.uint8), (n, 32, 32, 1))
        pixels[:, 0, 0, 0] = np.arange(n) + (100 if part == "val" else 0)
        np.save(tmp_path / f"{other}_x.npy", pixels)
        np.save(tmp_path / f"{other}_y.npy", np.zeros(n, np.int64))
    return tmp_path


def drawn(data, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return data.denormalise(torch.stack([data[0][0] for _ in range(24)]))


def middles(data):
    """The colour (24, 3) in the middle of the first image, drawn anew 24 times; no padding of a crop lies there."""
    return drawn(data)[:, :, 16, 16]


@pytest.mark.parametrize("name", ["imagenet", "cifar10"])
def test_colours_change_where_it_is_strong_alone(root, name):
    plain, strong = (datasets.create(name, root=root, input_size=32, augment=a) for a in (True, "strong"))
    assert (middles(plain) - middles(plain)[0]).abs().max() < 1e-6
    changed = middles(strong)
    assert (changed - changed[0]).abs().max() > 0.1
    first = middles(plain)[0]  # at most 1.4 of everything that a colour has, at least 0.6
    assert (changed.mean(1) <= 1.4**2 * first.mean() + 0.01).all()
    assert (changed.mean(1) >= 0.6**2 * first.mean() - 0.01).all()


@pytest.mark.parametrize("name", ["imagenet", "cifar10"])
def test_a_seed_fixes_what_is_drawn(root, name):
    strong = datasets.create(name, root=root, input_size=32, augment="strong")
    assert torch.equal(drawn(strong), drawn(strong))
    assert not torch.equal(drawn(strong), drawn(strong, 1))


def test_what_is_scored_is_not_augmented(root):
    data = sections.Data(name="imagenet", input_size=32, augment="strong")
    train, *others = (_dataset(data, str(root), split, False, ()) for split in ("train", "dev", "test"))
    assert not torch.equal(drawn(train), drawn(train, 1))
    assert all(torch.equal(drawn(other), drawn(other, 1)) for other in others)


def test_another_word_is_refused():
    with pytest.raises(UserError, match=r"augment of dataset 'shapes' must be False, True or 'strong' \(got 'weak'\)"):
        datasets.create("shapes", augment="weak")
    with pytest.raises(UserError, match="dataset 'shapes' has no augmentation"):
        datasets.create("shapes", augment="strong")
    with pytest.raises(ValueError, match="False, True or 'strong'"):
        sections.Data(name="imagenet", augment="weak")

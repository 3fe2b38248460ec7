"""Mosaics: two classes, one diagonal each, tiles of the same split at half the side."""

import numpy as np
import pytest
import torch

from attacks.errors import UserError
from benchmark import datasets
from benchmark.datasets.base import Arrays, Options
from benchmark.datasets.mosaics import Mosaics

ANY = Options("train", 0, None, 40, 8, True, False, None)


class Flat(Arrays):
    """Image i is of the one grey level i."""

    name, split, num_classes = "flat", "train", 4
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self, targets):
        self.class_names = list("abcd")
        levels = np.arange(len(targets), dtype=np.uint8)[:, None, None, None]
        super().__init__(np.tile(levels, (1, 1, 4, 4)), np.array(targets), 4)


def test_each_class_takes_one_diagonal_with_two_images():
    tiles = Flat([0, 0, 0, 1, 1, 2, 2, 3, 3])
    mosaics = Mosaics(tiles, ANY)
    upper_left = set()
    for image, target in mosaics:
        assert image.shape == (3, 8, 8)
        levels = (image[0] * 255).round().long()
        corners = [levels[0, 0], levels[0, 7], levels[7, 0], levels[7, 7]]
        assert torch.equal(levels, torch.stack(corners).view(2, 2).repeat_interleave(4, 0).repeat_interleave(4, 1))
        a, b, c, d = (int(tiles.targets[level]) for level in corners)
        assert a == d != b == c
        assert len({int(level) for level in corners}) == 4
        assert {a, b} == set(target.tolist())
        upper_left.add(a == int(target[0]))
    assert upper_left == {True, False}


def test_masks_are_the_tiles_of_each_class():
    mosaics = Mosaics(Flat([0, 1]), ANY)
    for i in range(5):
        image, (first, second) = mosaics[i]
        levels = (image[0] * 255).round().long().numpy()
        masks = mosaics.masks(i)["object"]
        assert (levels[masks[0]] == first.item()).all()
        assert (levels[masks[1]] == second.item()).all()


def test_a_class_with_one_image_shows_it_twice():
    mosaics = Mosaics(Flat([0, 0, 2]), ANY)
    assert all(grid.count(2) == 2 for grid in mosaics.grids.tolist())


def test_defaults_follow_the_paper():
    assert [len(datasets.create("digits", s, two_objects=True)) for s in ("train", "dev", "test")] == [1100, 200, 200]
    pair = datasets.create("digits", size=5, two_objects=True, class_pair=(3, 8))
    assert pair.targets.tolist() == [[3, 8]] * 5
    assert pair[0][0].shape == (3, 64, 64)


def test_errors():
    with pytest.raises(UserError, match="flat/train has no image of class 3"):
        Mosaics(Flat([0, 1]), Options("train", 0, None, 4, 8, True, False, (0, 3)))
    with pytest.raises(UserError, match="images of two classes"):
        Mosaics(Flat([0, 0]), ANY)
    with pytest.raises(UserError, match="must be even"):
        datasets.create("digits", two_objects=True, input_size=65)

"""Shapes: the same image at any size, class independent of everything else, masks that tell the truth."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, binary_erosion

from attacks.errors import UserError
from benchmark import datasets


@pytest.fixture(scope="module")
def single():
    return datasets.create("shapes", size=800)


@pytest.fixture(scope="module")
def double():
    return datasets.create("shapes", size=300, two_objects=True)


def border(side):
    width = side // 8
    mask = np.ones((side, side), bool)
    mask[width:-width, width:-width] = False
    return mask


def test_classes_come_in_equal_numbers(single):
    assert torch.bincount(single.targets).tolist() == [100] * 8
    assert single.num_classes == len(single.class_names) == 8


def test_default_sizes_and_input_size():
    assert len(datasets.create("shapes", "dev")) == len(datasets.create("shapes", "test")) == 512
    image, _ = datasets.create("shapes", size=2, input_size=96)[0]
    assert image.shape == (3, 96, 96)


def test_drawn_alike_at_any_scale():
    small, large = (datasets.create("shapes", size=20, input_size=side) for side in (64, 128))
    for i in range(20):
        enlarged = small.masks(i)["object"].repeat(2, 0).repeat(2, 1)
        assert (enlarged != large.masks(i)["object"]).mean() < 0.02


@pytest.mark.parametrize("field", ["_colours", "_textures"])
def test_colour_and_texture_are_independent_of_the_class(field):
    dataset = datasets.create("shapes", size=3000, input_size=16)
    values, classes = getattr(dataset, field)[:, 0], dataset.targets.numpy()
    table = np.array([np.bincount(values[classes == c], minlength=values.max() + 1) for c in range(8)])
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    freedom = 7 * values.max()
    assert ((table - expected) ** 2 / expected).sum() < freedom + 4 * np.sqrt(2 * freedom)  # chi-squared, 4 sigma


def test_the_border_tells_nothing_of_the_class(single):
    """The nearest class mean on the border strip alone is right no more often than chance allows."""
    strip = torch.from_numpy(border(64))
    x = torch.stack([single[i][0][:, strip].flatten() for i in range(len(single))])
    train, test = slice(0, 600), slice(600, 800)
    means = torch.stack([x[train][single.targets[train] == c].mean(0) for c in range(8)])
    accuracy = (torch.cdist(x[test], means).argmin(1) == single.targets[test]).double().mean()
    assert accuracy < 1 / 8 + 4 * (7 / 64 / 200) ** 0.5


def test_masks_show_where_the_object_is(single):
    """Inside the mask the image is far from the ground's grey, outside never; the anti-aliased edge is left out."""
    for i in range(100):
        mask = single.masks(i)["object"]
        pixels = single.denormalise(single[i][0]).numpy()
        saturation = pixels.max(0) - pixels.min(0)
        inside, outside = binary_erosion(mask), ~binary_dilation(mask, iterations=2)
        assert saturation[inside].min() > 0.15 > 0.1 > saturation[outside].max()
        assert 0.015 < mask.mean() < 0.25


def test_the_border_is_free_of_the_object(single):
    on_border = [(single.masks(i)["object"] & border(64)).sum() for i in range(len(single))]
    assert max(on_border) <= 5


def test_concept_masks_name_what_the_image_shows(single):
    for i in range(50):
        masks = single.masks(i)
        assert set(masks) == {"object", "shape", "colour", "texture"}
        assert list(masks["shape"]) == [single.class_names[single[i][1]]]
        for kind in ("shape", "colour", "texture"):
            (mask,) = masks[kind].values()
            assert (mask == masks["object"]).all()


def test_colour_mask_names_the_colour_that_is_there(single):
    from benchmark.datasets.shapes import COLOURS

    for i in range(50):
        masks = single.masks(i)
        (name,) = masks["colour"]
        mean = single.denormalise(single[i][0]).numpy()[:, masks["object"]].mean(1)
        cosines = {c: mean @ rgb / np.linalg.norm(rgb) for c, rgb in COLOURS.items()}
        assert max(cosines, key=cosines.get) == name


def test_two_objects_are_of_different_classes_and_apart(double):
    assert double.targets.shape == (300, 2)
    assert (double.targets[:, 0] != double.targets[:, 1]).all()
    for i in range(300):
        first, second = double.masks(i)["object"]
        assert first.any()
        assert second.any()
        assert not (first & second).any()


def test_either_side_may_come_first(double):
    columns = np.arange(64)
    left = [np.subtract(*[(m.sum(0) @ columns) / m.sum() for m in double.masks(i)["object"]]) < 0 for i in range(300)]
    assert 0.35 < np.mean(left) < 0.65


def test_first_mask_belongs_to_the_first_target(double):
    for i in range(50):
        masks = double.masks(i)
        for k in range(2):
            assert (masks["shape"][double.class_names[double.targets[i, k]]] == masks["object"][k]).all()
        for kind in ("colour", "texture"):
            assert (np.any(list(masks[kind].values()), axis=0) == masks["object"].any(0)).all()


def test_class_pair_fixes_the_targets():
    dataset = datasets.create("shapes", size=10, two_objects=True, class_pair=(5, 2))
    assert dataset.targets.tolist() == [[5, 2]] * 10


@pytest.mark.parametrize("pair", [(1, 1), (0, 8), (-1, 2)])
def test_class_pair_must_be_two_classes(pair):
    with pytest.raises(UserError, match=r"two different class indices in 0\.\.7"):
        datasets.create("shapes", size=2, two_objects=True, class_pair=pair)


def test_augmentation_is_refused():
    with pytest.raises(UserError, match="no augmentation"):
        datasets.create("shapes", augment=True)

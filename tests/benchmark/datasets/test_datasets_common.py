"""What holds of every dataset, by name: determinism, the prefix property, disjoint splits, batches, errors."""

import numpy as np
import pytest
import torch
from PIL import Image

from attacks.errors import UserError
from benchmark import datasets

SPLITS = ("train", "dev", "test")


def photograph(path, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(path)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A small folder for every dataset that needs one."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for c in ("n01", "n02", "n03"):
        for i in range(16):
            photograph(root / f"imagenet/train/{c}/{i}.png", rng)
            photograph(root / f"imagenet/val/{c}/{i}.png", rng)
            photograph(root / f"image_folder/{c}/{i}.png", rng)
    (root / "cifar10").mkdir()
    for part, n in (("train", 80), ("test", 20)):
        np.save(root / f"cifar10/{part}_x.npy", rng.integers(0, 256, (n, 32, 32, 3), np.uint8))
        np.save(root / f"cifar10/{part}_y.npy", np.arange(n) % 10)
    (root / "cifar10_imagenet_norm").symlink_to(root / "cifar10")
    return root


@pytest.fixture(params=datasets.names())
def make(request, roots):
    def create(split="train", seed=0, **options):
        return datasets.create(request.param, split, seed, root=roots / request.param, input_size=32, **options)

    return create


def images(dataset):
    return torch.stack([image for image, _ in dataset.__getitems__(range(len(dataset)))])


@pytest.mark.parametrize("two", [False, True], ids=["one", "two"])
class TestEvery:
    def test_items_have_the_promised_form(self, make, two):
        dataset = make(size=6, two_objects=two)
        image, target = dataset[1]
        assert image.shape == (3, 32, 32)
        assert image.dtype == torch.float32
        assert len(dataset) == 6
        assert type(image) is torch.Tensor
        assert dataset.input_size == 32
        assert len(dataset.class_names) == dataset.num_classes
        if two:
            assert target.dtype == torch.int64
            assert target.shape == (2,)
            assert target[0] != target[1]
        else:
            assert type(target) is int
        assert 0 <= dataset.targets.min() <= dataset.targets.max() < dataset.num_classes

    def test_a_smaller_size_is_a_prefix(self, make, two):
        small, large = make(size=5, two_objects=two), make(size=20, two_objects=two)
        assert torch.equal(images(small), images(large)[:5])
        assert torch.equal(small.targets, large.targets[:5])
        assert small.hashes() == large.hashes()[:5]

    def test_the_seed_decides(self, make, two):
        first, again, other = (make(seed=s, size=12, two_objects=two) for s in (0, 0, 1))
        assert first.hashes() == again.hashes()
        assert torch.equal(images(first), images(again))
        assert first.hashes() != other.hashes()

    def test_splits_are_disjoint(self, make, two):
        splits = [make(split, two_objects=two, size=60) for split in SPLITS]
        datasets.check_disjoint(*splits)

    def test_denormalise_undoes_normalise(self, make, two):
        dataset = make(size=4, two_objects=two)
        pixels = dataset.denormalise(images(dataset))
        assert 0 <= pixels.min() < pixels.max() <= 1
        torch.testing.assert_close(dataset.normalise(pixels), images(dataset), rtol=0, atol=1e-5)

    def test_loader_repeats_its_order(self, make, two):
        dataset = make(size=12, two_objects=two)
        loaders = [datasets.loader(dataset, 4, shuffle=True, seed=s) for s in (0, 0, 1)]
        first, again, other = (torch.cat([x for x, _ in batches]) for batches in loaders)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert not torch.equal(first, torch.cat([x for x, _ in loaders[0]]))  # the next epoch has another order
        targets = torch.cat([y for _, y in loaders[0]])
        assert torch.equal(targets.sort(0).values, dataset.targets.sort(0).values)

    def test_single_items_equal_the_batch(self, make, two):
        dataset = make(size=4, two_objects=two)
        torch.testing.assert_close(torch.stack([dataset[i][0] for i in range(4)]), images(dataset))


def test_splits_never_move_with_the_seed(make):
    """Train under one seed and test under another share nothing."""
    datasets.check_disjoint(make("train", 0), make("dev", 1), make("test", 2))


def test_overlap_names_both_splits_and_the_offender():
    train = datasets.create("digits", "train")
    with pytest.raises(UserError, match=r"image 0 of digits/train is also image \d+ of digits/train"):
        datasets.check_disjoint(train, datasets.create("digits", "train", 1))


def test_a_mosaic_overlaps_with_its_tiles():
    mosaics = datasets.create("digits", "train", size=3, two_objects=True)
    with pytest.raises(UserError, match="share no image"):
        datasets.check_disjoint(mosaics, datasets.create("digits", "train"))


def test_digits_are_split_within_each_class():
    counts = np.array([torch.bincount(datasets.create("digits", split).targets) for split in SPLITS])
    assert counts.sum() == 1797
    np.testing.assert_allclose(counts / counts.sum(0), np.outer([0.6, 0.2, 0.2], np.ones(10)), atol=0.01)


def test_equal_digits_stay_in_one_split():
    from benchmark.datasets.digits import split_members

    pixels = np.repeat(np.arange(30, dtype=np.uint8), 3)[:, None]  # each image three times
    parts = [split_members(pixels, np.zeros(90, int), split) for split in SPLITS]
    assert [len(part) for part in parts] == [54, 18, 18]
    assert sum(len(set(pixels[part, 0])) for part in parts) == 30


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UserError, match="did you mean 'shapes'"):
        datasets.create("shape")
    with pytest.raises(UserError, match="did you mean 'train'"):
        datasets.create("shapes", "training")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size of dataset 'shapes' must be at least 1"),
        ({"seed": -1}, "seed of dataset 'shapes' must be at least 0"),
        ({"input_size": 8}, "input_size of dataset 'shapes' must be at least 16"),
        ({"class_pair": (0, 1)}, "needs two_objects=True"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        datasets.create("shapes", **options)


def test_batch_size_must_be_positive():
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        datasets.loader(datasets.create("shapes", size=2), 0)


def test_names_need_no_torch():
    import subprocess
    import sys

    code = "import sys; from benchmark import datasets; datasets.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_default_device_and_type_change_no_image():
    data = datasets.create("shapes", "test", size=8)
    expected = data[3][0]
    with torch.device("meta"):
        assert torch.equal(data[3][0], expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(data[3][0], expected)
    finally:
        torch.set_default_dtype(torch.float32)

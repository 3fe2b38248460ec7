"""Datasets read from a folder: layouts, class ranks, preprocessing, and an error that names what is wrong."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attacks.errors import UserError
from benchmark import datasets, models

DATA = Path(os.environ.get("FOOLBENCH_DATA", Path(__file__).parents[3] / "../shared/data"))


def photograph(path, seed=0, size=(48, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """An ImageNet-like folder with three classes in train and two of them in val."""
    for c, wnid in enumerate(("n03", "n01", "n02")):
        for i in range(20):
            photograph(tmp_path / f"train/{wnid}/{i}.JPEG", 100 * c + i)
    for wnid in ("n03", "n02"):
        photograph(tmp_path / f"val/{wnid}/a.JPEG", 999)
    return tmp_path


def of_class(dataset):
    """{class folder: index}"""
    return {Path(path).parent.name: int(t) for path, t in zip(dataset.paths, dataset.targets, strict=True)}


def test_imagenet_splits(root):
    train, dev, test = (
        datasets.create("imagenet", split, root=root, input_size=32) for split in ("train", "dev", "test")
    )
    assert len(train) + len(dev) == 60
    assert 1 <= len(dev) <= 12
    assert sorted(test.paths) == ["val/n02/a.JPEG", "val/n03/a.JPEG"]
    assert all(path.startswith("train/") for path in train.paths + dev.paths)


@pytest.mark.parametrize("two_objects", [False, True])
def test_what_of_val_is_not_tested_joins_dev(root, two_objects):
    for i in range(5):
        photograph(root / f"val/n02/{i}.JPEG", 900 + i)

    def paths(split, tested):
        data = datasets.create(
            "imagenet",
            split,
            root=root,
            input_size=32,
            tested=tested,
            two_objects=two_objects,
            size=20 * two_objects or None,
        )
        return {path for i in range(len(data)) for path in data.files(i)}

    every, dev = paths("test", None), paths("dev", None)
    test, more = paths("test", 3), paths("dev", 3)
    assert len(test) == 3
    assert more == dev | (every - test)
    assert paths("train", 3) == paths("train", None)
    if not two_objects:
        first = datasets.create("imagenet", "test", root=root, input_size=32, size=3)
        assert set(first.paths) == test


def test_only_val_of_imagenet_is_split(root):
    with pytest.raises(UserError, match="tested is of imagenet's val"):
        datasets.create("image_folder", root=root, tested=3)


def test_rank_among_the_folders_of_both_parts(root):
    test = datasets.create("imagenet", "test", root=root, input_size=32)
    assert of_class(test) == {"n02": 1, "n03": 2}
    assert test.class_names == ["n01", "n02", "n03"]


def test_rank_among_all_classes_with_an_index(root):
    index = {str(i): [f"n{i:02d}", f"name {i}"] for i in range(1000)}
    (root / "imagenet_class_index.json").write_text(json.dumps(index))
    test = datasets.create("imagenet", "test", root=root, input_size=32)
    assert of_class(test) == {"n02": 2, "n03": 3}
    assert test.num_classes == 1000
    assert test.class_names[3] == "name 3"


@pytest.mark.parametrize("text", ["{", '{"1": ["n01", "a"]}', "[]"])
def test_a_broken_index_is_named(root, text):
    (root / "imagenet_class_index.json").write_text(text)
    with pytest.raises(UserError, match=r"imagenet_class_index\.json must map"):
        datasets.create("imagenet", root=root)


def test_a_folder_outside_the_index(root):
    (root / "imagenet_class_index.json").write_text('{"0": ["n01", "a"], "1": ["n02", "b"]}')
    with pytest.raises(UserError, match="class folder 'n03'"):
        datasets.create("imagenet", root=root)


def test_preprocessing_is_torchvisions(tmp_path):
    from torchvision import transforms

    photograph(tmp_path / "train/a/0.png", size=(300, 400))
    photograph(tmp_path / "val/a/0.png", size=(300, 400))
    reference = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    image, _ = datasets.create("imagenet", "test", root=tmp_path)[0]
    torch.testing.assert_close(image, reference(Image.open(tmp_path / "val/a/0.png")), rtol=0, atol=1e-6)


def test_augmentation_follows_the_loaders_seed(root):
    train = datasets.create("imagenet", root=root, input_size=32, size=6, augment=True)
    plain = datasets.create("imagenet", root=root, input_size=32, size=6)
    assert not torch.equal(train[0][0], plain[0][0])
    first, again, other = (torch.cat([x for x, _ in datasets.loader(train, 3, seed=s, workers=1)]) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_image_folder_split_by_hash(tmp_path):
    for i in range(200):
        photograph(tmp_path / f"{'ab'[i % 2]}/{i}.png", i, (16, 16))
    splits = [datasets.create("image_folder", s, root=tmp_path, input_size=16) for s in ("train", "dev", "test")]
    train, dev, test = (len(split) for split in splits)
    assert train + dev + test == 200
    assert 135 < train < 185
    assert min(dev, test) > 5
    assert all(split.class_names == ["a", "b"] for split in splits)


@pytest.mark.parametrize("held_out", ["dev", "val"])
def test_image_folder_with_split_folders(tmp_path, held_out):
    for k, part in enumerate(("train", held_out, "test")):
        photograph(tmp_path / part / "cat/0.png", k)
    photograph(tmp_path / "train/ant/0.png", 9)
    dev = datasets.create("image_folder", "dev", root=tmp_path, input_size=32)
    assert dev.paths == [f"{held_out}/cat/0.png"]
    assert dev.targets.tolist() == [1]


def test_a_class_called_train_is_a_class(tmp_path):
    for i in range(40):
        photograph(tmp_path / f"{('train', 'bus')[i % 2]}/{i}.png", i, (16, 16))
    assert datasets.create("image_folder", root=tmp_path, input_size=16).class_names == ["bus", "train"]


@pytest.mark.parametrize("name", ["imagenet", "image_folder", "cifar10"])
def test_root_must_be_given_and_exist(name, tmp_path):
    with pytest.raises(UserError, match=f"dataset '{name}' needs --data DIR"):
        datasets.create(name)
    with pytest.raises(UserError, match=r"no folder .*absent"):
        datasets.create(name, root=tmp_path / "absent")


def test_missing_split_folder(root):
    import shutil

    shutil.rmtree(root / "val")
    with pytest.raises(UserError, match="val must be a folder with one subfolder"):
        datasets.create("imagenet", "test", root=root)


def test_too_few_images_for_a_split(tmp_path):
    photograph(tmp_path / "a/0.png")
    with pytest.raises(UserError, match="too few images for a split"):
        [datasets.create("image_folder", split, root=tmp_path) for split in ("train", "dev", "test")]


def test_empty_class_folder(root):
    (root / "train/n04").mkdir()
    (root / "train/n04/notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"class folder .*n04 holds no image"):
        datasets.create("imagenet", root=root)


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "text", "truncated"])
def test_corrupt_image_is_named(root, content):
    path = root / "val/n02/a.JPEG"
    path.write_bytes(path.read_bytes()[:400] if content is None else content)
    test = datasets.create("imagenet", "test", root=root, input_size=32)
    with pytest.raises(UserError, match=r"n02/a\.JPEG cannot be read as an image"):
        list(test)


def test_overlap_names_the_files(root):
    (root / "val/n02/b.JPEG").write_bytes((root / "train/n01/3.JPEG").read_bytes())
    splits = [datasets.create("imagenet", split, root=root) for split in ("train", "dev", "test")]
    with pytest.raises(UserError, match=r"val/n02/b\.JPEG .*train/n01/3\.JPEG"):
        datasets.check_disjoint(*splits)


def binary_cifar(folder, per_file=12):
    """The binary version with random images; returns the images and labels of the test file."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        records = rng.integers(0, 256, (per_file, 3073), np.uint8)
        records[:, 0] = np.arange(per_file) % 10
        records.tofile(folder / f"{name}.bin")
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


@pytest.mark.parametrize("below", ["", "cifar-10-batches-bin"])
def test_cifar10_binary(tmp_path, below):
    pixels, labels = binary_cifar(tmp_path / "data" / below)
    train, dev, test = (datasets.create("cifar10", s, root=tmp_path / "data") for s in ("train", "dev", "test"))
    assert len(train) + len(dev) == 60
    assert len(test) == 12
    image, label = test[0]
    found = (test.denormalise(image) * 255).round().to(torch.uint8).numpy()
    (at,) = np.flatnonzero((pixels == found).all((1, 2, 3)))
    assert labels[at] == label


def test_cifar10_drops_test_images_from_train(tmp_path):
    pixels, _ = binary_cifar(tmp_path / "c")
    records = np.fromfile(tmp_path / "c/data_batch_1.bin", np.uint8).reshape(-1, 3073)
    records[0, 1:] = pixels[5].ravel()
    records.tofile(tmp_path / "c/data_batch_1.bin")
    splits = [datasets.create("cifar10", s, root=tmp_path / "c") for s in ("train", "dev", "test")]
    datasets.check_disjoint(*splits)
    assert sum(len(split) for split in splits) == 71


def test_cifar10_errors(tmp_path):
    with pytest.raises(UserError, match=r"test_batch\.bin.*pickled version is not read"):
        datasets.create("cifar10", "test", root=tmp_path)
    np.save(tmp_path / "test_x.npy", np.zeros((2, 32, 32, 3), np.uint8))
    np.save(tmp_path / "test_y.npy", np.array([3, 10]))
    with pytest.raises(UserError, match=r"test_x\.npy.*labels must lie in 0\.\.9"):
        datasets.create("cifar10", "test", root=tmp_path)
    np.save(tmp_path / "test_y.npy", np.array([{}, {}]))
    with pytest.raises(UserError, match="cannot be read: Object arrays cannot be loaded"):
        datasets.create("cifar10", "test", root=tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(b"0" * 4000)
    with pytest.raises(UserError, match=r"test_batch\.bin cannot be read"):
        datasets.create("cifar10", "test", root=tmp_path)


@pytest.mark.skipif(not (DATA / "imagenet-mini").is_dir(), reason=f"needs {DATA}/imagenet-mini (or FOOLBENCH_DATA)")
def test_real_imagenet_folder():
    train, dev, test = (
        datasets.create("imagenet", split, root=DATA / "imagenet-mini") for split in ("train", "dev", "test")
    )
    datasets.check_disjoint(train, dev, test)
    assert (len(train) + len(dev), len(test), test.num_classes) == (1000, 1000, 1000)
    assert 60 < len(dev) < 140
    assert train.class_names[386] == "African_elephant"
    image, label = train[0]
    index = json.loads((DATA / "imagenet-mini/imagenet_class_index.json").read_text())
    assert Path(train.paths[0]).parent.name == index[str(label)][0]
    assert image.shape == (3, 224, 224)
    pair = datasets.create("imagenet", root=DATA / "imagenet-mini", size=2, two_objects=True, class_pair=(386, 555))
    image, target = pair[0]
    assert image.shape == (3, 224, 224)
    assert target.tolist() == [386, 555]


@pytest.mark.skipif(not (DATA / "cifar10-mini").is_dir(), reason=f"needs {DATA}/cifar10-mini (or FOOLBENCH_DATA)")
def test_real_cifar10_arrays():
    train, dev, test = (datasets.create("cifar10", s, root=DATA / "cifar10-mini") for s in ("train", "dev", "test"))
    assert (len(train) + len(dev), len(test)) == (4000, 1000)
    datasets.check_disjoint(train, dev, test)
    images = torch.stack([image for image, _ in train.__getitems__(range(1000))])
    assert images.mean().abs() < 0.1
    assert 0.8 < images.std() < 1.2


@pytest.mark.parametrize("name", ["inception_v3", "efficientnet_v2_l", "swin_v2_t", "efficientnet_b0"])
def test_transforms_are_those_of_the_weights(tmp_path, name):
    """299 pixels; 480 of mean 1/2; 256 of 260; bicubic. A smaller input is in their proportion."""
    photograph(tmp_path / "train/a/0.png", size=(300, 400))
    photograph(tmp_path / "val/a/0.png", size=(300, 400))
    preset = models.preprocessing(name, "IMAGENET1K_V1")
    data = datasets.create("imagenet", "test", root=tmp_path, transforms=preset)
    assert data.input_size == preset.crop_size[0]
    expected = preset(Image.open(tmp_path / "val/a/0.png"))
    torch.testing.assert_close(data[0][0], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(data.denormalise(data[0][0][None]), preset_pixels(expected, preset), rtol=0, atol=1e-6)
    small = datasets.create("imagenet", "test", root=tmp_path, transforms=preset, input_size=32)
    assert small[0][0].shape == (3, 32, 32)
    assert small.mean == tuple(preset.mean)


def preset_pixels(image, preset):
    return (image * torch.tensor(preset.std).view(3, 1, 1) + torch.tensor(preset.mean).view(3, 1, 1))[None]


def test_transforms_are_of_photographs():
    with pytest.raises(UserError, match="transforms are of photographs: imagenet and image_folder"):
        datasets.create("shapes", size=2, transforms=models.preprocessing("inception_v3", None))

"""Concept masks: those `shapes` draws, a folder of masks, and Broden's format, each as it was written."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from attacks.errors import UserError
from benchmark import datasets
from benchmark.datasets.shapes import COLOURS, SHAPES, TEXTURES
from benchmark.dissection.concepts import Broden, Drawn, Folder


def whole(concepts):
    """All images, masks and annotations; the same in batches of any size."""
    (batch,) = concepts.batches(len(concepts))
    for size in (1, 2):
        for field, expected in zip(zip(*concepts.batches(size), strict=True), batch, strict=True):
            assert torch.equal(torch.cat(field), expected)
        assert torch.equal(torch.cat(list(concepts.images(size))), batch.images)
    return batch


@pytest.mark.parametrize("two_objects", [False, True])
def test_drawn(two_objects):
    dataset = datasets.create("shapes", "test", size=5, input_size=32, two_objects=two_objects)
    concepts = Drawn(dataset)
    images, masks, annotated = whole(concepts)
    assert len(concepts) == 5
    assert concepts.categories == ["object", "shape", "colour", "texture"]
    assert len(concepts.names) == 1 + len(SHAPES) + len(COLOURS) + len(TEXTURES)
    assert masks.shape == (5, len(concepts.names), 32, 32)
    assert annotated.all()
    for i in range(5):
        assert torch.equal(images[i], dataset[i][0])
        truth = dataset.masks(i)
        assert (masks[i, 0].numpy() == np.reshape(truth["object"], (-1, 32, 32)).any(0)).all()
        for (kind, name), mask in zip(concepts.names[1:], masks[i, 1:], strict=True):
            assert (mask.numpy() == truth[kind].get(name, False)).all()


def test_only_shapes_are_drawn_with_masks():
    other = datasets.Dataset()
    other.name = "other"
    with pytest.raises(UserError, match="dataset 'other' has no masks of concepts"):
        Drawn(other)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


HALF = np.repeat([[1, 0]], 2, axis=0)  # the left of two columns


@pytest.fixture
def folder(tmp_path):
    for name, value in (("b.png", 255), ("a.JPEG", 51)):
        write(tmp_path / "images" / name, np.full((6, 8, 3), value))
    write(tmp_path / "masks/part/wing/a.png", HALF)
    write(tmp_path / "masks/part/leg/a.png", np.zeros((6, 8)))
    write(tmp_path / "masks/part/leg/b.png", 255 * np.eye(4))
    write(tmp_path / "masks/colour/red/b.png", np.zeros((6, 8)))
    (tmp_path / "masks/.hidden").mkdir()
    (tmp_path / "images/notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_of_masks(folder):
    concepts = Folder(folder, 4, mean=(0, 0, 0), std=(0.5, 0.5, 0.5))
    images, masks, annotated = whole(concepts)
    assert concepts.names == [("colour", "red"), ("part", "leg"), ("part", "wing")]
    assert images.shape == (2, 3, 4, 4)
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor([0.4, 2.0]))
    assert annotated.tolist() == [[False, True], [True, True]]
    assert masks[0, 2].tolist() == [[True, True, False, False]] * 4
    assert torch.equal(masks[1, 1], torch.eye(4).bool())
    assert masks.sum().item() == 12
    assert next(Folder(folder, 4, side=2).batches(2)).masks.shape == (2, 3, 2, 2)


def test_the_default_normalisation_is_imagenets(folder):
    images = next(Folder(folder, 4).images(2))
    torch.testing.assert_close(
        images[1, :, 0, 0], torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    )


def test_what_is_wrong_with_a_folder_is_named(folder, tmp_path):
    with pytest.raises(
        UserError, match=r"concepts need images/NAME.* and masks/CATEGORY/CONCEPT/NAME.png: no .*images$"
    ):
        Folder(tmp_path / "masks", 4)
    write(folder / "images/b.bmp", np.zeros((2, 2, 3)))
    with pytest.raises(UserError, match=r"images need names of their own, whatever the suffix \(two are .*images/b\)"):
        Folder(folder, 4)
    (folder / "images/b.bmp").unlink()
    write(folder / "masks/part/leg/c.png", HALF)
    with pytest.raises(UserError, match=r"must be a PNG, named as one of .*images \(got .*leg/c.png\)"):
        Folder(folder, 4)
    (folder / "masks/part/leg/c.png").rename(folder / "masks/part/leg/b.png")
    (folder / "masks/part/leg/b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"leg/b.png cannot be read as an image"):
        list(Folder(folder, 4).batches(2))
    with pytest.raises(UserError, match=r"batch_size must be at least 1 \(got 0\)"):
        list(Folder(folder, 4).batches(0))
    for path in (folder / "images").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"need an image and a concept at least \(got 0 and 3\)"):
        Folder(folder, 4)


LABELS = """number,name,category,frequency,coverage,syns
1,red-c,color(3),3,0.5,
2,"wood, oak",material(2);object(1),3,0.5,timber
300,nan,object(2),2,0.1,
4,striped,texture(1),1,1.0,banded;lined
5,dotted,texture,1,1.0,
"""
INDEX = """image,split,ih,iw,sh,sw,color,object,material,texture
ade/1.png,train,4,4,2,2,ade/1_color.png,ade/1_object.png;ade/1_more.png,2,
dtd/2.png,val,4,4,2,2,,,,5;4
dtd/3.png,train,4,4,2,2,,,,
dtd/4.png,train,4,4,2,2,ade/1_color.png,0,,4
"""


@pytest.fixture
def broden(tmp_path):
    """Label 300 is red 44 + 256 · green 1."""

    def labels(name, numbers):
        numbers = np.array(numbers)
        write(tmp_path / "images" / name, np.stack([numbers % 256, numbers // 256, 0 * numbers], axis=-1))

    (tmp_path / "label.csv").write_text(LABELS)
    (tmp_path / "index.csv").write_text(INDEX)
    for name in ("ade/1.png", "dtd/2.png", "dtd/3.png", "dtd/4.png"):
        write(tmp_path / "images" / name, np.full((4, 4, 3), 255))
    labels("ade/1_color.png", [[1, 0], [0, 0]])
    labels("ade/1_object.png", [[300, 300], [0, 2]])
    labels("ade/1_more.png", [[2, 0], [0, 0]])
    return tmp_path


def test_broden(broden):
    concepts = Broden(broden, 4)
    images, masks, annotated = whole(concepts)
    names = [("color", "red-c"), ("object", "wood, oak"), ("object", "nan"), ("material", "wood, oak")]
    assert concepts.names == [*names, ("texture", "striped"), ("texture", "dotted")]
    assert concepts.categories == ["color", "object", "material", "texture"]
    assert images.shape == (3, 3, 4, 4)  # the third row is annotated in nothing
    everywhere, nowhere = [[True, True]] * 2, [[False, False]] * 2
    colour = [[True, False], [False, False]]
    shown = [colour, [[True, False], [False, True]], [[True, True], [False, False]], everywhere, nowhere, nowhere]
    assert masks[0].tolist() == shown
    assert masks[1].tolist() == [nowhere] * 4 + [everywhere] * 2
    assert masks[2].tolist() == [colour, *[nowhere] * 3, everywhere, nowhere]
    assert annotated.tolist() == [[True, True, True, False], [False, False, False, True], [True, False, False, True]]


def test_masks_have_the_side_asked_for(broden):
    masks = next(Broden(broden, 4, side=6).batches(1)).masks
    corner = torch.zeros(6, 6, dtype=torch.bool)
    corner[:3, :3] = True
    assert torch.equal(masks[0, 0], corner)


def test_less_of_broden(broden):
    val = Broden(broden, 4, split="val")
    assert len(val) == 1
    few = Broden(broden, 4, categories=["texture", "color"], size=2)
    assert [path.name for path in few.paths] == ["1.png", "2.png"]
    assert few.names == [("texture", "striped"), ("texture", "dotted"), ("color", "red-c")]
    assert whole(few).annotated.tolist() == [[False, True], [True, False]]


def test_nothing_but_reading(broden):
    before = {path: path.read_bytes() for path in broden.rglob("*.*")}
    whole(Broden(broden, 4))
    assert {path: path.read_bytes() for path in broden.rglob("*.*")} == before


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "label.csv",
            "number,",
            "code,",
            r"label.csv must have the columns number, name, category \(without 'number'\)",
        ),
        ("index.csv", "split,", "part,", r"index.csv must have the columns image, split \(without 'split'\)"),
        ("label.csv", "300,", "x,", r"label.csv: number must be a whole number \(got 'x'\)"),
        (
            "label.csv",
            "300,",
            "301,",
            r"1_object.png has a label that label.csv does not list in the category 'object'",
        ),
        ("label.csv", ";object(1)", "", r"1_object.png has a label that .* not list in the category 'object'"),
        ("index.csv", "5;4", "5;6", r"dtd/2.png has a label that label.csv does not list in the category 'texture'"),
        ("index.csv", "5;4", "5;999", r"dtd/2.png has a label that label.csv does not list in the category 'texture'"),
        ("index.csv", "1_more", "2_more", r"2_more.png cannot be read as an image"),
        ("index.csv", "dtd/4", "dtd/5", r"dtd/5.png cannot be read as an image"),
    ],
)
def test_what_is_wrong_with_broden_is_named(broden, file, old, new, message):
    path = broden / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        list(Broden(broden, 4).batches(2))


def test_wrong_choices_of_broden_are_named(broden):
    make = partial(Broden, broden, 4)
    with pytest.raises(UserError, match=r"unknown category of Broden's format 'colour': did you mean 'color'\?"):
        make(categories=["colour"])
    with pytest.raises(UserError, match=r"unknown split of .*index.csv 'test': allowed: train, val"):
        make(split="test")
    (broden / "index.csv").unlink()
    with pytest.raises(UserError, match=r"index.csv cannot be read as a table of Broden's format"):
        make()

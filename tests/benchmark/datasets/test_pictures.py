"""Image files of every mode, orientation and transparency: the right pixels, or one line with the file's name."""

import numpy as np
import pytest
import torch
from PIL import Image

from attacks.errors import UserError
from benchmark import datasets
from benchmark.datasets import pictures
from benchmark.datasets.pictures import mask, opened, read

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 7, 3), np.uint8)
WIDE = RNG.integers(0, 65536, (6, 7), np.uint16)


def pixels(path):
    return np.asarray(opened(path)).astype(int)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm", "jp2"])
def test_grey_of_16_bits_is_scaled(tmp_path, suffix):
    Image.fromarray(WIDE).save(tmp_path / f"a.{suffix}")
    expected = np.rint(WIDE.astype(float) / 65535 * 255)
    assert np.array_equal(pixels(tmp_path / f"a.{suffix}"), np.repeat(expected[..., None], 3, 2))


def test_grey_of_16_bits_stored_big_endian_or_white_at_zero(tmp_path):
    expected = np.rint(WIDE.astype(float) / 257)
    Image.frombytes("I;16B", (7, 6), WIDE.astype(">u2").tobytes()).save(tmp_path / "b.tiff")
    assert np.array_equal(pixels(tmp_path / "b.tiff")[..., 0], expected)
    Image.fromarray(WIDE).save(tmp_path / "w.tiff", tiffinfo={262: 0})
    with Image.open(tmp_path / "w.tiff") as image:
        assert image.tag_v2[262] == 0
    assert np.abs(pixels(tmp_path / "w.tiff")[..., 0] - (255 - expected)).max() <= 1


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_a_mode_without_a_known_white_is_refused_by_file_name(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match=rf"a\.tiff cannot be read as an image: its mode {mode} is not read: save it"):
        opened(tmp_path / "a.tiff")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"])
def test_an_opaque_image_is_what_pillow_shows(tmp_path, mode):
    image = Image.fromarray(COLOURS).convert(mode)
    image.save(tmp_path / "a.tiff")
    assert np.array_equal(pixels(tmp_path / "a.tiff"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_what_is_transparent_shows_white(mode):
    """Against the formula, alpha · colour + (1 - alpha) · white."""
    alpha = np.array([[0, 255, 128]], np.uint8)
    image = Image.fromarray(np.full((1, 3, 3), 40, np.uint8)).convert(
        "P" if mode == "PA" else mode[0] if mode[0] == "L" else "RGB"
    )
    image.putalpha(Image.fromarray(alpha))
    found = np.asarray(pictures.rgb(image.convert(mode)))[0]
    expected = alpha[0] / 255 * (51 if mode == "PA" else 40) + (1 - alpha[0] / 255) * 255  # 51: the palette's nearest
    assert np.abs(found - expected[:, None]).max() <= 1.5


def test_a_transparent_colour_of_a_palette_of_grey_or_of_16_bits_shows_white(tmp_path):
    for image, clear in (
        (Image.fromarray(np.array([[0, 90]], np.uint8)), 0),
        (Image.fromarray(np.array([[0, 90 * 257]], np.uint16)), 0),
        (Image.fromarray(np.array([[0, 90]], np.uint8)).convert("RGB"), (0, 0, 0)),
        (Image.fromarray(np.array([[0, 90]], np.uint8)).convert("P"), 0),
    ):
        image.save(tmp_path / "a.png", transparency=clear)
        assert pixels(tmp_path / "a.png")[0, :, 0].tolist() == [255, 90]


@pytest.mark.parametrize("suffix", ["png", "tiff", "jpg", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_camera_is_obeyed(tmp_path, suffix, orientation):
    """A square is dark in the corner that is stored first; where EXIF says that corner is to be seen."""
    stored = np.full((32, 48), 255, np.uint8)
    stored[:16, :16] = 0
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}", exif=exif)
    shown = pixels(tmp_path / f"a.{suffix}")[..., 0]
    rows, columns = (slice(0, 16), slice(-16, None)), (slice(0, 16), slice(-16, None))
    bottom, right = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)  # of the TIFF standard's table
    assert shown.shape == ((32, 48) if orientation < 5 else (48, 32))
    assert shown[rows[bottom], columns[right]].mean() < 20
    assert (shown < 128).sum() < 300


def test_exif_that_cannot_be_read_says_nothing(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=b"Exif\0\0nonsense")
    assert np.array_equal(pixels(tmp_path / "a.png"), COLOURS)


def test_a_bomb_is_one_line_and_a_large_photograph_no_warning(tmp_path, monkeypatch, recwarn):
    Image.new("1", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 3)
    with pytest.raises(
        UserError, match=r"^dataset 'x': .*a\.png cannot be read as an image: .*decompression bomb"
    ) as caught:
        opened(tmp_path / "a.png", "dataset 'x': ")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    opened(tmp_path / "a.png")
    assert not recwarn.list


def test_a_mask_is_true_where_it_is_white(tmp_path):
    path = tmp_path / "m.png"
    for values in (np.array([[0, 255]], np.uint8), np.array([[0, 65535]], np.uint16), np.array([[40, 130]], np.uint8)):
        Image.fromarray(values).save(path)
        assert read(path, mask).tolist() == [[False, True]]
    Image.new("1", (2, 1), 0).save(path)
    assert not read(path, mask).any()
    Image.fromarray(np.array([[0, 1]], np.uint8)).save(path)
    assert read(path, mask).tolist() == [[False, True]]
    Image.fromarray(np.array([[0, 1, 2]], np.uint8)).save(path)
    with pytest.raises(
        UserError, match=r"m\.png .*must be white where the concept is \(its brightest pixel is 2 of 255"
    ):
        read(path, mask)
    Image.new("RGBA", (2, 2), (255, 255, 255, 0)).save(path)
    with pytest.raises(UserError, match=r"m\.png .*nothing in it transparent"):
        read(path, mask)


@pytest.fixture
def classes(tmp_path):
    for i, path in enumerate(("cat/a.jfif", "cat/deep/er/b.png", "cat/c.AVIF", "dog/d.gif", "dog/e.png")):
        file = tmp_path / "train" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        form = "JPEG" if path.endswith("jfif") else None
        Image.fromarray(np.full((16, 16, 3), 40 * i, np.uint8)).save(file, form)
    (tmp_path / "train/cat/notes.txt").write_text("")
    (tmp_path / "train/dog/raw").mkdir()
    (tmp_path / "train/dog/raw/f.heic").write_text("")
    (tmp_path / "train/stray.png").write_text("")
    (tmp_path / "train/cat/._a.jpg").write_text("")
    return tmp_path


def test_what_is_in_a_class_folder_is_read_or_named(classes):
    train = datasets.create("image_folder", root=classes, input_size=16)
    names = ["cat/a.jfif", "cat/c.AVIF", "cat/deep/er/b.png", "dog/d.gif", "dog/e.png"]
    assert sorted(train.paths) == [f"train/{name}" for name in names]
    assert {path.split("/")[1] for path, t in zip(train.paths, train.targets.tolist(), strict=True) if t == 0} == {
        "cat"
    }
    assert train.ignored == ["train/stray.png", "train/cat/notes.txt", "train/dog/raw/f.heic"]
    assert torch.stack([image for image, _ in train]).isfinite().all()


def test_a_link_in_a_circle_ends(classes):
    (classes / "train/dog/again").symlink_to(classes / "train/dog")
    assert len(datasets.create("image_folder", root=classes, input_size=16)) == 5


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ("train/a/b", "val/a/b", "dev/a/b"),
            r"must hold train, dev \(or val, not both\) and test \(got dev, train, val\)",
        ),
        (("train/a/b", "valid/a/b"), r"must hold train, dev \(or val, not both\) and test \(got train, valid\)"),
        (("Train/a/b", "Test/a/b"), r"folders of splits in .* are train, dev \(or val\) and test \(got 'Test'\)"),
    ],
)
def test_the_names_of_the_splits_are_told(tmp_path, folders, message):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        datasets.create("image_folder", "dev", root=tmp_path)


def test_names_that_are_not_utf8(tmp_path):
    import os

    for i in range(60):
        folder = os.fsencode(tmp_path) + b"/" + (b"caf\xe9", b"the\xc3\xa9")[i % 2]
        os.makedirs(folder, exist_ok=True)
        with open(folder + b"/%d\xff.png" % i, "wb") as file:
            Image.fromarray(RNG.integers(0, 256, (16, 16, 3), np.uint8)).save(file, "png")
    splits = [datasets.create("image_folder", split, root=tmp_path, input_size=16) for split in datasets.SPLITS]
    datasets.check_disjoint(*splits)
    assert sum(map(len, splits)) == 60
    assert splits[0].class_names == ["caf\\xe9", "theé"]
    assert len(splits[0].inventory) == 64
    assert splits[0][0][0].shape == (3, 16, 16)

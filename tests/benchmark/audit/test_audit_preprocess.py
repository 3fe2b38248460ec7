"""How images are prepared for a network: by name as torchvision does, or as a file says."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import MobileNet_V2_Weights

from attacks.errors import UserError
from benchmark.audit.listing import File
from benchmark.audit.preprocess import Preprocess, create, decoded, usual


def test_a_classifiers_preprocessing_is_torchvisions_own(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    form = create("mobilenet_v2")
    got = form.normalise(decoded((File(tmp_path / "a.png", None),), form))
    expected = MobileNet_V2_Weights.IMAGENET1K_V1.transforms()(Image.fromarray(pixels))
    torch.testing.assert_close(
        got[0], expected, rtol=0, atol=1.01 / 255 / 0.224
    )  # a level of grey: PIL rounds otherwise
    assert create("imagenet") == form
    assert [usual(name) for name in ("mobilenet_v2", "compact_vgg", "my_net.py:Net")] == [
        "mobilenet_v2",
        "shapes",
        "imagenet",
    ]


def test_a_file_may_begin_with_a_mark_of_its_byte_order(tmp_path):
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbfsize = 8\r\nmean = [0]\r\nstd = [1]\r\n")
    assert create(str(tmp_path / "bom.toml")) == Preprocess([8], [8], (0.0,), (1.0,))


def test_a_file_may_ask_for_grey_images(tmp_path):
    (tmp_path / "mine.toml").write_text("size = 8\nmean = [0.5]\nstd = [0.25]")
    Image.fromarray(np.full((8, 8, 3), (255, 0, 0), np.uint8)).save(tmp_path / "red.png")
    form = create(str(tmp_path / "mine.toml"))
    got = form.normalise(decoded((File(tmp_path / "red.png", None),), form))
    torch.testing.assert_close(got, torch.full((1, 1, 8, 8), (0.2989 - 0.5) / 0.25), rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16", "1"])
def test_images_of_mixed_modes_are_of_one_shape(tmp_path, mode):
    grey = Image.fromarray(np.arange(144, dtype=np.uint8).reshape(12, 12))
    image = Image.fromarray(np.arange(144, dtype=np.uint16).reshape(12, 12)) if mode == "I;16" else grey.convert(mode)
    image.save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    grey.convert("RGB").save(tmp_path / "b.png")
    (tmp_path / "s.json").write_text('{"size": 8, "mean": [0, 0, 0], "std": [1, 1, 1]}')
    files = tuple(File(path, None) for path in (*tmp_path.glob("a.*"), tmp_path / "b.png"))
    assert decoded(files, create(str(tmp_path / "s.json"))).shape == (2, 3, 8, 8)


def test_an_image_whose_white_is_not_known_is_refused_by_its_name(tmp_path):
    Image.fromarray(np.zeros((9, 9), np.float32)).save(tmp_path / "odd.tif")
    with pytest.raises(UserError, match=r"odd\.tif cannot be read as an image: its mode F is not read"):
        decoded((File(tmp_path / "odd.tif", None),), create("imagenet"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("imagnet", None, "did you mean 'imagenet'?"),
        ("absent.toml", None, "absent.toml cannot be read: No such file"),
        ("a.toml", "size = ", "a.toml is no TOML: "),
        ("a.json", "[1", "a.json is no JSON: "),
        ("a.json", '{"size": 8}', "must give size (and resize) in pixels"),
        ("a.json", '{"size": 8, "mean": [0, 0], "std": [1, 1]}', "each a list of 1 or 3 numbers"),
        ("a.json", '{"size": 8, "mean": [0], "std": [0]}', "std > 0"),
        ("a.json", '{"size": 8, "resize": 7, "mean": [0], "std": [1]}', "must give size"),
        ("a.json", '{"size": 8, "mean": ["x"], "std": [1]}', "must give size"),
        ("a.json", '{"size": 8, "mean": "123", "std": [1, 1, 1]}', "must give size"),
        ("a.json", '{"size": 8, "mean": [NaN], "std": [1]}', "mean (0 to 1, as the pixels are)"),
        ("a.json", '{"size": 8, "mean": [123.675], "std": [58.4]}', "mean (0 to 1, as the pixels are)"),
        ("a.json", '{"size": 8, "mean": [0], "std": [Infinity]}', "std > 0"),
        ("a.json", "[" * 10**5, "a.json is no JSON: "),
    ],
)
def test_what_is_none_is_told_in_one_line(tmp_path, monkeypatch, name, text, message):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"^[^\n]*{re.escape(message)}[^\n]*$"):
        create(name)

"""Image files as pictures: 8-bit RGB, scaled as their mode means it, or refused by the file's name.

Three differences to torchvision's own loader, which takes `convert("RGB")` of whatever Pillow opens: grey of 16 bits is
scaled by 1/257 (there: all above 255 is white), what is transparent shows white (there: whatever colour lies below),
and a picture is turned as its EXIF orientation says (there: as the sensor lay). Of several frames the first is read.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from attacks.errors import UserError, may_pass

SUFFIXES: tuple[str, ...] = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
)
SUFFIXES += (".webp", ".avif", ".jp2")
PLAIN = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")  # what Pillow converts to RGB without loss of meaning
WIDE = ("PNG", "PPM")  # formats whose mode I is grey of 16 bits
ALPHA = {"LA": "LA", "La": "LA", "PA": "PA", "RGBA": "RGBA", "RGBa": "RGBA"}  # premultiplied ones are divided first


def opened(path: Path, what: str = "") -> Image.Image:
    """The picture in that file, mode RGB. Raises `UserError` that names the file; `what` comes before its name."""
    return read(path, rgb, what)


def read(path: Path, convert: Callable[[Image.Image], Any], what: str = "") -> Any:
    """`convert` of what Pillow opens. Foreign bytes fail in many ways, which all mean the same."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is large but no bomb: that is an error of Pillow's
            # not by its path: Pillow maps such a file, and shuffles a TIFF that is stored on its side
            with open(path, "rb") as file, Image.open(file) as image:
                image.load()
                return convert(image)
    except Exception as error:
        if may_pass(error) or isinstance(error, (TypeError, AttributeError)):  # the last ones are of code, not of bytes
            raise
        if isinstance(error, UnidentifiedImageError):
            reason = "no format that Pillow knows"
        else:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what}{path} cannot be read as an image: {reason}") from error


def rgb(image: Image.Image) -> Image.Image:
    """An opened image as RGB, upright. Raises `UserError` for a mode whose white is not known."""
    clear, image = image.info.get("transparency"), upright(image)
    if image.mode == "I;16":
        grey = np.rint(np.asarray(image) / 257).astype(np.uint8)
        grey[np.asarray(image) == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ALPHA or (image.mode in PLAIN and clear is not None):
        layered = image.convert(ALPHA.get(image.mode, "RGBA")).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    if image.mode in PLAIN:
        return image.convert("RGB")
    raise UserError(f"its mode {image.mode} is not read: save it as RGB or grey of 8 bits, or as grey of 16")


def mask(image: Image.Image) -> np.ndarray:
    """(h, w) bool, True where it is white: above the middle, or where 0 and one other value are all there is. Raises
    `UserError` where that is not plain: something transparent, or shades of dark."""
    if image.has_transparency_data:
        opacity = np.asarray(image.convert(ALPHA.get(image.mode, "RGBA")).getchannel("A"))
        if opacity.min() < 255:
            raise UserError("a mask must be white and black, and nothing in it transparent")
    grey = np.asarray(rgb(image).convert("L"))
    if grey.max() >= 128:
        return grey >= 128
    if len(np.unique(grey[grey > 0])) > 1:
        raise UserError(f"a mask must be white where the concept is (its brightest pixel is {grey.max()} of 255)")
    return grey > 0


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; grey of up to 16 bits, however it is stored, as I;16 with white at 65535."""
    known, bits, inverted = image.mode.startswith("I;16") or (image.mode == "I" and image.format in WIDE), 16, False
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits, inverted = tags.get(258, (16,))[0], known and tags.get(262) == 0  # 0: white is zero
    with suppress(Exception):  # EXIF data that cannot be read says nothing
        image = ImageOps.exif_transpose(image)
    if not known:
        return image
    values = np.rint(np.asarray(image).astype(np.float64) * (65535 / (2**bits - 1))).clip(0, 65535).astype(np.uint16)
    return Image.fromarray(65535 - values if inverted else values)

"""`shapes`: images drawn from a seed, for which the truth about the evidence is known. Own construction, no source.

One coloured, textured shape (radius 11-17 px at 64, centre jittered by at most 7 px: a border of 1/8 of the side stays
free) on greyish, textured, noisy ground. Class = shape; colour, texture and ground are independent of it. A shape is a
signed distance function in units of its radius, its edge anti-aliased over one pixel. Two-object form: two different
shapes (radius 9-12) in opposite places, disjoint, each side equally often first. Every random field has a generator of
its own, so that image i is the same whatever the size asked for.
"""

from collections.abc import Callable

import numpy as np

from attacks.errors import UserError
from benchmark.datasets import SPLITS
from benchmark.datasets.base import Arrays, Options, check_memory, check_pair

Array = np.ndarray  # float32 unless said otherwise


def _star(u: Array, v: Array) -> Array:
    sector = np.pi / 5  # fold into half an arm: one straight edge, from its tip to the inner corner
    angle = np.abs(np.mod(np.arctan2(u, -v) + sector, 2 * sector) - sector)
    radius = np.hypot(u, v)
    tip, inner = 1.12, 0.5
    edge = np.array([inner * np.cos(sector) - tip, inner * np.sin(sector)])
    normal = np.array([edge[1], -edge[0]], dtype=np.float32) / np.float32(np.hypot(*edge))
    straight = (radius * np.cos(angle) - np.float32(tip)) * normal[0] + radius * np.sin(angle) * normal[1]
    return np.maximum(straight, radius - 1)


# (u right, v down) in radii -> signed distance, < 0 inside. Thin tips are cut, so that a mask holds what is drawn.
SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": lambda u, v: np.hypot(u, v) - 0.88,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) - 0.78,
    "triangle": lambda u, v: np.maximum(abs(u) * 0.866 - v * 0.5, v) - 0.55,
    "cross": lambda u, v: np.maximum(np.maximum(abs(u), abs(v)) - 1, np.minimum(abs(u), abs(v)) - 0.3),
    "ring": lambda u, v: abs(np.hypot(u, v) - 0.74) - 0.24,
    "star": _star,
    "crescent": lambda u, v: np.maximum(np.maximum(np.hypot(u, v) - 0.98, 0.78 - np.hypot(u - 0.5, v)), u - 0.38),
    "bars": lambda u, v: np.maximum(abs(u) - 0.8, np.minimum(abs(v), abs(abs(v) - 0.64)) - 0.18),
}
COLOURS = {
    "red": (0.92, 0.15, 0.15),
    "green": (0.10, 0.75, 0.20),
    "blue": (0.15, 0.30, 0.95),
    "yellow": (0.95, 0.85, 0.10),
    "magenta": (0.90, 0.15, 0.85),
    "cyan": (0.10, 0.85, 0.90),
}
TEXTURES: dict[str, Callable[[Array, Array], Array]] = {  # (p, q) in periods -> share of the darker shade, in [0, 1]
    "solid": lambda p, q: np.zeros_like(p),
    "stripes": lambda p, q: _step(np.sin(2 * np.pi * p)),
    "checker": lambda p, q: _step(2 * np.sin(np.pi * p) * np.sin(np.pi * q)),
    "dots": lambda p, q: _step(np.cos(2 * np.pi * p) + np.cos(2 * np.pi * q) - 0.5),
}
SIZES = {"train": 3000, "dev": 512, "test": 512}
DARK = np.float32(0.45)  # a texture's darker shade, as a share of the colour
NOISE = np.float32(0.06)  # uniform within ± this, on every pixel
CHUNK = 64  # images drawn at once: small enough for the cache, large enough to hide the interpreter


def _step(wave: Array) -> Array:
    return np.clip(0.5 + 2 * wave, 0, 1)


class Shapes(Arrays):
    """The drawn dataset: 8 classes, in equal numbers when there is one object."""

    draws_pairs = True
    default_size = 64
    name = "shapes"
    num_classes = len(SHAPES)
    mean, std = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)

    def __init__(self, options: Options) -> None:
        if options.augment:
            raise UserError("dataset 'shapes' has no augmentation: draw more images instead (size)")
        if options.class_pair is not None:
            check_pair(options.class_pair, self.num_classes, self.name)
        self.class_names = list(SHAPES)
        self.split, side = options.split, options.input_size
        n = options.size or SIZES[options.split]
        m = 2 if options.two_objects else 1
        check_memory(n * (3 * side**2 + m * side**2 // 8), self.name, f"{n} images of {side} × {side}")

        def field(name: str) -> np.random.Generator:
            return np.random.default_rng([options.seed, SPLITS.index(options.split), m, *name.encode()])

        blocks = -(-n // self.num_classes) if m == 1 else n
        shuffled = field("class").random((blocks, self.num_classes)).argsort(axis=1)
        classes = shuffled.reshape(-1, 1)[:n] if m == 1 else shuffled[:, :2]
        if options.class_pair is not None:
            classes = np.tile(options.class_pair, (n, 1))
        self._colours = field("colour").integers(len(COLOURS), size=(n, m))
        self._textures = field("texture").integers(len(TEXTURES), size=(n, m))
        radii, centres = _places(field("place"), n, m, side)
        turns = field("turn").uniform(-0.3, 0.3, (n, m))
        pattern = field("pattern").random((n, m, 4))
        ground, noise = field("ground").random((n, 10)), field("noise")

        pixels = np.empty((n, 3, side, side), np.uint8)
        masks = []
        for start in range(0, n, CHUNK):
            s = slice(start, start + CHUNK)
            canvas = _ground(ground[s], side)
            kept = np.empty((len(canvas), m, side, side), bool)
            for k in range(m):
                u, v = _local(centres[s, k], turns[s, k], side)
                cover = _cover(u, v, classes[s, k], radii[s, k])
                paint = _paint(u, v, self._colours[s, k], self._textures[s, k], pattern[s, k], side)
                canvas += cover[:, None] * (paint - canvas)
                kept[:, k] = cover > 0.5
            canvas += NOISE * (2 * noise.random((len(canvas), 1, side, side), np.float32) - 1)
            pixels[s] = np.clip(canvas * 255 + 0.5, 0, 255)
            masks.append(np.packbits(kept.reshape(len(canvas), m, -1), axis=-1))
        self._masks = np.concatenate(masks)
        super().__init__(pixels, classes if m == 2 else classes[:, 0], side)

    def masks(self, index: int) -> dict[str, np.ndarray | dict[str, np.ndarray]]:
        """Where the evidence is: "object" bool (H, W), or (2, H, W) in the order of the targets; and for each kind of
        concept ("shape", "colour", "texture") the (H, W) masks, by name, of those that the image shows."""
        side = self.input_size
        objects = np.unpackbits(self._masks[index], axis=-1, count=side * side).astype(bool).reshape(-1, side, side)
        masks: dict[str, np.ndarray | dict[str, np.ndarray]] = {"object": objects[0] if len(objects) == 1 else objects}
        shown = {
            "shape": [list(SHAPES)[c] for c in self.targets[index].view(-1)],
            "colour": [list(COLOURS)[c] for c in self._colours[index]],
            "texture": [list(TEXTURES)[c] for c in self._textures[index]],
        }
        for kind, names in shown.items():
            masks[kind] = {name: np.any(objects[[other == name for other in names]], axis=0) for name in names}
        return masks


def _places(rng: np.random.Generator, n: int, m: int, side: int) -> tuple[Array, Array]:
    """Radii (n, m) and centres (n, m, 2) as (x, y), in pixels."""
    draw = rng.random((n, 8))
    middle, px = (side - 1) / 2, side / 64
    if m == 1:
        return (11 + 6 * draw[:, :1]) * px, (middle + 14 * (draw[:, None, 1:3] - 0.5) * px)
    angle = np.pi / 4 * np.floor(draw[:, 0] * 3 - 1) + 0.3 * (draw[:, 1] - 0.5) + np.pi * (draw[:, 2] > 0.5)
    arm = 14.8 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    common = 4 * (draw[:, 3:5] - 0.5)
    centres = np.stack([common + arm, common - arm], axis=1)
    return (9 + 3 * draw[:, 5:7]) * px, middle + centres * px


def _local(centres: Array, turns: Array, side: int) -> tuple[Array, Array]:
    """Each pixel's place (n, H, W) in its object's own frame, in pixels."""
    axis = np.arange(side, dtype=np.float32)
    x = (axis[None, :] - centres[:, :1]).astype(np.float32)[:, None, :]
    y = (axis[None, :] - centres[:, 1:]).astype(np.float32)[:, :, None]
    c, s = (f(turns).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    return c * x + s * y, c * y - s * x


def _cover(u: Array, v: Array, classes: Array, radii: Array) -> Array:
    """How much of each pixel the object covers, (n, H, W) in [0, 1]."""
    cover = np.empty_like(u)
    for c, distance in enumerate(SHAPES.values()):
        (of,) = np.nonzero(classes == c)
        if len(of):
            r = radii[of, None, None].astype(np.float32)
            cover[of] = np.clip(0.5 - r * distance(u[of] / r, v[of] / r), 0, 1)
    return cover


def _paint(u: Array, v: Array, colours: Array, textures: Array, pattern: Array, side: int) -> Array:
    """The objects' colours (n, 3, H, W), as if they filled the image; `pattern` (n, 4): period, turn, two phases."""
    period, turn, *phases = pattern.astype(np.float32).T[:, :, None, None]
    step = (5.5 + 2 * period) * np.float32(side / 64)
    c, s = np.cos(np.pi * turn) / step, np.sin(np.pi * turn) / step
    p, q = c * u + s * v + phases[0], c * v - s * u + phases[1]
    dark = np.empty_like(u)
    for t, texture in enumerate(TEXTURES.values()):
        (of,) = np.nonzero(textures == t)
        dark[of] = texture(p[of], q[of])
    palette = np.array(list(COLOURS.values()), np.float32)
    return palette[colours][:, :, None, None] * (1 - (1 - DARK) * dark)[:, None]


def _ground(draw: Array, side: int) -> Array:
    """(n, 3, H, W): a grey in 0.35..0.65 with a faint tint, and the product of two plane waves; `draw` (n, 10)."""
    draw = draw.astype(np.float32)
    base = 0.35 + 0.3 * draw[:, :1] + 0.08 * (draw[:, 1:4] - 0.5)
    axis = 2 * np.pi * np.arange(side, dtype=np.float32) / np.float32(side / 64)
    waves: Array = np.full((len(draw), 1, 1), 0.07, np.float32)
    for angle, length, phase in (draw[:, 4:7].T, draw[:, 7:10].T):
        frequency = 1 / (8 + 16 * length)
        x = (np.cos(2 * np.pi * angle) * frequency)[:, None] * axis
        y = (np.sin(2 * np.pi * angle) * frequency)[:, None] * axis
        waves = waves * np.cos(x[:, None, :] + y[:, :, None] + 2 * np.pi * phase[:, None, None])
    return base[:, :, None, None] + waves[:, None]

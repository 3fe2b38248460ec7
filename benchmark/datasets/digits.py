"""`digits`: the 1,797 real handwritten digits that come with scikit-learn (8x8, Alpaydin and Kaynak 1998), enlarged.

Split 60/20/20 within each class, in the order of the images' hashes: no seed moves an image to another split, and equal
images stay together.
"""

import hashlib

import numpy as np

from attacks.errors import UserError
from benchmark.datasets import SPLITS
from benchmark.datasets.base import Arrays, Options

CUTS = (0.6, 0.8)


class Digits(Arrays):
    """Grey digits as three equal channels, bilinear to `input_size`."""

    name = "digits"
    num_classes = 10
    mean, std = (0.305, 0.305, 0.305), (0.376, 0.376, 0.376)

    def __init__(self, options: Options) -> None:
        from sklearn.datasets import load_digits

        if options.augment:
            raise UserError("dataset 'digits' has no augmentation: a flipped digit is another digit")
        self.class_names = [str(digit) for digit in range(10)]
        self.split = options.split
        data = load_digits()
        pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)[:, None]
        members = split_members(pixels, data.target, options.split)
        order = np.random.default_rng([options.seed, SPLITS.index(options.split)])
        kept = order.permutation(members)[: options.size]
        super().__init__(pixels[kept], data.target[kept], options.input_size)


def split_members(pixels: np.ndarray, targets: np.ndarray, split: str) -> np.ndarray:
    """Ascending indices of the images (N, ...) uint8 that belong to `split`."""
    digests = np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in pixels])
    members = np.zeros(len(pixels), bool)
    for c in np.unique(targets):
        ranked = np.unique(digests[targets == c])
        part = np.split(ranked, [round(cut * len(ranked)) for cut in CUTS])[SPLITS.index(split)]
        members |= (targets == c) & np.isin(digests, part)
    return np.flatnonzero(members)

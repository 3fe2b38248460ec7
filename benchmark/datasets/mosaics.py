"""The two-object form of any dataset: 2x2 mosaics of two images of class c1 and two of c2, for Active fooling.

Following Heo et al. 2019 (arXiv 1902.02041), who fool African elephant (386) and fire engine (555) on 1,100 mosaics and
evaluate on 200. Their release holds the finished mosaics and does not record the layout. Here each class takes one
diagonal, and which one is drawn for each mosaic: the place of a tile says nothing about its class, so that a fooled
model cannot meet the objective by swapping fixed places.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from attacks.errors import UserError
from benchmark.datasets import SPLITS
from benchmark.datasets.base import Dataset, Item, Options, check_pair

SIZES = {"train": 1100, "dev": 200, "test": 200}


class Mosaics(Dataset):
    """Mosaics of the images of `tiles`, each shown at half the side; target (2,) = (c1, c2).

    Mosaic i depends on the tiles, the seed and the pair alone. A class with a single image in the split shows it twice.
    """

    def __init__(self, tiles: Dataset, options: Options) -> None:
        self.tiles = tiles
        self.name, self.split = tiles.name, tiles.split
        self.num_classes, self.class_names = tiles.num_classes, tiles.class_names
        self.mean, self.std, self.input_size = tiles.mean, tiles.std, 2 * tiles.input_size

        order = tiles.targets.argsort(stable=True).numpy()
        classes, starts = np.unique(tiles.targets.numpy()[order], return_index=True)
        members = dict(zip(classes.tolist(), np.split(order, starts[1:]), strict=True))
        if (class_pair := options.class_pair) is not None:
            check_pair(class_pair, self.num_classes, self.name)
            if absent := [c for c in class_pair if c not in members]:
                raise UserError(f"class_pair {class_pair}: {self.name}/{self.split} has no image of class {absent[0]}")
        elif len(members) < 2:
            raise UserError(f"a mosaic needs images of two classes: {self.name}/{self.split} has {len(members)}")

        rng = np.random.default_rng([options.seed, SPLITS.index(self.split)])
        pairs, grids = [], []
        for _ in range(options.size or SIZES[self.split]):
            pair = rng.choice(classes, 2, replace=False) if class_pair is None else class_pair
            (a, b), (c, d) = (rng.choice(members[int(k)], 2, replace=len(members[int(k)]) < 2) for k in pair)
            # row by row
            grids.append((a, c, d, b) if rng.random() < 0.5 else (c, a, b, d))
            pairs.append(tuple(pair))
        self.targets = torch.from_numpy(np.array(pairs, dtype=np.int64))
        self.grids = np.array(grids)  # (N, 4) indices into the tiles

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        items = self.tiles.__getitems__([int(i) for i in self.grids[list(indices)].flat])
        images = torch.stack([image for image, _ in items])
        n, side = len(indices), self.tiles.input_size
        grid = images.view(n, 2, 2, 3, side, side).permute(0, 3, 1, 4, 2, 5).reshape(n, 3, 2 * side, 2 * side)
        return [(image, self.target(i)) for image, i in zip(grid, indices, strict=True)]

    def sources(self, index: int) -> tuple[str, ...]:
        return tuple(self.tiles.hash_of(int(i)) for i in self.grids[index])

    def files(self, index: int) -> tuple[str, ...]:
        return tuple(file for i in self.grids[index] for file in self.tiles.files(int(i)))

    def hash_of(self, index: int) -> str:
        return hashlib.sha256("".join(self.sources(index)).encode()).hexdigest()

    def masks(self, index: int) -> dict[str, np.ndarray]:
        """{"object": bool (2, H, W)}: the tiles of c1 and of c2."""
        first = self.tiles.targets.numpy()[self.grids[index]] == int(self.targets[index, 0])
        mask = first.reshape(2, 2).repeat(self.tiles.input_size, 0).repeat(self.tiles.input_size, 1)
        return {"object": np.stack([mask, ~mask])}

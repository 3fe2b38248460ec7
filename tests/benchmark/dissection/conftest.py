"""A small model, clean, fooled and fine-tuned, looked into once for all the tests of dissection."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import pytest
from once import once
from torch import Tensor

from benchmark import suite
from benchmark.dissection import network, study
from benchmark.dissection.attacked import ATTACKED, Adversarial, read
from benchmark.dissection.victims import Victim, victim_on_pixels
from benchmark.entries.kind import Entry
from benchmark.run import Run

TINY = """
name = "tiny"
foolings = ["location"]
attacked = ["grad_cam"]
evaluated = ["grad_cam"]

[dataset]
name = "shapes"
input_size = 32
train = 256
dev = 12
test = 12

[models.compact_resnet]
epochs = 12
learning_rate = 5e-3

[dissection]
images = 10
cell = 8
percentiles = [50, 80]
concept_images = 8
shares = [0, 0.5]

[dissection.attacks.pgd]
epsilon = 0.2
step = 0.04
steps = 10

[dissection.attacks.fgsm]
epsilon = 1e-6

[[recipes]]
learning_rate = 1e-3
lambda = 1.0
steps = 3
batch_size = 8

[scoring]
batch_size = 5
"""


@dataclass(frozen=True)
class Done:
    """A finished `foolbench dissect`: PGD with room enough, and FGSM with none."""

    run: Run
    out: Path
    tables: dict[str, pd.DataFrame]

    @cached_property
    def clean(self):
        return victim_on_pixels(self.run, Victim("compact_resnet"))

    @cached_property
    def found(self) -> dict[str, Tensor]:
        """What PGD did to each image."""
        return read(self.run, Entry(ATTACKED, Adversarial("compact_resnet", "pgd")).get(self.run))

    @cached_property
    def reached(self) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """What PGD led to its target on the clean model: all of it, δ, the labels, and noise of equal norm."""
        reached = self.clean(self.found["attacked"]).argmax(1) == self.found["targets"]
        found = {name: value[reached] for name, value in self.found.items()}
        noisy = network.equal_norm_noise(found["images"], found["attacked"], 0)
        return found, found["attacked"] - found["images"], found["labels"], noisy


@pytest.fixture(scope="session")
def done(tmp_path_factory) -> Done:
    def begun(folder: Path) -> Run:
        return Run(suite.load(folder / "tiny.toml"), str(folder / "store"))

    def make(folder: Path) -> None:
        (folder / "tiny.toml").write_text(TINY)
        assert all(path.is_file() for path in study.run(begun(folder), folder / "out", jobs=1))

    folder = once(tmp_path_factory, "dissection", make)
    tables = {path.stem: pd.read_csv(path) for path in (folder / "out").glob("*.csv")}
    return Done(begun(folder), folder / "out", tables)

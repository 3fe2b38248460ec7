"""Do we find the robustness that Woods, Chen and Teuscher 2019 publish? CIFAR-10's ResNet-20 beside their networks.

Each test image is attacked for the smallest perturbation that crosses a boundary (`attacks.adversarial.minimum_norm`:
450 steps, total path 20, momentum 0.9, no clipping to [0, 1], all as in the authors' evaluation), and the radii make
the Accuracy-Robustness Area (`benchmark.metrics.robustness`). Boundaries: attack, another class leads; btr ("better
than random"), the label's probability is at most 1/10.

The published rows, tables/woods2019_cifar10.csv, are those of the readme of the authors' code: pre-activation ResNets
of 44 layers, the "standard" one more accurate than the ResNet-20. So orders of magnitude are compared, no more.

--data names a folder with the test images, as dataset "cifar10" reads them, and one checkpoint resnet20*. Its network
is fed with (pixel − mean) / std; the constants are a setting, by default those of the commonly passed around weights
(ImageNet's), because a checkpoint does not say.
"""

import hashlib
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor, nn

from attacks.adversarial import BOUNDARIES, minimum_norm
from attacks.errors import UserError
from attacks.pixels import OnPixels
from benchmark import datasets, models
from benchmark.entries.kind import Entry, Inputs, Kind, Receipt
from benchmark.execution import compute
from benchmark.experiments import HERE
from benchmark.experiments.given import Given
from benchmark.figures.style import PALETTE, panels
from benchmark.intervals import bootstrap_mean
from benchmark.leaderboards.table import with_ends
from benchmark.metrics import robustness
from benchmark.run import Run, Spec, provenance, remembered
from benchmark.store import intact

SUITE = "smoke"  # for the device and the threads alone: its images are not used
CLASSES = 10
PUBLISHED = "Woods et al. 2019"
SUFFIXES = (".th", ".pt", ".pth", ".safetensors")
CODE = (
    *("attacks.adversarial", "attacks.given", "attacks.modes", "attacks.pixels"),
    *("benchmark.datasets", "benchmark.models", "benchmark.metrics.robustness"),
    *("benchmark.experiments.given", "benchmark.experiments.accuracy_robustness"),
)


@dataclass(frozen=True)
class Settings:
    """The attack, on so many images at once, and the normalisation that the weights expect."""

    steps: int = 450
    path: float = 20.0
    momentum: float = 0.9
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    batch_size: int = 50


SETTINGS = Settings()


@dataclass(frozen=True)
class Batch:
    """The images from one place of the test set on, under the attack across one boundary."""

    boundary: str
    first: int
    settings: Settings

    def __str__(self) -> str:
        return f"{self.boundary}, from image {self.first}"

    def part(self) -> slice:
        return slice(self.first, self.first + self.settings.batch_size)


def measure(given: Given, settings: Settings = SETTINGS) -> pd.DataFrame:
    """Two kinds of rows. part "network", one a network and boundary: `clean_accuracy` (for btr, too, that of argmax)
    and `ara` with their 95 % intervals over the `n` images, `ara_histogram` (the authors' 1,000 bins); how many images
    were `unconverged` (crossed in the second half of the steps or never) and `never_crossed` (their radius is a lower
    bound). part "image", one an image and boundary: `radius`, and `first`, the updates before the first crossing."""
    starts = range(0, len(inputs(given.run, settings)[1]), settings.batch_size)
    batches = [Entry(RADII, Batch(boundary, start, settings)) for boundary, start in product(BOUNDARIES, starts)]
    compute.make_all(given.run, batches, given.jobs)
    radii = [intact(batch.path(given.run) / "radii.parquet", pd.read_parquet) for batch in batches]
    images = pd.concat(radii, ignore_index=True).assign(part="image")
    accuracy = with_ends(("clean_accuracy",), bootstrap_mean(images[images.boundary == "attack"]["first"] > 0))
    ours = [_row(rows, str(boundary), settings) | accuracy for boundary, rows in images.groupby("boundary")]
    return pd.concat([pd.DataFrame(ours), published(), images], ignore_index=True)


def _row(images: pd.DataFrame, boundary: str, settings: Settings) -> dict[str, Any]:
    radii = images.radius.to_numpy()
    low, high = robustness.area_interval(radii, CLASSES)
    return {
        "part": "network",
        "source": "here",
        "network": "resnet20",
        "boundary": boundary,
        "ara": robustness.area(radii, CLASSES),
        "ara_low": low,
        "ara_high": high,
        "ara_histogram": robustness.area_histogram(radii, CLASSES),
        "unconverged": robustness.unconverged(images["first"], settings.steps),
        "never_crossed": int((images["first"] > settings.steps).sum()),
        "steps": settings.steps,
        "n": len(radii),
    }


def published() -> pd.DataFrame:
    """The paper's areas, a row a network and boundary; without intervals, or the number of images."""
    wide = pd.read_csv(HERE / "tables" / "woods2019_cifar10.csv")
    parts = [wide.assign(boundary=boundary, ara=wide[f"{boundary}_ara"]) for boundary in BOUNDARIES]
    rows = pd.concat(parts).assign(part="network", source=PUBLISHED)
    return rows[["part", "source", "network", "boundary", "clean_accuracy", "ara"]]


@remembered
def inputs(run: Run, settings: Settings) -> tuple[nn.Module, Tensor, Tensor]:
    """The network, which takes pixels, all test images (n, 3, 32, 32) in [0, 1] and their classes. Raises `UserError`
    where --data is missing or holds anything but one checkpoint."""
    if run.data is None:
        needed = f"CIFAR-10's test images and the weights of a ResNet-20 (resnet20*{', *'.join(SUFFIXES)})"
        raise UserError(f"experiment 'accuracy-robustness' needs --data DIR, a folder with {needed}")
    data = datasets.create("cifar10", "test", root=run.data)
    checkpoints = sorted(path for path in Path(run.data).glob("resnet20*") if path.suffix in SUFFIXES)
    if len(checkpoints) != 1:
        names = ", ".join(path.name for path in checkpoints) or "none"
        raise UserError(f"{run.data} must hold one file resnet20*{', *'.join(SUFFIXES)} (got {names})")
    model = models.create("resnet20", weights=str(checkpoints[0]), num_classes=CLASSES)
    images, targets = next(iter(datasets.loader(data, len(data))))
    return OnPixels(model, settings.mean, settings.std).eval().to(run.device), data.denormalise(images), targets


def _make(run: Run, batch: Batch, needed: Inputs, folder: Path) -> Receipt:
    """`radii.parquet`: the radius of each image of the batch, and after how many updates it crossed."""
    settings = batch.settings
    model, images, targets = inputs(run, settings)
    images, targets = images[batch.part()], targets[batch.part()]
    options: dict[str, Any] = {"steps": settings.steps, "path": settings.path, "momentum": settings.momentum}
    crossing = minimum_norm(model, images.to(run.device), targets.to(run.device), boundary=batch.boundary, **options)
    columns = {
        "boundary": batch.boundary,
        "image": np.arange(batch.first, batch.first + len(images)),
        "target": targets,
    }
    columns |= {"radius": crossing.radius.double().cpu(), "first": crossing.first.cpu()}
    pd.DataFrame(columns).to_parquet(folder / "radii.parquet")
    return provenance(run)


def _spec(run: Run, batch: Batch) -> Spec:
    model, images, targets = inputs(run, batch.settings)
    weights = [value.cpu() for _, value in sorted(model.state_dict().items())]
    content = (*weights, images[batch.part()], targets[batch.part()])
    return {
        "content": [hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest() for value in content],
        "boundary": batch.boundary,
        "first": batch.first,
        "settings": asdict(batch.settings),
    }


def draw(table: pd.DataFrame) -> Figure:
    """Accuracy against ε for both boundaries, chance, and the areas between, ours and the paper's, in the legend."""
    networks, images = (table[table.part == part] for part in ("network", "image"))
    figure, axes = panels(1, 1, 8, 5)
    panel = axes[0, 0]
    for index, boundary in enumerate(BOUNDARIES):
        row = networks[(networks.boundary == boundary) & (networks.source == "here")].iloc[0]
        epsilons, accuracy = robustness.curve(images[images.boundary == boundary].radius)
        area = f"area {row.ara:.5f} [{row.ara_low:.5f}, {row.ara_high:.5f}]"
        style = {"color": PALETTE[index], "linestyle": "-" if index == 0 else (0, (4, 1.5))}
        panel.step(epsilons, accuracy, where="post", linewidth=1.6, label=f"{boundary}: {area}", **style)
    panel.axhline(1 / CLASSES, color="0.4", linewidth=1, linestyle=":", label="chance")
    standard = networks[(networks.source == PUBLISHED) & (networks.network == "standard")].set_index("boundary")
    areas = ", ".join(f"{boundary} {standard.ara[boundary]:.4f}" for boundary in BOUNDARIES)
    panel.plot([], [], linestyle="none", label=f"{PUBLISHED}, standard network: {areas}")
    panel.set_xlim(0, 1.05 * images.radius.max())
    panel.set_ylim(0, 1)
    panel.set_xlabel("ε: RMSE of the perturbation, pixels in [0, 1]")
    panel.set_ylabel("accuracy: share of images with a larger radius")
    panel.grid(color="0.9")
    panel.set_axisbelow(True)
    panel.legend(fontsize=9, frameon=False)
    ours = networks[networks.source == "here"].iloc[0]
    note = f"n = {ours.n:.0f} images, {ours.steps:.0f} steps, no clipping to [0, 1]; areas with 95 % over images"
    figure.suptitle(f"Accuracy-Robustness Areas of resnet20 on CIFAR-10\n{note}", fontsize=11)
    return figure


RADII = Kind(name="accuracy_robustness", title="", make=_make, spec=_spec, code=CODE)

"""One finished run of the smoke suite, and leaderboards of random results, shared by the tests that start from them."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from once import once
from PIL import Image
from synthetic import make_results

from attacks.strategies import HeadShift, OffManifold, Subspace
from benchmark import leaderboards, sections, suite
from benchmark.cells import Cell, plan
from benchmark.entries.kind import Entry, Kind
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.entries.predictions import PREDICTIONS
from benchmark.entries.scores import SCORES
from benchmark.execution import compute
from benchmark.leaderboards import stored
from benchmark.run import Run


@dataclass(frozen=True)
class Finished:
    """A run and its folders. `again` is a run of its own, of this or another suite, on a copy of the store."""

    run: Run
    out: Path

    @property
    def store(self) -> Path:
        return Path(self.run.store)

    def again(self, folder: Path, without: tuple[str, ...] = (), **changes) -> "Finished":
        store = folder / "store"
        shutil.copytree(self.store, store, ignore=shutil.ignore_patterns(*without))
        return Finished(replace(self.run, store=str(store), **changes), folder / "out")

    def lacking(self, folder: Path, manipulations: set[tuple[str, str]], *kinds: Kind) -> "Finished":
        """On a copy of the store that lacks the entries of these kinds for these foolings and attacked interpreters."""
        other, suite = self.again(folder), self.run.suite
        for made in [made for made in plan(suite) if (made.fooling, made.attacked) in manipulations]:
            for kind in kinds:
                places = [Cell(made, name) for name in suite.evaluated] if kind is SCORES else [made]
                for place in places:
                    shutil.rmtree(Entry(kind, place).path(other.run))
        return other

    def unmade(self, folder: Path) -> "Finished":
        """On a copy of the store that lacks half of the fooled models, with their scores."""
        return self.lacking(folder, {("active", "lrp_t"), ("location", "lrp_t")}, MANIPULATIONS, SCORES, PREDICTIONS)

    def searching(self, folder: Path, **changes) -> "Finished":
        """The smoke suite with searched recipes, a gate and two seeds, on a copy of the store."""
        small = sections.Search(learning_rates=[1e-3, 1e-2], lambdas=[1.0, 10.0], rungs=[1, 2], batch_size=8, images=12)
        names = {"foolings": ["location", "active"], "attacked": ["grad_cam"], "evaluated": ["grad_cam", "lrp_t"]}
        given = {"search": small, "recipes": [], "gate": sections.Gate(images=6, cells=3), "seeds": [0, 1], **names}
        return self.again(folder, suite=self.run.suite.model_copy(update=given | changes))

    def written(self) -> dict[str, bytes]:
        """Every file of the leaderboards and results."""
        return {path.relative_to(self.out).as_posix(): path.read_bytes() for path in self.out.rglob("*.*")}

    def entries(self) -> dict[str, int]:
        """Every file of the store's entries, with the time at which it was made."""
        files = [path for path in self.store.rglob("*") if path.is_file() and self.store / "runs" not in path.parents]
        return {path.relative_to(self.store).as_posix(): path.stat().st_mtime_ns for path in files}

    @staticmethod
    def receipts(store: Path) -> int:
        """How many entries a store holds, while a run writes to it."""
        kinds = ("models", "originals", "manipulations", "scores", "predictions")
        return sum(len(list(store.glob(f"{kind}/*/receipt.json"))) for kind in kinds)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Finished:
    """The smoke suite, run by one job; to be read only."""

    def in_folder(folder: Path) -> Finished:
        return Finished(Run(suite.load("smoke"), str(folder / "store")), folder / "out")

    def make(folder: Path) -> None:
        done = in_folder(folder)
        assert compute.run_suite(done.run, done.out, jobs=1) == {}

    return in_folder(once(tmp_path_factory, "smoke", make))


@pytest.fixture
def few_steps(monkeypatch) -> None:
    """Strategies with steps of their own go a short way: here nobody asks how far they come."""
    for strategy, steps in ((HeadShift, 5), (OffManifold, 5), (Subspace, 4)):
        monkeypatch.setattr(strategy, "steps", steps)


@pytest.fixture
def on_files(tmp_path) -> Run:
    """The smoke suite, a cell of it, on image files, which are to be decoded once."""
    rng = np.random.default_rng(0)
    for i in range(48):
        path = tmp_path / "data" / ("train", "train", "dev", "test")[i % 4] / "ab"[i // 4 % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    given = {"name": "image_folder", "input_size": 32, "workers": 1}
    only = {
        "dataset": sections.Data(**given),
        "foolings": ["location"],
        "attacked": ["grad_cam"],
        "evaluated": ["lrp_t"],
    }
    smoke = suite.load("smoke")
    only["scoring"] = smoke.scoring.model_copy(update={"decoded": True})
    return Run(smoke.model_copy(update=only), str(tmp_path / "store"), str(tmp_path / "data"))


@pytest.fixture(scope="session", name="suite")
def random_leaderboards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        make_results(folder / "results")
        leaderboards.write(folder)

    return once(tmp_path_factory, "suite", make)


@pytest.fixture(scope="session")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one small board, `tiny`, with failures, strategies, a search and a figure; to be read only."""
    return once(tmp_path_factory, "boards", _tiny)


def _tiny(folder: Path) -> None:
    where = {"models": ["compact_vgg"], "foolings": ["location", "top_k"], "seeds": [0, 1]}
    asked = ["grad_cam", "lrp_t", "simple_grad_t", "centre_prior"]
    attacked = ["grad_cam", "simple_grad_t", "grad_cam:softplus"]
    make_results(
        folder / "tiny" / "results", attacked=attacked, interpreters=asked, images=4, curves=2, steps=2, **where
    )
    _of_one_clean_model(folder / "tiny" / "results")
    leaderboards.write(folder / "tiny")
    (folder / "tiny" / "figures").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "tiny" / "figures" / "heatmaps-compact_vgg-location-grad_cam.png")


def _of_one_clean_model(folder: Path) -> None:
    """Whatever was attacked, the clean model's map succeeds on the first image alone, and an unrelated one on none."""
    found = stored.read(folder)
    for name, (frame, card) in found.entries.items():
        stored.write(folder, name, frame.assign(success_clean=frame.image == 0, success_null=False), card)
    fronts, card = found.others["fronts"]
    stored.write(folder, "fronts", fronts.assign(value_clean=(fronts.measure == "top1") | (fronts.image == 0)), card)

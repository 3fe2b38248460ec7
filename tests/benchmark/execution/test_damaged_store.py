"""A store that lost or changed a file gives the same boards, or an error: never other boards in silence."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attacks.errors import UserError
from benchmark import sections, suite
from benchmark.cells import Cell, Manipulation, View
from benchmark.entries.controls import POINTED, Pointed, Tuned
from benchmark.entries.fronts import FRONT_SCORES
from benchmark.entries.kind import Entry
from benchmark.entries.originals import ORIGINALS
from benchmark.entries.predictions import PREDICTIONS
from benchmark.entries.same_logits import SAME_LOGITS
from benchmark.entries.scores import SCORES
from benchmark.entries.texture_nets import TEXTURE_NETS
from benchmark.entries.textures import TEXTURED
from benchmark.execution import compute
from benchmark.run import Run

CONTROL, METHOD = "sobel", "grad_cam"
MADE = Manipulation("compact_vgg", "location", METHOD, 0)
READ = {  # the files that a run reads again when this is to be made
    "pixels/pixels.npy": Entry(ORIGINALS, View("compact_vgg", CONTROL)),
    "models/weights.safetensors": Entry(ORIGINALS, View("compact_vgg", CONTROL)),
    "originals/heatmaps.npy": Entry(SCORES, Cell(MADE, CONTROL)),
    "originals/curves.npz": Entry(SCORES, Cell(MADE, CONTROL)),
    "fronts/weights-0.safetensors": Entry(FRONT_SCORES, MADE.attack),
    "manipulations/weights.safetensors": Entry(PREDICTIONS, MADE),
    "controls/weights.safetensors": Entry(POINTED, Pointed(Tuned("compact_vgg", 0), View("compact_vgg", CONTROL))),
}
COLLECTED = ("front_scores/scores", "predictions/predictions", "scores/scores", "robustness/radii", "pointed/curves")
ALWAYS = [f"{name}.parquet" for name in COLLECTED]  # the files that every run reads
RECEIPTS = [f"{kind}/receipt.json" for kind in ("gates", "fronts", "manipulations")]
OF_SUBMISSIONS = {TEXTURE_NETS.name, TEXTURED.name, SAME_LOGITS.name}
NEVER = ("manipulations/history.parquet", "scores/samples.npy")  # the files that no run reads, but draws


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    """A run with entries of every kind: image files, decoded; a search; a gate; robustness."""
    folder, rng = tmp_path_factory.mktemp("whole"), np.random.default_rng(0)
    for i in range(16):
        path = folder / "data" / ("train", "train", "dev", "test")[i % 4] / "ab"[i // 4 % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (36, 36, 3), np.uint8)).save(path)
    smoke = suite.load("smoke")
    given = {
        "dataset": sections.Data(name="image_folder", input_size=32),
        "foolings": ["location", "center_mass"],
        "attacked": [METHOD],
        "evaluated": [METHOD, CONTROL],
        "recipes": [],
        "search": sections.Search(learning_rates=[1e-3], lambdas=[1.0], rungs=[2], batch_size=8, images=4, budgets=[1]),
        "gate": sections.Gate(images=4, cells=2),
        "control": sections.Control(learning_rate=1e-3, steps=1, batch_size=8),
        "robustness": sections.Robustness(images=2, steps=2),
        "scoring": sections.Scoring(images=4, batch_size=8, aopc_images=2, aopc_cells=2, decoded=True),
    }
    run = Run(smoke.model_copy(update=given), str(folder / "store"), str(folder / "data"))
    assert compute.run_suite(run, folder / "out", jobs=1) == {}
    kinds = {kind.name for kind in compute.KINDS} - OF_SUBMISSIONS
    assert {path.name for path in (folder / "store").iterdir()} == kinds | {"runs"}
    return run


@pytest.fixture
def store(whole):
    """Its store, which is as it was afterwards."""
    root = Path(whole.store)
    shutil.copytree(root, root.with_name("kept"))
    yield root
    shutil.rmtree(root)
    root.with_name("kept").rename(root)


def csvs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.csv")}


def one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def zeros(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + bytes(len(content) // 3) + content[len(content) // 3 * 2 :])


def of_another(path: Path) -> None:
    """The same sort of file, of another entry."""
    others = [*path.parent.parent.glob(f"*/{path.name}"), *path.parents[2].glob(f"*/*/*{path.suffix}")]
    shutil.copy2(next(other for other in others if other.read_bytes() != path.read_bytes()), path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "a byte": one_byte,
    "zeros": zeros,
    "another's": of_another,
}


def in_one_line(error: UserError, damaged: Path) -> bool:
    return str(damaged.parent) in str(error) and "run again" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", [*ALWAYS, *RECEIPTS])
def test_a_run_never_reads_past_a_damaged_file(whole, store, tmp_path, file, damage):
    kind, name = file.split("/")
    damaged = min(store.glob(f"{kind}/*/{name}"))
    DAMAGES[damage](damaged)
    with pytest.raises(UserError) as caught:
        compute.run_suite(whole, tmp_path / "out", jobs=1)
    assert in_one_line(caught.value, damaged)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", READ)
def test_nothing_is_made_of_a_damaged_file(whole, store, file, damage):
    reader, (kind, name) = READ[file], file.split("/")
    shutil.rmtree(reader.path(whole))
    needed = {need.kind.name: need.path(whole) for need in reader.needs(whole).values()}
    damaged = needed.get(kind, min(store.glob(f"{kind}/*"))) / name
    DAMAGES[damage](damaged)
    with pytest.raises(UserError) as caught:
        compute.make_all(whole, [reader], jobs=1)
    assert in_one_line(caught.value, damaged)
    assert reader.receipt(whole) is None


def test_what_is_not_read_changes_no_board(whole, store, tmp_path):
    for file in (*NEVER, *READ):
        kind, name = file.split("/")
        for path in store.glob(f"{kind}/*/{name}"):
            one_byte(path)
    assert compute.run_suite(whole, tmp_path / "out", jobs=1) == {}
    assert csvs(tmp_path / "out") == csvs(store.parent / "out")


def test_a_folder_that_is_gone_is_made_again_and_is_missed_by_collect(whole, store, tmp_path):
    for kind in ("predictions", "scores"):
        shutil.rmtree(min(store.glob(f"{kind}/*")))
    with pytest.raises(UserError, match=r"the store .* does not hold .*, \w+/\w{64}: run again$"):
        compute.collect(whole, tmp_path / "out", {})
    assert not list(tmp_path.iterdir())
    assert compute.run_suite(whole, tmp_path / "out", jobs=1) == {}
    assert csvs(tmp_path / "out") == csvs(store.parent / "out")


@pytest.mark.parametrize("kind", ["scores", "manipulations", "gates"])
def test_a_folder_under_another_entrys_name_is_refused(whole, store, tmp_path, kind):
    one, other = sorted((store / kind).iterdir())[:2]
    shutil.rmtree(one)
    shutil.copytree(other, one)
    with pytest.raises(UserError, match=rf"{one} is damaged \(it is the entry {kind}/{other.name}\): delete"):
        compute.run_suite(whole, tmp_path / "out", jobs=1)

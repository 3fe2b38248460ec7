"""A suite of target maps and backdoors with a control, end to end: its tables, its keys, and nothing made twice."""

import pytest
from PIL import Image

from benchmark import leaderboards, suite
from benchmark.cells import Cell, Manipulation
from benchmark.entries.controls import CONTROLS, POINTED, Tuned
from benchmark.entries.kind import Entry
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.entries.scores import SCORES
from benchmark.execution import compute
from benchmark.leaderboards import stored
from benchmark.run import Run

SUITE = """
name = "lies"
foolings = ["target_map", "target_map:bar.png", "red_herring", "full_disguise"]
attacked = ["simple_grad", "simple_grad:off_manifold"]
evaluated = ["simple_grad"]
models.compact_vgg = { epochs = 0 }
recipes = [{ learning_rate = 1e-3, lambda = 1.0, steps = 2, batch_size = 4 }]
control = { learning_rate = 1e-3, steps = 2, batch_size = 4 }
scoring = { images = 8, batch_size = 8, aopc_images = 4, aopc_cells = 2 }
dataset = { name = "shapes", input_size = 32, train = 16, dev = 8, test = 16 }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lies")


@pytest.fixture
def run(folder, monkeypatch) -> Run:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("attacks.strategies.OffManifold.steps", 2)
    Image.linear_gradient("L").save("bar.png")
    (folder / "lies.toml").write_text(SUITE)
    return Run(suite.load(folder / "lies.toml"), str(folder / "store"))


def test_it_runs_from_end_to_end_and_again_makes_nothing(run, folder):
    out = folder / "out"
    assert compute.run_suite(run, out, jobs=1) == {}
    for name, rows in {"transfer": 8, "backdoors": 4, "lied": 4, "accuracy": 8}.items():
        table = leaderboards.load(out, name)
        assert len(table) == rows, name
    assert leaderboards.check(out) == []
    manipulations = leaderboards.load(out, "manipulations")
    off = manipulations[manipulations.attacked == "simple_grad:off_manifold"]
    assert off.status.tolist() == ["done"] * 4
    assert stored.read(out / "results").others["controls"][1]["recipe"]["lambda"] == 0
    assert compute.graph(run, compute.wanted(run))[0] == []


def test_what_the_triggered_scores_say_is_what_the_table_says(run, folder):
    manipulation = Manipulation("compact_vgg", "red_herring", "simple_grad", 0)
    frame = leaderboards.load(folder / "out", "backdoors").set_index(["fooling", "attacked"])
    scores = stored.read(folder / "out" / "results").entries["simple_grad"][0]
    rows = scores[(scores.fooling == "red_herring") & (scores.attacked == "simple_grad")]
    table = frame.loc[("red_herring", "simple_grad")]
    assert table.n == len(rows) == 8
    others = rows.target != 0
    assert not (rows.success & (table.switched == 0) & others).any()
    assert Entry(SCORES, Cell(manipulation, "simple_grad")).receipt(run) is not None


def test_a_picture_is_in_the_key_by_its_content_and_the_control_in_that_of_its_curves(run):
    spec = MANIPULATIONS.spec(run, Manipulation("compact_vgg", "target_map:bar.png", "simple_grad", 0))
    assert len(spec["fooling"]["picture"]) == 64
    assert (
        MANIPULATIONS.spec(run, Manipulation("compact_vgg", "target_map", "simple_grad", 0))["fooling"]["picture"]
        is None
    )
    control = Tuned("compact_vgg", 0)
    assert [*CONTROLS.wanted(run)] == [control]
    assert [POINTED.needs(run, place)["control"] for place in POINTED.wanted(run)] == [Entry(CONTROLS, control)]
    plain = run.suite.model_copy(update={"control": None})
    assert [*CONTROLS.wanted(Run(plain, run.store))] == [*POINTED.wanted(Run(plain, run.store))] == []

"""Defences on a tiny run: who is attacked how, the worst way, and what is gained and paid."""

import numpy as np
import pandas as pd
import pytest

from benchmark import experiments, suite
from benchmark.entries.kind import Entry
from benchmark.experiments import defences
from benchmark.experiments.defences import BASE, DEFENCES, Attacked, Defended
from benchmark.experiments.given import Given
from benchmark.interpreters.gradients import SimpleGrad
from benchmark.run import Run


@pytest.fixture
def given(tmp_path, monkeypatch):
    for name in set(DEFENCES) - {BASE, "softplus", "tangent_space", "alignment"}:
        monkeypatch.delitem(DEFENCES, name)
    smoke = suite.load("smoke")
    data = smoke.dataset.model_copy(update={"train": 32, "test": 24})
    changes = {"foolings": ["location"], "attacked": ["simple_grad"], "evaluated": ["simple_grad"], "dataset": data}
    return Given(Run(smoke.model_copy(update=changes), str(tmp_path / "store")), tmp_path, 1)


def test_the_table_of_a_run(given, tmp_path, monkeypatch):
    monkeypatch.delitem(DEFENCES, "tangent_space")
    csv, *_, figure = experiments.run("defences", given, tmp_path / "out")
    table, run = pd.read_csv(csv).set_index("defence"), given.run
    assert list(table.index) == list(DEFENCES)
    assert (table.n == 24).all()
    base = table.loc[BASE]
    assert base[["gained", "aopc_paid", "top1_paid", "ms_paid"]].tolist() == [0, 0, 0, 0]
    for name, row in table.iterrows():
        assert row.gained == pytest.approx(base.fsr_excess - row.fsr_excess, abs=1e-8)
        assert row.aopc_paid == pytest.approx(base.aopc - row.aopc, abs=1e-8)
        assert row.aopc_low <= row.aopc <= row.aopc_high
        assert row.training == ("alignment" if name == "alignment" else "plain")
    assert table.loc["softplus", "worst"] == "gradient"  # softplus for softplus is no other way
    assert figure.is_file()
    keys = {Entry(defences.CLEAN, Defended("compact_vgg", name)).key(run) for name in DEFENCES}
    assert len(keys) == len(DEFENCES)
    weights = [Defended("compact_vgg", name).weights() for name in (BASE, "softplus", "alignment")]
    assert weights[0] == weights[1] != weights[2]


def test_the_worst_way_is_the_one_that_fools_most_over_the_seeds(given, tmp_path, monkeypatch):
    """Way "" fools a quarter and a half of the images with its seeds, softplus three quarters, or it diverged."""
    run = given.run
    object.__setattr__(run, "suite", run.suite.model_copy(update={"seeds": [0, 1]}))
    fooled = {("", 0): [1, 0, 0, 0], ("", 1): [1, 1, 0, 0], ("softplus", 0): [0, 1, 1, 1]}
    tops = {("", 0): [1, 1], ("", 1): [1, 0], ("softplus", 0): [0, 0]}

    def path(self, run):
        return tmp_path / self.place.way / str(self.place.seed)

    for (way, seed), success in fooled.items():
        folder = tmp_path / way / str(seed)
        folder.mkdir(parents=True, exist_ok=True)
        scores = pd.DataFrame({"image": range(4), "success": success, "success_clean": [0, 0, 0, 1]})
        scores.to_parquet(folder / "scores.parquet")
        pd.DataFrame({"top1": tops[way, seed]}).to_parquet(folder / "top1.parquet")
    monkeypatch.setattr(Entry, "path", path)
    monkeypatch.setattr(defences, "intact", lambda file, read: read(file))
    done = lambda run, entry: "done" if (entry.place.way, entry.place.seed) in fooled else "diverged"  # noqa: E731
    monkeypatch.setattr(defences, "status", done)
    worst, excess, top1 = defences._worst(run, Defended("compact_vgg", BASE), "location")
    assert (worst, excess.tolist(), top1.tolist()) == ("softplus", [0, 1, 1, 0], [0, 0])
    del fooled["softplus", 0]
    worst, excess, top1 = defences._worst(run, Defended("compact_vgg", BASE), "location")
    np.testing.assert_allclose(excess, [1, 0.5, 0, -1])
    assert (worst, top1.tolist()) == ("gradient", [1, 0.5])
    fooled.clear()
    assert defences._worst(run, Defended("compact_vgg", BASE), "location")[0] == ""


def test_each_explains_what_it_says(given):
    made = {name: defences.explainer(given.run, name) for name in DEFENCES}
    assert {name: each.name for name, each in made.items()} == {
        BASE: "simple_grad",
        "softplus": "softplus_grad",
        "tangent_space": "tangent_grad",
        "alignment": "simple_grad",
    }
    assert made["tangent_space"].reference.shape == (32, 3, 32, 32)
    assert isinstance(made["tangent_space"], SimpleGrad)
    assert str(Attacked(Defended("compact_vgg", BASE), "location", "", 3)) == "compact_vgg/none/location/gradient/3"

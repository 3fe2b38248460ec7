"""The committed zoo is that of the committed board: its models decide as the results say, and a run takes them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from attacks.errors import UserError
from benchmark import cli, committed, datasets, leaderboards, suite, zoo
from benchmark.cells import plan
from benchmark.entries.kind import Entry
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.entries.predictions import PREDICTIONS
from benchmark.run import Run
from benchmark.zoo import making

BOARD = Path(__file__).parents[3] / "leaderboards" / "default"
NAME = "compact_densenet/location/grad_cam/0"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_the_boards_and_says_what_the_board_says():
    about, made = zoo.manifest(BOARD / "zoo"), leaderboards.load(BOARD, "manipulations")
    assert (BOARD / "zoo" / zoo.WEIGHTS).stat().st_size <= 25e6
    assert making.of_board(about, BOARD)
    cells = leaderboards.load(BOARD, "transfer").query("attacked == evaluated")
    for table, column in ((made, "top1_drop"), (cells, "fsr"), (cells, "fsr_clean")):
        for row in table.to_dict("records"):
            said = about["fooled"][f"{row['model']}/{row['fooling']}/{row['attacked']}/{row['seed']}"]
            assert said[column] == row[column]


def test_a_model_of_it_decides_as_the_results_say(elsewhere):
    model, clean = zoo.load(NAME), zoo.load("compact_densenet")
    data = datasets.create("shapes", "test", 0, size=64)
    made = pd.read_parquet(BOARD / "results" / "models.parquet").query("image < 64")
    place = dict(zip(("model", "fooling", "attacked"), NAME.split("/"), strict=False))
    rows = made[(made[list(place)].astype(str) == place).all(axis=1)]
    images = torch.stack([data[i][0] for i in range(64)])
    assert data.targets.tolist() == rows.target.tolist()
    with torch.no_grad():
        for net, column in ((model, "top1"), (clean, "top1_clean")):
            assert not net.training
            assert (net(images).argmax(1) == data.targets).tolist() == rows[column].tolist()
    assert not all(map(torch.equal, model.parameters(), clean.parameters()))


def test_a_run_of_the_boards_suite_is_filled_and_another_is_not(tmp_path, capfd):
    run = making.filled(Run(suite.load("default"), str(tmp_path / "store")), BOARD)
    assert "zoo" in Path(run.store).parts
    for place in plan(run.suite):
        assert not Entry(MANIPULATIONS, place).missing(run)
        assert not Entry(PREDICTIONS, place).missing(run)
    place = next(p for p in plan(run.suite) if str(p) == NAME)
    stored = load_file(Entry(MANIPULATIONS, place).path(run) / "weights.safetensors")
    assert zoo.digest(stored) == zoo.manifest(BOARD / "zoo")["fooled"][NAME]["sha256"]
    smoke = Run(suite.load("smoke"), str(tmp_path / "store"))
    assert making.filled(smoke, BOARD) is smoke
    assert making.filled(smoke, tmp_path) is smoke


def test_images_drawn_by_another_cpu_are_the_same_and_others_are_not(tmp_path):
    about = zoo.manifest(BOARD / "zoo")
    run = Run(suite.load("default"), str(tmp_path / "store"))
    spec = about["models"]["compact_vgg"]["spec"]
    other = spec | {"data": spec["data"] | {"content": "0" * 64}}
    assert making._same(run, about, other, spec)
    assert not making._same(run, about, other | {"seed": 1}, spec)
    assert not making._same(run, about, spec | {"data": spec["data"] | {"n": 2}}, spec)
    for dataset in ({"seed": 1}, {"test": 500}):
        changed = run.suite.dataset.model_copy(update=dataset)
        moved = replace(run, suite=run.suite.model_copy(update={"dataset": changed}))
        assert not making._same(moved, about, other, spec)
        assert making._same(moved, about, spec, spec)
    assert not making._same(replace(run, data="folder"), about, other, spec)


def test_damage_and_another_board_are_found(tmp_path, capfd):
    where = tmp_path / "zoo"
    shutil.copytree(BOARD / "zoo", where)
    shutil.copy(BOARD / "manipulations.csv", tmp_path)
    data = bytearray((where / zoo.WEIGHTS).read_bytes())
    stored = load_file(where / zoo.WEIGHTS)
    at = bytes(data).index(stored[NAME].tobytes())
    data[at + stored[NAME].nbytes // 2] ^= 1
    (where / zoo.WEIGHTS).write_bytes(data)
    with pytest.raises(UserError, match=r"the zoo .* is (damaged|unreadable)|unreadable"):
        zoo.state(where, NAME)
    assert np.array_equal(zoo.state(where, "compact_vgg")["features.0.weight"], stored["compact_vgg.features.0.weight"])
    about = json.loads((where / zoo.MANIFEST).read_text())
    about["fooled"][NAME]["key"] = "0" * 64
    assert not making.of_board(about, tmp_path)
    with pytest.raises(UserError, match="unknown model of the zoo 'compact_vgg/location/lrp'"):
        zoo.state(where, "compact_vgg/location/lrp")


def test_where_there_is_no_clone_board_and_zoo_are_the_packages(elsewhere, capsys, monkeypatch):
    assert committed.board("default") == committed.HERE / "default"
    before = {path: path.stat().st_mtime_ns for path in BOARD.iterdir()}
    cli.app(["leaderboard", "--show"], standalone_mode=False)
    assert "grad_cam" in capsys.readouterr().out
    cli.app(["zoo", "list"], standalone_mode=False)
    assert NAME in capsys.readouterr().out
    cli.app(["plot", "transfer"], standalone_mode=False)
    assert Path(capsys.readouterr().out.strip()).parts[:2] == ("leaderboards", "default")
    assert before == {path: path.stat().st_mtime_ns for path in BOARD.iterdir()}
    assert committed.board("default") == committed.HERE / "default"  # the folder of the figure is no board
    with pytest.raises(UserError, match=r"no zoo of suite 'board' in .* \(there is one of default\): "):
        zoo.folder("board")
    shutil.rmtree("leaderboards")
    monkeypatch.setattr(committed, "HERE", elsewhere / "nowhere")
    with pytest.raises(UserError, match=r"no zoo of suite 'default' .* a package built from one"):
        zoo.names()
    Path("leaderboards/default").mkdir(parents=True)
    assert committed.board("default") == Path("leaderboards/default")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{", "is unreadable \\(Expecting"),
        ("[]", "its zoo.json says too little"),
        ({"fooled": []}, "its zoo.json says too little"),
        ({"fooled": {NAME: {}}}, "its zoo.json says too little"),
        ({"models": {"compact_vgg": 3}}, "its zoo.json says too little"),
        ({"sha256": 3}, "its zoo.json says too little"),
    ],
)
def test_a_manifest_that_is_none_is_one_line(tmp_path, said, message):
    whole = {"sha256": "0", "models": {}, "fooled": {}}
    (tmp_path / zoo.MANIFEST).write_text(said if isinstance(said, str) else json.dumps(whole | said))
    with pytest.raises(UserError, match=message):
        zoo.manifest(tmp_path)


def test_weights_that_cannot_be_read_are_one_damage(tmp_path):
    shutil.copy(BOARD / "zoo" / zoo.MANIFEST, tmp_path)
    (tmp_path / zoo.WEIGHTS).write_bytes((BOARD / "zoo" / zoo.WEIGHTS).read_bytes()[:1000])
    other, unreadable = zoo.damages(tmp_path)
    assert "is not the file of zoo.json" in other
    assert "is unreadable" in unreadable

"""A folder of results: what is missing, corrupt or foreign in it is one line."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import ATTACKED, FOOLINGS, MODELS_3, make_results

from attacks.errors import UserError
from benchmark.leaderboards import stored


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_results(tmp_path, models=MODELS_3[1:2], foolings=FOOLINGS[:2], attacked=ATTACKED[:2], interpreters=("lrp_t",))
    return tmp_path


def test_an_interpreter_with_no_scored_cell_is_an_entry(folder: Path) -> None:
    read = stored.read(folder)
    stored.write(
        folder, "broken", read.entries["lrp_t"][0].iloc[:0], read.entries["lrp_t"][1] | {"interpreter": "broken"}
    )
    assert stored.read(folder).entries["broken"][0].empty


def _twice(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table.slice(3, 1)]), path)


def _edit_place(path: Path) -> None:
    card = json.loads(path.read_text())
    card["manipulations"][0]["model"] = []
    path.write_text(json.dumps(card))


def _drop_column(folder: Path) -> None:
    frame = pd.read_parquet(folder / "lrp_t.parquet").drop(columns="iou")
    frame.to_parquet(folder / "lrp_t.parquet")


def _edit(name: str, **fields: Any) -> Any:
    def change(folder: Path) -> None:
        card = json.loads((folder / name).read_text()) | fields
        (folder / name).write_text(json.dumps(card))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "lrp_t.json").unlink(), "lrp_t.json is missing"),
        (lambda folder: (folder / "models.parquet").unlink(), "models.parquet is missing"),
        (lambda folder: (folder / "lrp_t.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "lrp_t.json").write_text("[]"), "a card must hold interpreter"),
        (lambda folder: (folder / "lrp_t.parquet").write_bytes(b"PAR1"), "not a readable Parquet file"),
        (lambda folder: _truncate(folder / "lrp_t.parquet"), "not a readable Parquet file"),
        (
            lambda folder: (folder / "lrp_t.parquet").write_bytes((folder / "models.parquet").read_bytes()),
            "column pair",
        ),
        (_drop_column, "must be dictionary"),
        (_edit("lrp_t.json", interpreter="lrp"), "interpreter must be 'lrp_t'"),
        (_edit("lrp_t.json", failures=[{}]), "each of its failures must hold model"),
        (lambda folder: (folder / "lrp_t.json").write_text("[" * 100_000), "not valid JSON"),
        (lambda folder: _twice(folder / "lrp_t.parquet"), r"repeats a row: \("),
        (lambda folder: _edit_place(folder / "models.json"), "model of each of its manipulations must be a name or a"),
        (_edit("models.json", manipulations={}), "manipulations must be a list"),
        (_edit("models.json", manipulations=[{"model": "x"}]), "must hold fooling, attacked"),
        (_edit("models.json", manipulations=[]), "which models.json does not list"),
    ],
)
def test_bad_files_are_one_line(folder: Path, damage: Any, message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        stored.read(folder)
    assert "\n" not in str(caught.value)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_a_missing_folder_and_an_impossible_name_are_errors(folder: Path) -> None:
    with pytest.raises(UserError, match="not a folder"):
        stored.read(folder / "absent")
    frame, card = stored.read(folder).entries["lrp_t"]
    with pytest.raises(UserError, match="name must be"):
        stored.write(folder, "../lrp", frame, card)

"""Results on disk: round trip, equal bytes for equal content in any order, and no gap nor repeat."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic import ATTACKED, FOOLINGS, MODELS_3, make_results

from attacks.errors import UserError
from benchmark.leaderboards import stored
from benchmark.leaderboards.cells import SCORES
from benchmark.store import write_atomic


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_results(tmp_path, models=MODELS_3[1:2], foolings=FOOLINGS[:2], attacked=ATTACKED[:2], interpreters=("lrp_t",))
    return tmp_path


def test_what_is_written_is_read_back(folder: Path) -> None:
    read = stored.read(folder)
    frame, card = read.entries["lrp_t"]
    assert list(read.entries) == ["lrp_t"]
    assert list(frame.columns) == SCORES.schema.names
    assert card["suite"] == "synthetic"
    assert len(frame) == 2 * 16 + 2 * 32
    computed = frame[frame.aopc_clean_original.notna()]
    assert set(computed.pair) == {0}
    assert set(computed.image) == set(range(8))
    assert computed.aopc_clean_original.iloc[0].shape == (16,)
    assert frame.rank_correlation.isna().equals(frame.blank)
    assert read.models_card["manipulations"][0]["fooling_last"] is None  # JSON has no NaN


def test_equal_content_gives_equal_bytes_in_any_order(folder: Path, tmp_path: Path) -> None:
    read = stored.read(folder)
    card = dict(reversed(read.entries["lrp_t"][1].items()))
    stored.write(tmp_path / "again", "lrp_t", read.entries["lrp_t"][0].sample(frac=1, random_state=1), card)
    stored.write(tmp_path / "again", "models", read.models.sample(frac=1, random_state=1), read.models_card)
    fronts, fronts_card = read.others["fronts"]
    stored.write(tmp_path / "again", "fronts", fronts.sample(frac=1, random_state=1), fronts_card)
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == sorted(p.name for p in folder.glob("*.*"))


def test_gaps_and_repeats_are_refused(folder: Path) -> None:
    frame, card = stored.read(folder).entries["lrp_t"]
    with pytest.raises(ValueError, match="repeat a row"):
        stored.write(folder, "lrp_t", pd.concat([frame, frame[:1]]), card)
    with pytest.raises(ValueError, match="lack the columns iou"):
        stored.write(folder, "lrp_t", frame.drop(columns="iou"), card)
    with pytest.raises(ValueError, match="lack a value in success"):
        stored.write(folder, "lrp_t", frame.assign(success=None), card)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "file", b"old")

    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(UserError, match=r"cannot write .*file: No space left"):
        write_atomic(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]

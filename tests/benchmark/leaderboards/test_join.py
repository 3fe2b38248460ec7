"""Pieces of a board join into the results of that board; pieces that contradict each other do not join."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from attacks.errors import UserError
from benchmark import cli, leaderboards, results
from benchmark.leaderboards import stored
from benchmark.leaderboards.join import joined

BOARD = Path("leaderboards/board/results")
NAMES = ("lrp_t", "random", "models", "fronts", "controls")
Row = dict[str, Any]
Keep = Callable[[Row], bool]
Change = Callable[[str, pd.DataFrame, Row], None]


def location(row: Row) -> bool:  # what has no fooling is in every piece
    return row.get("fooling", "location") == "location"


def center_mass(row: Row) -> bool:
    return row.get("fooling", "center_mass") == "center_mass"


def one_model(row: Row) -> bool:
    return row["model"] == "compact_vgg"


def other_models(row: Row) -> bool:
    return row["model"] != "compact_vgg"


@pytest.fixture(scope="module")
def board() -> dict[str, tuple[pd.DataFrame, Row]]:
    return {name: results.read(BOARD, name, stored.table(name)) for name in NAMES}


@pytest.fixture
def piece(board, tmp_path: Path) -> Callable[..., Path]:
    def make(keep: Keep, change: Change = lambda *_: None) -> Path:
        folder = tmp_path / keep.__name__
        for name, (frame, card) in board.items():
            places = frame[[c for c in ("model", "fooling") if c in frame]].to_dict("records")
            part = frame[[keep(row) for row in places]].reset_index(drop=True)
            parts = {
                k: {m: x for m, x in card[k].items() if keep({"model": m})}
                for k in card
                if k in ("gate", "gate_twin", "cost")
            }
            parts |= {k: [row for row in v if keep(row)] for k, v in card.items() if isinstance(v, list)}
            parts |= {"versions": card["versions"] | {"code": keep.__name__}}
            changed = card | parts
            change(name, part, changed)
            stored.write(folder / "results", name, part, changed)
        return folder

    return make


@pytest.mark.parametrize("halves", [(location, center_mass), (one_model, other_models)])
def test_pieces_by_fooling_or_by_model_are_the_board(board, piece, halves):
    whole = joined([piece(half) for half in halves])
    assert whole.keys() == board.keys()
    for name, (frame, card) in whole.items():
        key = list(stored.table(name).key)
        expected = board[name][0].sort_values(key, ignore_index=True)
        assert_frame_equal(frame.sort_values(key, ignore_index=True), expected)
        assert card.pop("versions").pop("code") == "+".join(half.__name__ for half in halves)
        for part, value in board[name][1].items():
            if isinstance(value, list):
                assert sorted(map(str, card[part])) == sorted(map(str, value))
            elif part not in ("versions", "twins"):
                assert card[part] == value


def test_twins_are_the_least_alike_of_all_and_every_complaint(piece):
    def at(least: float, error: str) -> Change:
        def change(name: str, _: pd.DataFrame, card: Row) -> None:
            if name == "lrp_t":
                card["twins"] |= {
                    "asked": 2,
                    "again": {"least": least, "where": error},
                    "errors": [error],
                    "difference": None,
                }

        return change

    card = joined([piece(location, at(0.5, "b")), piece(center_mass, at(0.25, "a"))])["lrp_t"][1]["twins"]
    assert card["asked"] == 4
    assert card["again"] == {"least": 0.25, "where": "a"}
    assert card["errors"] == ["a", "b"]
    assert card["difference"] is None


def scored_otherwise(name: str, frame: pd.DataFrame, _: Row) -> None:
    if name == "controls":
        frame.at[0, "original"] = frame.at[0, "original"] + 1


def gated_otherwise(name: str, _: pd.DataFrame, card: Row) -> None:
    if name == "lrp_t":
        card["gate"] = {"compact_vgg": card["gate"]["compact_vgg"] | {"randomised": [0.5]}}


def another_suite(_: str, __: pd.DataFrame, card: Row) -> None:
    card["suite"] = "default"


def made_otherwise(name: str, _: pd.DataFrame, card: Row) -> None:
    if name == "models":
        card["manipulations"] += [
            {**card["manipulations"][0], "fooling": "location", "attacked": "lrp_t", "status": "failed"}
        ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (scored_otherwise, "cannot join controls: the pieces differ on compact_densenet/0/"),
        (gated_otherwise, r"cannot join: lrp_t: gate: compact_vgg: randomised differs between the pieces"),
        (another_suite, r"suite differs between the pieces \(board and default\)"),
        (made_otherwise, "compact_[a-z]+/location/lrp_t/0 was made in another way in each piece"),
    ],
)
def test_pieces_that_contradict_each_other_are_refused(piece, change, said):
    with pytest.raises(UserError, match=said):
        joined([piece(location), piece(center_mass, change)])


def test_a_folder_that_holds_results_of_no_piece_is_not_joined_into(piece, tmp_path):
    whole, pieces = tmp_path / "whole", [piece(location), piece(center_mass)]
    cli.join(pieces, whole)
    (whole / "results" / "lrp.json").write_text("{}")
    before = {path: path.read_bytes() for path in whole.rglob("*.*")}
    with pytest.raises(UserError, match=r"whole/results holds results of another run \(lrp\).*choose another --out"):
        cli.join(pieces, whole)
    assert {path: path.read_bytes() for path in whole.rglob("*.*")} == before


def test_the_command_writes_results_and_their_tables(piece, capsys, tmp_path):
    cli.join([piece(location), piece(center_mass)], tmp_path / "whole")
    assert leaderboards.check(tmp_path / "whole") == []
    assert set(leaderboards.load(tmp_path / "whole", "transfer").fooling) == {"location", "center_mass"}
    assert capsys.readouterr().out.strip() == str(tmp_path / "whole")

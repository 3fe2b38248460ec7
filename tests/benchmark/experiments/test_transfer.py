"""The witness of a fooling, by hand and on a run."""

import pandas as pd
import pytest

from attacks.errors import UserError
from benchmark import experiments, leaderboards
from benchmark.experiments import transfer
from benchmark.experiments.given import Given


def _board(folder, cells):
    """transfer.csv and stability.csv with these (fooling, attacked, evaluated, seed, fsr, rank correlation, null)."""
    names = ["fooling", "attacked", "evaluated", "seed", "fsr", "rank_correlation", "rank_correlation_null"]
    table = pd.DataFrame(cells, columns=names).assign(model="m", n=8, fsr_clean=0.0)
    table.reindex(columns=leaderboards.TABLES["transfer"].columns).to_csv(folder / "transfer.csv", index=False)
    evaluated = sorted(set(table.evaluated))
    board = pd.DataFrame({"interpreter": evaluated, "eligible": ["no" if e == "c" else "yes" for e in evaluated]})
    board["reason"] = ["control" if e == "c" else None for e in evaluated]
    board.reindex(columns=leaderboards.TABLES["stability"].columns).to_csv(folder / "stability.csv", index=False)
    return Given(None, folder)


def test_the_witness_keeps_most_of_its_map_beyond_chance(tmp_path):
    given = _board(
        tmp_path,
        [
            ("location", "a", "a", 0, 0.9, -0.5, 0.0),
            ("location", "a", "b", 0, 0.1, 0.6, 0.5),  # kept: of 0.7 and 0.5 over two seeds
            ("location", "a", "b", 1, 0.1, 0.8, 0.5),
            ("location", "a", "a", 1, 0.7, -0.5, 0.0),
            ("location", "a", "d", 0, 0.0, 0.5, 0.0),
            ("location", "a", "c", 0, 0.0, 1.0, 1.0),  # a control
            ("top_k", "a", "a", 0, 0.3, 0.5, 0.0),  # did not work
            ("top_k", "a", "d", 0, 0.0, 0.9, 0.0),
        ],
    )
    table = transfer.measure(given)
    assert table[["attacked", "evaluated", "place", "cells", "foolings"]].to_numpy().tolist() == [
        ["a", "d", 1, 1, "location"],
        ["a", "b", 2, 2, "location"],
    ]
    assert table.kept.tolist() == pytest.approx([0.5, (0.7 - 0.5) / 0.5])
    assert table.fsr_excess.tolist() == pytest.approx([0.0, 0.1])


def test_where_nothing_worked_there_is_nothing_to_expose(tmp_path):
    given = _board(tmp_path, [("location", "a", "a", 0, 0.1, 0.9, 0.0), ("location", "a", "b", 0, 0.0, 0.9, 0.0)])
    with pytest.raises(UserError, match="nothing to expose"):
        transfer.measure(given)


def test_it_writes_table_card_and_figure(finished, tmp_path):
    given = _board(tmp_path, [("location", "a", "a", 0, 0.9, 0.1, 0.0), ("location", "a", "b", 0, 0.0, 0.9, 0.0)])
    written = experiments.run("transfer", Given(finished.run, given.board), tmp_path / "out")
    assert [path.name for path in written] == ["transfer.csv", "transfer.json", "transfer.png"]
    assert all(path.stat().st_size for path in written)

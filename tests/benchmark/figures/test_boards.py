"""Figures of leaderboards: drawn from CSVs alone, every value in its place, equal bytes for equal input."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from synthetic import ATTACKED, FAILED, FOOLINGS, MODELS_3, make_results

from attacks.errors import UserError
from benchmark import leaderboards
from benchmark.figures import FIGURES, boards
from benchmark.figures.style import save

DRAWN = ("transfer", "accuracy", "aopc")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    few = {"models": MODELS_3[:1], "foolings": FOOLINGS[:1], "attacked": ATTACKED[:1]}
    make_results(folder / "results", **few, interpreters=ATTACKED[:1], seeds=(0, 1), steps=3)
    leaderboards.write(folder)
    return folder


def panels(figure: Figure) -> dict[str, Axes]:
    return {panel.get_title(): panel for panel in figure.axes if panel.get_title()}


def test_failed_manipulations_are_hatched(suite: Path) -> None:
    shown = panels(boards.accuracy(suite))
    assert [sum(bool(p.get_hatch()) for p in shown[model].patches) for model in MODELS_3] == [0, 0, 1]
    assert FAILED[0] == MODELS_3[2]


def test_accuracy_shows_every_manipulation(suite: Path) -> None:
    shown, table = panels(boards.accuracy(suite)), pd.read_csv(suite / "accuracy.csv")
    for model in MODELS_3:
        drawn = sorted(bar.lines[0].get_ydata()[0] for bar in shown[model].containers)
        expected = table[(table.model == model) & (table.n > 0)].top1_drop
        np.testing.assert_allclose(drawn, sorted(expected))
        assert any(line.get_label() == "2 points" and set(line.get_ydata()) == {2} for line in shown[model].lines)


def test_aopc_averages_the_self_cells(suite: Path) -> None:
    shown, table = panels(boards.aopc(suite)), pd.read_csv(suite / "aopc.csv")
    assert len(shown) == len(MODELS_3) * len(ATTACKED)
    lines = {line.get_label(): line for line in shown["compact_resnet · lrp_t"].lines}
    assert len(lines) == 6
    cells = table[(table.model == "compact_resnet") & (table.attacked == "lrp_t") & (table.evaluated == "lrp_t")]
    mean = cells[(cells.scored == "fooled") & (cells.order == "original")].filter(like="drop_").mean()
    np.testing.assert_allclose(lines["fooled model, order of the original map"].get_ydata(), [0, *mean])
    assert len({(line.get_color(), str(line.get_linestyle())) for line in lines.values()}) == 6


def test_front_shows_every_point_and_the_best_on_test(suite: Path) -> None:
    shown, table = panels(boards.front(suite)), pd.read_csv(suite / "fronts.csv")
    assert len(shown) == len(ATTACKED) * len(FOOLINGS)
    panel = shown["top_k\nlrp_t"]
    here = table[(table.attacked == "lrp_t") & (table.fooling == "top_k") & (table.split == "test")]
    drawn = {bar.get_label(): sorted(bar.lines[0].get_ydata()) for bar in panel.containers}
    assert drawn == {model: sorted(rows.fsr) for model, rows in here.groupby("model")}
    assert list(drawn) == list(MODELS_3)
    tried = [line for line in panel.lines if line.get_markersize() == 3]
    assert sum(len(line.get_xdata()) for line in tried) == 3 * len(MODELS_3)


def test_a_front_of_many_is_a_page_and_not_a_column(suite: Path, tmp_path: Path) -> None:
    table = pd.read_csv(suite / "fronts.csv")
    one = table[(table.fooling == "top_k") & (table.attacked == "lrp_t")]
    names = [f"method_{i}" for i in range(7)]
    pd.concat([one.assign(attacked=name) for name in names]).to_csv(tmp_path / "fronts.csv", index=False)
    shown = [panel for panel in boards.front(tmp_path).axes if panel.get_title()]
    assert [panel.get_title() for panel in shown] == [f"top_k\n{name}" for name in names]
    grid = {(panel.get_subplotspec().rowspan.start, panel.get_subplotspec().colspan.start) for panel in shown}
    assert grid == {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)}
    assert [bool(panel.get_xlabel()) for panel in shown] == [False] * 4 + [True] * 3  # the lowest of each column


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_csv_gives_the_same_png(name: str, small: Path, tmp_path: Path) -> None:
    for file in ("a.png", "b.png"):
        save(FIGURES[name].load()(small), tmp_path / file)
    data = (tmp_path / "a.png").read_bytes()
    assert data == (tmp_path / "b.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert b"Software" not in data


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_to_draw_is_one_line(name: str, suite: Path, tmp_path: Path) -> None:
    header = (suite / f"{name}.csv").read_text().splitlines()[0]
    (tmp_path / f"{name}.csv").write_text(header + "\n")
    with pytest.raises(UserError, match="nothing to draw"):
        FIGURES[name].load()(tmp_path)


def test_a_search_that_failed_has_no_split_and_stops_no_figure(suite: Path, tmp_path: Path) -> None:
    table = pd.read_csv(suite / "fronts.csv")
    failed = {"model": "compact_vgg", "fooling": "top_k", "attacked": "eigen_cam", "n": 0, "error": "no head"}
    pd.concat([table, pd.DataFrame([failed])]).to_csv(tmp_path / "fronts.csv", index=False)
    assert panels(boards.front(tmp_path)).keys() == panels(boards.front(suite)).keys()

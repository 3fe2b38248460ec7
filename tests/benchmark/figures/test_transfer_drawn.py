"""The matrix of a suite: every rate in its place, coloured by its excess over chance; a wrong CSV is one line."""

from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from synthetic import ATTACKED, FAILED, FOOLINGS, INTERPRETERS, MODELS_3, make_results

from attacks.errors import UserError
from benchmark import leaderboards
from benchmark.figures import transfer
from benchmark.leaderboards import stored

ROWS = ["LRP", "lrp", "lrp_t", "CAM", "grad_cam", "gradients", "simple_grad", "simple_grad_t", "smooth_grad"]
ROWS += ["integrated_gradients"]
COLUMNS = ["lrp_t", "grad_cam", "simple_grad_t"]


@pytest.fixture(scope="module")
def figure(suite: Path) -> Figure:
    return transfer.transfer(suite)


def panels(figure: Figure) -> dict[tuple[str, ...], Axes]:
    return {tuple(panel.get_title().split("\n")): panel for panel in figure.axes if panel.get_title()}


def texts(panel: Axes) -> dict[tuple[float, float], str]:
    found = {text.get_position(): text.get_text() for text in panel.texts}
    assert len(found) == len(panel.texts)
    return found


def labels(panel: Axes, axis: str) -> list[str]:
    return [label.get_text() for label in getattr(panel, f"get_{axis}ticklabels")()]


def test_every_cell_is_shown(suite: Path, figure: Figure) -> None:
    shown = panels(figure)
    assert list(shown) == [(fooling, model) for fooling in FOOLINGS for model in MODELS_3]
    table = pd.read_csv(suite / "transfer.csv")
    for (fooling, model), panel in shown.items():
        scored = table[(table.model == model) & (table.fooling == fooling) & (table.n > 0)]
        expected = {
            (1 + COLUMNS.index(row.attacked), ROWS.index(row.evaluated)): f"{100 * row.fsr:.0f}"
            for row in scored.itertuples()
        }
        for name, rows in scored.groupby("evaluated"):
            expected[0, ROWS.index(name)] = f"{100 * max(rows.fsr_clean.mean(), rows.fsr_null.mean()):.0f}"
        assert texts(panel) == expected
        assert sum(not patch.get_fill() for patch in panel.patches) == len(ATTACKED)  # the self cells' outlines
        assert labels(panel, "x") == (["chance", *COLUMNS] if fooling == FOOLINGS[-1] else [])
        assert labels(panel, "y") == (ROWS if model == MODELS_3[0] else [""] * len(ROWS))


def cells(folder: Path, rates: dict[str, tuple[float, float, float]], **more: object) -> Path:
    """A leaderboard of one attack: interpreter -> fsr, fsr_clean, fsr_null."""
    rows = [
        {"model": "m", "fooling": "f", "attacked": "lrp", "evaluated": name, "seed": 0, "n": 8}
        | dict(zip(transfer.RATES, values, strict=True))
        | more
        for name, values in rates.items()
    ]
    table = pd.DataFrame(rows).reindex(columns=leaderboards.TABLES["transfer"].columns)
    table.to_csv(folder / "transfer.csv", index=False)
    return folder


def test_a_colour_is_the_excess_over_chance_and_where_chance_is_nearly_all_there_is_none(tmp_path: Path) -> None:
    """Of transfer.csv alone. By hand: (0.9 - 0.5)/(1 - 0.5) = 0.8; (0.55 - 0.4)/0.6 = 0.25; below chance 0."""
    rates = {"lrp": (0.9, 0.1, 0.5), "lrp_t": (0.55, 0.4, 0.2), "grad_cam": (0.2, 0.3, 0.0), "mine": (1.0, 0.95, 0.1)}
    (panel,) = panels(transfer.transfer(cells(tmp_path, rates))).values()
    rows = labels(panel, "y")
    drawn = {rows[round(p.get_y() + 0.5)]: to_hex(p.get_facecolor()) for p in panel.patches if p.get_fill()}
    expected = {"lrp": 0.8, "lrp_t": 0.25, "grad_cam": 0.0}
    cividis = {name: to_hex(matplotlib.colormaps["cividis"](value)) for name, value in expected.items()}
    assert drawn == cividis | {"mine": to_hex(transfer._SILENT[0])}
    assert {rows[y]: text for (x, y), text in texts(panel).items() if x == 1} == {
        "lrp": "90", "lrp_t": "55", "grad_cam": "20", "mine": "100"
    }  # fmt: skip


def test_controls_are_left_out_by_name_and_where_the_board_knows_them(tmp_path: Path) -> None:
    make_results(tmp_path / "results", models=MODELS_3[:1], foolings=FOOLINGS[:1], attacked=ATTACKED[:1], seeds=(0,))
    frame, card = stored.read(tmp_path / "results").entries[INTERPRETERS[-1]]
    stored.write(tmp_path / "results", INTERPRETERS[-1], frame, card | {"control": True})
    stored.write(tmp_path / "results", "sobel", frame, card | {"interpreter": "sobel"})
    leaderboards.write(tmp_path)
    (panel,) = panels(transfer.transfer(tmp_path)).values()
    assert labels(panel, "y") == [name for name in ROWS if name != INTERPRETERS[-1]]
    (tmp_path / "stability.csv").unlink()
    (panel,) = panels(transfer.transfer(tmp_path)).values()
    assert labels(panel, "y") == ROWS


def test_failed_cells_are_hatched(figure: Figure) -> None:
    hatched = [patch for patch in panels(figure)["top_k", "compact_vgg"].patches if patch.get_hatch()]
    assert len(hatched) == len(INTERPRETERS)
    assert FAILED[:2] == ("compact_vgg", "top_k")


def test_values_are_legible_on_their_cells() -> None:
    def luminance(colour: object) -> float:
        channels = np.array(to_rgb(colour))  # type: ignore[arg-type]
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    for colour, ink in (transfer._SILENT, *map(transfer._cell_colours, np.linspace(0, 1, 101))):
        light, dark = sorted((luminance(colour), luminance(ink)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG AA


def test_a_figure_of_many_is_as_wide_as_a_page_and_nothing_overlaps(tmp_path: Path) -> None:
    """The widest cell text that there is, in the narrowest cells; and every name fits into what is left for it."""
    attacked = ["lrp_t", "grad_cam", "layer_cam", "simple_grad_t", "lrp", "simple_grad"]
    parts = []
    for model in MODELS_3:
        for name in attacked:
            cells(
                tmp_path, dict.fromkeys(("lrp", "adversarial_explanation"), (1.0, 0.0, 0.0)), model=model, attacked=name
            )
            parts.append(pd.read_csv(tmp_path / "transfer.csv"))
    pd.concat(parts).to_csv(tmp_path / "transfer.csv", index=False)
    figure = transfer.transfer(tmp_path)
    assert figure.get_figwidth() <= 7.5
    figure.draw_without_rendering()
    page = figure.bbox
    for panel in figure.axes:
        boxes = [text.get_window_extent() for text in panel.texts if text.get_position()[1] == 1]
        boxes.sort(key=lambda box: box.x0)
        assert len(boxes) == 1 + len(attacked)
        assert all(a.x1 < b.x0 for a, b in pairwise(boxes))
        assert all(text.get_fontsize() >= 8 for text in panel.texts)
        for label in (*panel.get_yticklabels(), *panel.get_xticklabels(), panel.title):
            if not label.get_text():
                continue
            box = label.get_window_extent()
            assert page.x0 <= box.x0 < box.x1 <= page.x1, (label, box)
            assert label.get_fontsize() >= 8


FIRST = "lrp", (0.5, 0.0, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("0.5", "7.5"), r"transfer\.csv, line 2: fsr must be a share in 0\.\.1 \(got 7\.5\)"),
        (lambda text: text.replace("0.5", "-0.1"), r"fsr must be a share in 0\.\.1 \(got -0\.1\)"),
        (lambda text: text.replace("0.5", "inf"), r"fsr must be a share in 0\.\.1 \(got inf\)"),
        (lambda text: text.replace("0.5", "half"), r"transfer\.csv, line 2: fsr must be a number \(got half\)"),
        (lambda text: text.replace("lrp,0,8", "lrp,0,many"), r"line 2: n must be a number \(got many\)"),
        (lambda text: text.replace("lrp,0,8", "lrp,0.5,8"), r"line 2: seed must be a whole number \(got 0\.5\)"),
        (lambda text: text.replace("m,f,lrp", ",f,lrp"), r"transfer\.csv, line 2: model must be a name"),
        (lambda text: text + text.splitlines(True)[1], r"transfer\.csv, line 3: the same line is there twice"),
        (lambda text: text.replace("0.5", ""), "m/f/lrp/lrp/0 must have fsr, fsr_clean, fsr_null, for its n is 8"),
        (lambda text: text[:-1], r"transfer\.csv is not a readable CSV: it ends in the middle of line 2"),
        (
            lambda text: text[: text.index("0.5")],
            r"transfer\.csv is not a readable CSV: line 2 has \d+ fields, the first one \d+",
        ),
        (
            lambda text: text[:-1] + ",\n",
            r"transfer\.csv is not a readable CSV: line 2 has \d+ fields, the first one \d+",
        ),
        (lambda text: text.replace("lrp,lrp", "lrp,sobel"), r"transfer\.csv holds controls alone \(sobel\)"),
        (lambda text: text + '"', "transfer.csv"),
    ],
)
def test_a_wrong_csv_is_one_line(tmp_path: Path, change, message: str) -> None:
    path = cells(tmp_path, dict([FIRST])) / "transfer.csv"
    transfer.transfer(tmp_path)
    text = change(path.read_text())
    assert text != path.read_text()
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        transfer.transfer(tmp_path)
    assert "\n" not in str(caught.value)

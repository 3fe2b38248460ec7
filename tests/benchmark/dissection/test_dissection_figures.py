"""Figures of `foolbench dissect`: every cell, share and number in its place, equal bytes for equal input."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from attacks.errors import UserError
from benchmark.dissection.figures import (
    TYPES,
    Maps,
    changed_figure,
    detectors_figure,
    four_maps,
    masking_figure,
    shares_figure,
)
from benchmark.figures.style import save

SHOWN = ("suppression", "promotion", "balanced", "inactive")


def maps(m: int = 2) -> Maps:
    """10 × 7 pixels in cells of 4: six of them, of every type."""
    rng = np.random.default_rng(0)
    value = np.tile([-8.0, 4.0, 0.5, np.nan, np.nan, 2.0], (m, 1))
    types = np.tile([0, 1, 2, 3, 4, 1], (m, 1))
    cams = rng.normal(size=(4, m, 3, 2))
    names = [("cross", "ring")] * m
    return Maps(rng.random((m, 10, 7, 3)), rng.normal(size=(m, 10, 7, 3)), value, types, 4, cams, names, "title")


def table(**columns: object) -> pd.DataFrame:
    rows = [
        {"attack": a, "type": t, "share": s, "low": s - 0.05, "high": s + 0.1}
        for a, shares in {"pgd": (0.4, 0.3, 0.2, 0.1), "fgsm": (0.1, 0.2, 0.3, 0.4)}.items()
        for t, s in zip(SHOWN, shares, strict=True)
    ]
    return pd.DataFrame(rows).assign(**columns)


def test_the_types_are_those_of_the_metric():
    from benchmark.dissection import promotion

    assert tuple(TYPES) == promotion.TYPES
    assert len({style["sign"] + style.get("hatch", "") for style in TYPES.values()}) == 5


def test_every_cell_is_drawn_in_its_place_with_its_sign():
    figure = four_maps(maps())
    panels = figure.axes[:14]
    assert [p.get_title() for p in panels[:7]][:3] == ["x", "δ", "PSR of the cells"]
    assert panels[7].get_ylabel() == "t0: cross\nt: ring"
    for panel in (panels[2], panels[9]):
        boxes = [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in panel.patches]
        assert boxes == [
            (-0.5, -0.5, 4, 4),
            (3.5, -0.5, 3, 4),
            (-0.5, 3.5, 4, 4),
            (3.5, 3.5, 3, 4),
            (-0.5, 7.5, 4, 2),
            (3.5, 7.5, 3, 2),
        ]
        assert [t.get_text() for t in panel.texts] == ["−", "+", "", "0", "", "+"]
        assert [bool(p.get_hatch()) for p in panel.patches] == [False] * 4 + [True, False]
        red, green, blue = np.array([to_rgb(p.get_facecolor()) for p in panel.patches]).T
        assert (blue > 1.2 * red).tolist() == [True] + [False] * 5, "purple"
        assert (red > 1.2 * blue).tolist() == [False, True, False, False, False, True], "orange"
        assert min(red[2], green[2], blue[2]) > 0.95, "white"
        assert green[1] < green[5], "darker where larger"


def test_maps_of_a_class_share_a_scale_on_both_images():
    given = maps(1)
    panels = four_maps(given).axes[:7]
    order = [0, 2, 1, 3]  # t0 on x, t0 on x', t on x, t on x'
    for panel, own in zip(panels[3:], order, strict=True):
        picture, cam = panel.get_images()
        np.testing.assert_array_equal(cam.get_array(), given.cams[own, 0])
        pair = given.cams[[own % 2, own % 2 + 2], 0]
        assert cam.get_clim() == (pair.min(), pair.max())
        shown = given.images[0] if own < 2 else (given.images[0] + given.delta[0]).clip(0, 1)
        np.testing.assert_allclose(picture.get_array(), shown.mean(-1))
    assert panels[1].get_xlabel() == f"max |δ| = {np.abs(given.delta).max():.2g}"
    shown = panels[1].get_images()[0].get_array()
    np.testing.assert_allclose(shown, 0.5 + given.delta[0] / np.abs(given.delta).max() / 2)


def test_a_blank_perturbation_and_constant_maps_are_drawn(tmp_path: Path):
    given = maps(1)
    blank = replace(
        given, delta=0 * given.delta, cams=0 * given.cams, type=0 * given.type + 4, value=given.value * np.nan
    )
    save(four_maps(blank), tmp_path / "blank.png")


@pytest.mark.parametrize("draw", [lambda: four_maps(maps()), lambda: shares_figure(table())], ids=["maps", "shares"])
def test_the_same_arrays_give_the_same_png(draw, tmp_path: Path):
    for name in ("a.png", "b.png"):
        save(draw(), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_shares_are_stacked_and_each_has_its_interval():
    rows = table(n=[7] * 4 + [9] * 4)
    figure = shares_figure(rows)
    (panel,) = figure.axes
    assert [t.get_text() for t in panel.get_yticklabels()] == ["pgd", "fgsm"]
    bars = [c.patches[0] for c in panel.containers if isinstance(c, BarContainer)]
    np.testing.assert_allclose([b.get_width() for b in bars], rows.share)
    for one, next_ in pairwise(bars[:4]):
        assert next_.get_x() == pytest.approx(one.get_x() + one.get_width())
    assert [t.get_text() for t in panel.texts] == ["40%", "30%", "20%", "10%", "10%", "20%", "30%", "40%"]
    ends = [c.lines[2][0].get_segments()[0][:, 0] for c in panel.containers if not isinstance(c, BarContainer)]
    lefts = np.array([b.get_x() for b in bars])
    np.testing.assert_allclose(ends, np.stack([lefts + rows.low, lefts + rows.high], 1))
    assert "n = 7 to 9 images" in figure.get_suptitle()


def test_models_have_panels_and_what_is_undefined_is_left_out():
    rows = pd.concat([table(model="a"), table(model="b")], ignore_index=True)
    rows.loc[:3, ["share", "low", "high"]] = np.nan
    first, second = shares_figure(rows).axes
    assert (first.get_title(), second.get_title()) == ("a", "b")
    assert [sum(isinstance(c, BarContainer) for c in panel.containers) for panel in (first, second)] == [4, 8]


def test_nothing_to_draw_is_one_line():
    with pytest.raises(UserError, match="no map to draw: at least one image is needed"):
        four_maps(maps(0))
    with pytest.raises(UserError, match="nothing to draw: the table of shares has no rows"):
        shares_figure(table()[:0])


@pytest.fixture
def units() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"layer": np.repeat(["b", "a"], [30, 10]), "category": rng.choice(["x", "y", "z"], 40)})
    table["detector"] = rng.random(40) < 0.5
    table.loc[3, "category"], table.loc[3, "detector"] = None, False
    return table.assign(n=256)


@pytest.fixture
def masked() -> pd.DataFrame:
    draws = [("sensitive", 0), ("random", 0), ("random", 1)]
    rows = [(layer, share, *draw) for layer in "ba" for share in (0.0, 0.1, 0.5) for draw in draws]
    table = pd.DataFrame(rows, columns=["layer", "share", "masked", "draw"])
    values = np.random.default_rng(0).random((2, len(table)))
    return table.assign(top1_clean=values[0], top1_attacked=values[1], n=128)


def panels(figure: Figure) -> dict[str, Axes]:
    return {panel.get_title(): panel for panel in figure.axes}


def test_every_detector_is_in_its_bar(units: pd.DataFrame) -> None:
    both = pd.concat([units.assign(model="clean"), units.assign(model="fooled", detector=~units.detector)])
    figure = detectors_figure(both)
    assert list(panels(figure)) == ["clean", "fooled"]
    for model, panel in panels(figure).items():
        of_model = both[(both.model == model) & both.detector]
        for bars, category in zip(panel.containers, "xyz", strict=True):
            expected = [((of_model.layer == layer) & (of_model.category == category)).sum() for layer in "ba"]
            assert [bar.get_height() for bar in bars] == expected
        tops = [sum(bars[i].get_height() for bars in panel.containers) for i in range(2)]
        assert [text.get_text() for text in panel.texts] == [f"{top:.0f}" for top in tops]
        assert panel.get_ylim()[1] >= 1.1 * max(tops)
        assert [label.get_text() for label in panel.get_xticklabels()] == ["b\nof 30", "a\nof 10"]
    assert "n = 256 images" in figure.get_suptitle()


def test_no_detector_is_no_bar(units: pd.DataFrame) -> None:
    (panel,) = panels(detectors_figure(units.assign(detector=False, category=None))).values()
    assert [text.get_text() for text in panel.texts] == ["0", "0"]


def test_every_accuracy_is_on_its_line(masked: pd.DataFrame) -> None:
    figure = masking_figure(masked)
    assert list(panels(figure)) == ["b", "a"]
    for layer, panel in panels(figure).items():
        rows = masked[masked.layer == layer]
        for line, (column, kind) in zip(
            panel.lines, [(c, k) for c in ("top1_clean", "top1_attacked") for k in ("sensitive", "random")], strict=True
        ):
            expected = rows[rows.masked == kind].groupby("share")[column].mean()
            np.testing.assert_allclose(line.get_xydata(), expected.reset_index().to_numpy())
        assert len({(line.get_color(), line.get_linestyle()) for line in panel.lines}) == 4
        for band, column in zip(panel.collections, ("top1_clean", "top1_attacked"), strict=True):
            drawn = rows[rows.masked == "random"][column]
            heights = band.get_paths()[0].vertices[:, 1]
            assert (heights.min(), heights.max()) == pytest.approx((drawn.min(), drawn.max()))
    assert "n = 128 images, 2 random orders" in figure.get_suptitle()


def test_every_share_of_changed_concepts_is_a_bar_with_its_counts() -> None:
    rows = [("net", "location", "lrp", layer, i < k) for layer, k in (("b", 3), ("a", 0)) for i in range(4)]
    rows += [("net", "fine-tuning", None, "b", i < 1) for i in range(10)]
    table = pd.DataFrame(rows, columns=["model", "fooling", "attacked", "layer", "changed"])
    (panel,) = panels(changed_figure(table)).values()
    bars = [container for container in panel.containers if isinstance(container, BarContainer)]
    assert [bar.get_label() for bar in bars] == ["location, lrp", "fine-tuning"]
    assert [[patch.get_height() for patch in bar] for bar in bars] == [[0.75, 0], [0.1, 0]]
    assert [text.get_text() for text in panel.texts] == ["3/4", "0/4", "1/10", "0/0"]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["b", "a"]
    low, high = bars[0].errorbar.lines[2][0].get_segments()[0][:, 1]
    z, n, p = 1.959964, 4, 0.75  # Wilson 1927
    centre, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert (low, high) == pytest.approx(((centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)), rel=1e-5)


def test_an_empty_table_is_one_line(units: pd.DataFrame, masked: pd.DataFrame) -> None:
    for figure, table in ((detectors_figure, units), (masking_figure, masked), (changed_figure, units)):
        with pytest.raises(UserError, match="nothing to draw"):
            figure(table[:0])


def test_no_torch_is_loaded():
    code = "import sys, benchmark.dissection.figures, benchmark.dissection.tables; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"

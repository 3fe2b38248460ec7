"""Figures of dissection: every number of the tables in its place."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from attacks.errors import UserError
from benchmark.dissection.detection_figures import changed_figure, detectors_figure, masking_figure


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

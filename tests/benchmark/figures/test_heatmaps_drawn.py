"""Heatmaps as a figure: the original above the fooled one, what is constant or undefined marked."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from attacks.errors import UserError
from benchmark.figures.heatmaps import Samples, heatmaps
from benchmark.figures.style import save


def maps(*shape: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"lrp_t": rng.random((3, *shape)), "grad_cam": rng.random((3, 4, 4))}


def test_heatmaps_shows_original_and_fooled(tmp_path: Path) -> None:
    originals, fooled = maps(8, 8), maps(8, 8)
    fooled["lrp_t"][0] = 0.5
    fooled["grad_cam"][1] = np.nan
    samples = Samples(originals, fooled, np.random.default_rng(1).random((3, 32, 32, 3)), "title")
    figure = heatmaps(samples)
    labels = [panel.get_ylabel() for panel in figure.axes if panel.get_ylabel()]
    assert labels == ["image", "lrp_t\noriginal", "lrp_t\nfooled", "grad_cam\noriginal", "grad_cam\nfooled"]
    assert len(figure.axes) == 5 * 3
    assert [text.get_text() for text in figure.axes[6].texts] == ["constant"]
    assert [bool(panel.get_images()) for panel in figure.axes[12:]] == [True, False, True]
    save(figure, tmp_path / "heatmaps.png")
    assert len(heatmaps(Samples(originals, fooled)).axes) == 4 * 3


def test_no_map_and_another_format_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no heatmap to draw"):
        heatmaps(Samples({}, {}))
    with pytest.raises(UserError, match=r"must end in \.png"):
        save(Figure(), tmp_path / "figure.jpg")


@pytest.mark.parametrize("name", ["$a_b^c$", r"\frac{$x$}", "_a", "100 $ and 5 $", r"$\nosuch$"])
def test_a_name_is_no_mathematics(tmp_path, name):
    """The file is that of a figure whose mathematics is off from the start."""
    import matplotlib

    samples = Samples({name: np.eye(2)[None]}, {}, None, name)
    save(heatmaps(samples), tmp_path / "a.png")
    with matplotlib.rc_context({"text.parse_math": False}):
        save(heatmaps(samples), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

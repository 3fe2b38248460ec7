"""Leaderboards as text."""

from pathlib import Path

from synthetic import INTERPRETERS

from benchmark.leaderboards.show import show


def test_show_fits_a_terminal(suite: Path) -> None:
    text = show(suite)
    for name in INTERPRETERS:
        assert f" {name} " in text
    assert "<= 1 points  <= 2 points" in text
    assert "AOPC beats every control" not in text  # no control among them: nothing to beat
    assert "the loss is NaN" in text
    assert max(map(len, text.splitlines())) <= 160

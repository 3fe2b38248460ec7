"""A board to paste, read back by what it is pasted into."""

import csv
import io
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from benchmark import cli, publishing
from benchmark.leaderboards import load
from benchmark.leaderboards.paste import FORMATS

ODD = pd.DataFrame({"interpreter": ["a|b", "50 % & <i>"], "reason": ["x" * 200, None]})


class Cells(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found = list[str]()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag in ("td", "th"):
            self.found.append("")

    def handle_data(self, data):
        if self.found and data.strip():
            self.found[-1] += data


def cells(text: str, form: str) -> list[str]:
    if form == "csv":
        return [cell for row in csv.reader(io.StringIO(text)) for cell in row]
    if form == "html":
        return Cells(text).found
    head, rule, *rows = text.splitlines()
    assert set(rule) <= {"|", "-", " "}
    return [cell.strip().replace("\\|", "|") for row in (head, *rows) for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


@pytest.mark.parametrize("form", ["csv", "markdown", "html"])
def test_nothing_is_lost_on_the_way(form):
    found = cells(FORMATS[form](ODD), form)
    last = "50 % &amp; &lt;i>" if form == "markdown" else "50 % & <i>"
    assert found == ["interpreter", "reason", "a|b", "x" * 200, last, ""]


def test_latex_is_escaped():
    text = FORMATS["latex"](ODD)
    assert r"50 \% \& <i> &  \\" in text
    assert text.startswith(r"\begin{tabular}{ll}")
    assert "x" * 200 in text


@pytest.mark.parametrize("form", publishing.Format)
def test_the_command_prints_the_board(boards, capsys, form):
    cli.leaderboard(out=boards / "tiny", form=form)
    text, stability = capsys.readouterr().out, load(boards / "tiny", "stability")
    assert text.endswith("\n")
    for row in stability.itertuples():
        assert row.interpreter.replace("_", r"\_" if form == "latex" else "_") in text
        assert f"{row.stability:.2f} [{row.stability_low:.2f}, {row.stability_high:.2f}]" in text
        assert (
            row.eligible == "yes"
            or row.reason.replace("\n", " ")[:40].replace("_", r"\_" if form == "latex" else "_") in text
        )

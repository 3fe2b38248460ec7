"""Figures by name: each is found, and the list of them loads nothing that draws."""

import inspect
import subprocess
import sys

import pytest

from attacks.errors import UserError
from benchmark import figures


@pytest.mark.parametrize("name", figures.names())
def test_every_figure_is_a_function_of_what_is_drawn(name: str) -> None:
    drawing = figures.find(name)
    (parameter,) = inspect.signature(drawing.load()).parameters
    assert parameter == ("samples" if drawing.of_cell else "folder")


def test_another_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown figure 'tranfer': did you mean 'transfer'\? allowed: accuracy, "):
        figures.find("tranfer")


def test_the_list_of_figures_loads_nothing_that_draws() -> None:
    code = "import sys, benchmark.cli; print([m for m in ('matplotlib', 'pandas', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")

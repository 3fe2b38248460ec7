"""Lower precisions, emulated: what is rounded, how, and that float32 gives the stored scores."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.course import Manipulated
from benchmark import experiments
from benchmark.cells import Cell, plan
from benchmark.entries.kind import Entry
from benchmark.entries.scores import SCORES
from benchmark.experiments import precision
from benchmark.experiments.given import Given


@given(st.floats(width=32, allow_subnormal=False, min_value=-(2.0**100), max_value=2.0**100))
@settings(max_examples=200)
def test_bf16_is_rounded_to_the_nearest_as_torch_does(value):
    exact = torch.tensor([value])
    found, expected = precision.rounded(exact, 7), exact.bfloat16().float()
    between = (exact.double() - expected.double()).abs() == (exact.double() - found.double()).abs()  # a tie
    assert torch.equal(found, expected) or bool(between)


def test_tf32_by_hand():
    steps = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-11, 1 + 2**-12, -1 - 2**-11 - 2**-23, torch.inf, torch.nan, 0.0])
    expected = torch.tensor([1.0, 1 + 2**-10, 1 + 2**-10, 1.0, -1 - 2**-10, torch.inf, torch.nan, 0.0])
    torch.testing.assert_close(precision.rounded(steps, 10), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", precision.BITS)
def test_products_and_their_gradients_are_of_rounded_inputs(name):
    generator = torch.Generator().manual_seed(0)
    x, w, y = (torch.randn(*shape, generator=generator) for shape in ((2, 3, 8, 8), (4, 3, 3, 3), (2, 4, 8, 8)))
    a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
    with precision.Rounded(name):
        out = F.conv2d(a, b, padding=1)
        out.backward(y)
        product = x[0, 0] @ x[1, 0]
    low = {key: precision.rounded(value, precision.BITS[name]) for key, value in {"x": x, "w": w, "y": y}.items()}
    p, q = low["x"].clone().requires_grad_(), low["w"].clone().requires_grad_()
    exact = F.conv2d(p, q, padding=1)
    exact.backward(low["y"])
    last = (lambda value: precision.rounded(value, 7)) if name == "bf16" else (lambda value: value)
    for found, expected in (
        (out, exact), (a.grad, p.grad), (b.grad, q.grad), (product, low["x"][0, 0] @ low["x"][1, 0])
    ):  # fmt: skip
        torch.testing.assert_close(found, last(expected.detach()), rtol=1e-6, atol=1e-6)
    assert not torch.equal(out, F.conv2d(x, w, padding=1))
    doubles = x.double()
    with precision.Rounded(name):
        assert torch.equal(F.conv2d(doubles, w.double()), F.conv2d(doubles.clone(), w.double()))


def test_float32_gives_the_stored_scores_and_lower_precisions_hardly_move_the_maps(finished, tmp_path):
    finished = finished.again(tmp_path, without=())
    table = precision.measure(Given(finished.run, finished.out, 1))
    plain = [manipulation for manipulation in plan(finished.run.suite) if manipulation.fooling != "active"]
    assert len(table) == len(plain) * len(precision.PAIRS)
    for manipulation in plain:
        cell = manipulation.columns()
        rows = table[(table[list(cell)] == pd.Series(cell)).all(axis=1)].set_index(["made", "scored"])
        path = Entry(SCORES, Cell(manipulation, manipulation.attacked)).path(finished.run) / "scores.parquet"
        assert rows.fsr[precision.FLOAT32, precision.FLOAT32] == pytest.approx(pd.read_parquet(path).success.mean())
        assert rows.map_correlation[precision.FLOAT32, precision.FLOAT32] == pytest.approx(1)
        assert rows.map_correlation[precision.FLOAT32, "bf16"] < 1 - 1e-9
        assert rows.map_correlation[precision.FLOAT32, "tf32"] > rows.map_correlation[precision.FLOAT32, "bf16"] > 0.8
        assert rows.fsr_change[precision.FLOAT32, precision.FLOAT32] == 0
        np.testing.assert_allclose(rows.fsr_change, rows.fsr - rows.fsr.iloc[0], atol=1e-12)
    figure = precision.draw(table)
    assert len(figure.axes) == 2 * table.model.nunique()
    assert "precision" in experiments.names()


def test_a_fooling_that_diverges_in_a_lower_precision_has_its_status_alone(finished, tmp_path, monkeypatch):
    small = finished.run.suite.model_copy(update={"foolings": ["location"], "attacked": ["grad_cam"]})
    finished = finished.again(tmp_path, suite=small)
    monkeypatch.setattr(precision, "by_gradient", lambda *_: Manipulated(torch.nn.Identity(), {}, "diverged", "so"))
    table = precision.measure(Given(finished.run, finished.out, 1)).set_index(["made", "scored"])
    assert table.status.to_dict() == {pair: "diverged" if pair[0] != "float32" else "done" for pair in precision.PAIRS}
    assert (table.fsr.isna() == (table.status == "diverged")).all()

"""Noise on weights: what is noised, by how much, and that none of it gives back the stored scores."""

import numpy as np
import pandas as pd
import pytest
import torch

from benchmark import experiments, suite
from benchmark.cells import Cell, plan
from benchmark.entries.kind import Entry
from benchmark.entries.predictions import PREDICTIONS
from benchmark.entries.scores import SCORES
from benchmark.entries.trained import clean_model
from benchmark.execution import compute
from benchmark.experiments import weight_noise
from benchmark.experiments.given import Given
from benchmark.experiments.weight_noise import Settings
from benchmark.intervals import RESAMPLES, bootstrap_mean


@pytest.fixture(scope="module")
def table(finished):
    return weight_noise.measure(Given(finished.run, finished.out), Settings(scales=(0.0, 0.5), draws=2))


def test_without_noise_it_gives_the_stored_scores(finished, table):
    run = finished.run
    for manipulation in plan(run.suite):
        scores = Entry(SCORES, Cell(manipulation, manipulation.attacked)).path(run) / "scores.parquet"
        predicted = Entry(PREDICTIONS, manipulation).path(run) / "predictions.parquet"
        scores, predicted, cell = pd.read_parquet(scores), pd.read_parquet(predicted), manipulation.columns()
        predicted = predicted[: run.suite.scoring.images]
        rows = table[(table[list(cell)] == pd.Series(cell)).all(axis=1) & (table.scale == 0)].set_index("noised")
        assert rows.draws.tolist() == [1, 1]
        for noised, success, top1 in (("fooled", "success", "top1"), ("clean", "success_clean", "top1_clean")):
            fsr, first = bootstrap_mean(scores[success], scores.image), bootstrap_mean(predicted[top1])
            row = rows.loc[noised]
            assert (row.fsr, row.fsr_low, row.fsr_high) == (fsr.value[0], fsr.low[0], fsr.high[0])
            assert (row.top1, row.top1_low, row.top1_high) == (first.value[0], first.low[0], first.high[0])


def test_it_has_a_row_for_each_manipulation_scale_and_noised_model(finished, table):
    assert len(table) == len(plan(finished.run.suite)) * 2 * 2
    assert table[table.scale > 0].draws.eq(2).all()
    assert table.fsr.between(table.fsr_low, table.fsr_high).all()


def test_the_noise_is_relative_to_each_weight_tensor_and_leaves_the_others_alone(finished):
    clean, outside = clean_model(finished.run, "compact_vgg"), torch.get_rng_state()
    before = {name: value.clone() for name, value in clean.state_dict().items()}
    noised = weight_noise.noised(clean, 0.2, draw=3).state_dict()
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    weights = {f"{name}.weight" for name, module in clean.named_modules() if isinstance(module, kinds)}
    assert set() < weights < set(before)
    for name, value in before.items():
        if name not in weights:
            assert torch.equal(noised[name], value), name
            continue
        noise = (noised[name] - value) / value.square().mean().sqrt()
        k = noise.numel()
        assert noise.square().mean().sqrt().item() == pytest.approx(0.2, rel=4 / (2 * k) ** 0.5)  # four deviations
        assert noise.mean().item() == pytest.approx(0, abs=4 * 0.2 / k**0.5)
    assert all(torch.equal(value, before[name]) for name, value in clean.state_dict().items())
    assert torch.equal(torch.get_rng_state(), outside)


def test_a_draw_is_one_direction_at_every_scale_and_for_every_model():
    torch_models = [torch.nn.Linear(40, 30) for _ in range(2)]

    def direction(model, scale, draw):
        noise = weight_noise.noised(model, scale, draw).weight - model.weight
        return (noise / (scale * model.weight.square().mean().sqrt())).detach()

    one = direction(torch_models[0], 0.1, 0)
    torch.testing.assert_close(direction(torch_models[0], 0.4, 0), one, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(direction(torch_models[1], 0.1, 0), one, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(direction(torch_models[0], 0.1, 1), one, atol=0.1)


def test_the_crossed_interval_is_as_wide_as_both_spreads_together():
    """Of values a_j + b_i the mean has variance var(a)/m + var(b)/n, whose normal interval the bootstrap's nears."""
    generator = np.random.default_rng(0)
    draws, images = generator.normal(size=(40, 1)), generator.normal(size=(1, 200))
    mean, low, high = weight_noise.crossed(draws + images)
    assert mean == pytest.approx(draws.mean() + images.mean())
    deviation = (draws.var() / 40 + images.var() / 200) ** 0.5
    assert (high - low) / 2 == pytest.approx(1.96 * deviation, rel=5 / (2 * RESAMPLES) ** 0.5)
    assert weight_noise.crossed(np.broadcast_to(images, (1, 200))) == pytest.approx(
        tuple(float(part[0]) for part in (lambda m: (m.value, m.low, m.high))(bootstrap_mean(images[0])))
    )


def test_the_default_store_serves_the_suites_models():
    """Data and models are those of the default suite; recipes keep the labels, as its committed table was made."""
    default, own = suite.load("default"), experiments.load_suite(weight_noise)
    assert (own.threads, own.seeds, own.interpreters) == (default.threads, default.seeds, default.interpreters)
    assert (own.models, own.scoring) == (default.models, default.scoring)
    assert own.dataset.model_dump(exclude_none=True).items() <= default.dataset.model_dump(exclude_none=True).items()
    for cell in plan(own):
        place = cell.model, cell.fooling, cell.attacked
        assert own.recipe(*place).divergence is None


def test_it_writes_table_card_and_figure(finished, table, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_noise, "measure", lambda given: table)
    written = experiments.run("weight-noise", Given(finished.run, finished.out), tmp_path)
    assert [path.name for path in written] == ["weight-noise.csv", "weight-noise.json", "weight-noise.png"]
    assert compute.compute(finished.run, 1).failed == {}

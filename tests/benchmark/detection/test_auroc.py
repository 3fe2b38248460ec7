"""AUROC against scikit-learn and by hand; its interval from the resamples one by one."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmark.detection.auroc import auroc
from benchmark.intervals import RESAMPLES, draws

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("honest", "manipulated", "expected"),
    [([0, 1], [2, 3], 1.0), ([2, 3], [0, 1], 0.0), ([1, 1], [1, 1], 0.5), ([0, 2], [1, 3], 0.75), ([0], [0, 1], 0.75)],
)
def test_by_hand(honest, manipulated, expected):
    assert auroc([(honest, manipulated)])[0] == expected


def test_the_interval_is_that_of_resampled_models():
    honest, manipulated = RNG.normal(0, 1, 7).round(1), RNG.normal(1, 1, 9).round(1)
    redrawn = []
    for rows, columns in zip(draws(7, seed=0), draws(9, seed=1), strict=True):
        one, other = honest.repeat(rows), manipulated.repeat(columns)[:, None]
        redrawn.append((other > one).mean() + (other == one).mean() / 2)
    value, low, high = auroc([(honest, manipulated)])
    assert value == roc_auc_score(np.arange(16) >= 7, np.concatenate([honest, manipulated]))
    assert len(redrawn) == RESAMPLES
    assert (low, high) == pytest.approx(np.quantile(redrawn, [0.025, 0.975]))


def test_architectures_are_looked_at_one_by_one():
    """Scores of one are a hundred times those of the other: pooled they would order architectures."""
    one, other = ([1, 2], [3, 4]), ([100, 200], [300, 400])
    assert auroc([one, other])[0] == 1
    assert auroc([one, (other[1], other[0])])[0] == 0.5


def test_architectures_are_resampled_one_by_one():
    """The mean of two independent ones varies by 1/√2 of what one does."""
    group = RNG.normal(0, 1, 12), RNG.normal(0.5, 1, 12)
    (_, low, high), (_, lower, higher) = auroc([group, group]), auroc([group])
    assert 0.6 < (high - low) / (higher - lower) < 0.8

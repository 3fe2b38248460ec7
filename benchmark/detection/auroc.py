"""How well scores tell manipulated models from honest ones: the area under the ROC curve, its interval over models.

AUROC = P(score of a manipulated model > score of an honest one), ties counting half: scikit-learn's. Honest and
manipulated models are redrawn separately, 1,000 times, and the interval runs from the 2.5 % to the 97.5 % quantile.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score

from benchmark.intervals import Floats, draws, interval

Group = tuple[ArrayLike, ArrayLike]  # scores of honest and of manipulated models, each at least one


def auroc(groups: Sequence[Group]) -> tuple[float, float, float]:
    """(value, low, high) of the mean over groups (architectures, whose scores have scales of their own). Where every
    manipulated model of the sample is beyond all honest ones the interval has no width: it shows these models alone."""
    values, replicates = [], []
    for number, group in enumerate(groups):
        honest, manipulated = (np.asarray(scores, float) for scores in group)
        both = np.concatenate([honest, manipulated])
        values.append(roc_auc_score(np.arange(len(both)) >= len(honest), both))
        replicates.append(_resampled(honest, manipulated, 2 * number))
    low, high = interval(np.mean(replicates, 0)[:, None])
    return float(np.mean(values)), float(low[0]), float(high[0])


def _resampled(honest: Floats, manipulated: Floats, seed: int) -> Floats:
    """AUROC of each resample, (B,): wins among the pairs, each as often as both of its models were drawn, with `seed`
    and the next."""
    ahead = manipulated[None] - honest[:, None]
    wins = (ahead > 0) + 0.5 * (ahead == 0)
    rows, columns = draws(len(honest), seed).astype(float), draws(len(manipulated), seed + 1).astype(float)
    return ((rows @ wins) * columns).sum(1) / wins.size

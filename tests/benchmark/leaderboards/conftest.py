"""Leaderboards of results that are small enough to do by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from csvs import OTHER, SELF
from synthetic import manipulation, rows

from benchmark import leaderboards, metrics
from benchmark.leaderboards import stored
from benchmark.leaderboards.cells import CONTRAST, CURVES


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    alike = dict.fromkeys(metrics.columns(), 0.125)
    fooled, other = rows(SELF, 4).assign(**alike), rows(OTHER, 4).assign(**alike)
    fooled["success"], fooled["success_clean"] = [True, True, True, False], [True, False, False, False]
    fooled["test_loss"], fooled["test_loss_clean"] = [0.125, 0.125, 0.25, 0.5], [0.5, 0.5, 0.5, 1.0]
    fooled["rank_correlation"], fooled["blank"] = [0.5, -0.5, np.nan, 0.75], [False, False, True, False]
    other["success"], other["success_clean"] = [True, False, False, False], [False, False, False, False]
    other["test_loss"], other["test_loss_clean"], other["rank_correlation"], other["blank"] = np.nan, np.nan, 1.0, False
    frame = pd.concat([fooled, other], ignore_index=True).assign(ssim=0.25, iou=1 / 3)
    frame["success_null"] = False
    for i, curve in enumerate(CURVES):
        frame[curve] = pd.Series([[i, i + 2.0], [i, i + 4.0]] + [None] * 6, dtype=object)
        frame[curve + CONTRAST] = pd.Series([[0.0, i], [0.0, i + 2.0]] + [None] * 6, dtype=object)
    card = {"interpreter": "lrp_t", "options": {}, "suite": "hand", "failures": []}
    stored.write(tmp_path / "results", "lrp_t", frame, card)
    models = pd.concat([rows(SELF, 4), rows(OTHER, 4)]).assign(top5=True, top5_clean=True, agreement=False)
    models["top1"], models["top1_clean"] = [True, True, False, False] + [True] * 4, [True] * 8
    manipulations = [manipulation(SELF), manipulation(OTHER) | {"range": None}]
    stored.write(tmp_path / "results", "models", models, {"suite": "hand", "manipulations": manipulations})
    leaderboards.write(tmp_path)
    return tmp_path

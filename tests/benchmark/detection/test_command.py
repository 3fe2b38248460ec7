"""The command: where its tables go, and whom it asks."""

from pathlib import Path

import pandas as pd
import pytest

from attacks.errors import UserError
from benchmark.detection import study
from benchmark.detection.command import detect
from benchmark.options import Device


@pytest.mark.parametrize(("suite", "folder"), [("default", "detection"), ("smoke", "detection-smoke")])
def test_the_built_in_detectors_are_asked_and_shown(tmp_path, monkeypatch, capsys, suite, folder):
    monkeypatch.chdir(tmp_path)
    scores = {"kind": ["clean", "clean", "control", "fooled"], "score": [0.0, 2.0, 1.0, 3.0]}
    rows = pd.DataFrame(scores).assign(detector="logit_sum", original="no", model="m", training_seed=0)
    rows = rows.assign(fooling="location", attacked="lrp", strategy="gradient")
    asked = []

    def run(given, out, jobs):
        asked.append((given.suite.name, given.submission, out, jobs))
        return study.aurocs(rows)

    monkeypatch.setattr(study, "run", run)
    detect(suite=suite, store=tmp_path / "store", jobs=2, device=Device.cpu)
    lines = capsys.readouterr().out.splitlines()
    assert asked == [(suite, None, Path("leaderboards") / folder, 2)]
    assert lines[1].split() == ["detector", "original", "control", "fooled", "strategy", "gradient"]
    assert lines[2].split()[:3] == ["logit_sum", "no", "0.50"]
    assert lines[2].split()[-3:] == ["1.00", "[1.00,", "1.00]"]
    assert lines[-1] == f"tables: {Path('leaderboards') / folder}"


def test_a_detector_that_is_no_file_is_told():
    with pytest.raises(UserError, match=r"a submission must be FILE\.py:NAME"):
        detect("logit_sum", suite="smoke", device=Device.cpu)

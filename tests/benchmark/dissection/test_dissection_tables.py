"""Tables from frames: whose concept is another, and rows in order."""

import pandas as pd
import pytest

from attacks.errors import UserError
from benchmark.dissection import tables


def dissected(rows):
    """Rows (category, concept, iou) as units of one layer."""
    table = pd.DataFrame(rows, columns=["category", "concept", "iou"])
    return table.assign(layer="a", unit=range(len(table)), detector=table.iou > 0.04, n=9)


def test_changed_concepts():
    rows = [
        ("colour", "red", 0.5),
        ("colour", "red", 0.5),
        ("colour", "dots", 0.5),
        (None, None, 0.0),
        ("shape", "x", 0.02),
    ]
    before = dissected(rows)
    after = dissected(
        [("colour", "red", 0.01), (None, None, 0.0), ("shape", "dots", 0.5), ("shape", "x", 0.3), (*rows[0][:2], 0.03)]
    )
    found = tables.changed_concepts(before, after)
    assert found.unit.tolist() == [0, 1, 2, 3]  # the last is no detector in either
    assert found.changed.tolist() == [False, True, True, True]
    assert found[["iou_before", "iou_after"]].iloc[0].tolist() == [0.5, 0.01]
    assert not tables.changed_concepts(before, before).changed.any()
    assert len(tables.changed_concepts(before[4:], after[4:])) == 0
    with pytest.raises(UserError, match=r"same layers and units, in one order \(got 5 and 4 rows\)"):
        tables.changed_concepts(before, after[:4])

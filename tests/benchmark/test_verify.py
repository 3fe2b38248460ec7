"""A committed cell, made again from nothing, is what was committed; one that was edited is not."""

import pytest

from attacks.errors import UserError
from benchmark import verify
from benchmark.leaderboards import stored

CELL = "compact_vgg/location/lrp_t/grad_cam/0"


def test_a_cell_is_recomputed_and_equal(finished):
    cell = verify.parse(CELL, finished.run.suite)
    before = finished.entries()
    found = verify.verify(finished.run, cell, finished.out)
    assert found["rows"] == finished.run.suite.scoring.images
    assert found["fsr"] == found["fsr_committed"]
    assert [found[name] for name in ("differing", *verify.COMPARED)] == [0] * (1 + len(verify.COMPARED))
    assert finished.entries() == before


def test_an_edited_cell_is_seen(finished, tmp_path):
    cell = verify.parse(CELL, finished.run.suite)
    for path in (finished.out / "results").iterdir():
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / path.name).write_bytes(path.read_bytes())
    frame, card = stored.read(tmp_path / "results").entries[cell.evaluated]
    mine = (frame.fooling == "location") & (frame.attacked == "lrp_t") & (frame.image == 3)
    frame.loc[mine, "success"] = ~frame.loc[mine, "success"]
    stored.write(tmp_path / "results", cell.evaluated, frame, card)
    assert verify.verify(finished.run, cell, tmp_path)["differing"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compact_vgg/location", "a cell must be MODEL/FOOLING/ATTACKED/EVALUATED/SEED"),
        ("compact_vgg/locaton/lrp_t/grad_cam/0", "did you mean 'compact_vgg/location/lrp_t/0'"),
        ("compact_vgg/location/lrp_t/gradcam/0", "did you mean 'grad_cam'"),
    ],
)
def test_a_cell_that_is_none_is_named(finished, text, message):
    with pytest.raises(UserError, match=message):
        verify.parse(text, finished.run.suite)

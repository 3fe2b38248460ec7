"""A committed cell, made again from nothing, is what was committed; one that was edited is not."""

import pytest

from attacks.errors import UserError
from benchmark import verify
from benchmark.execution import compute
from benchmark.leaderboards import stored
from benchmark.sections import RecipeRule

CELL = "compact_vgg/location/lrp_t/grad_cam/0"


def test_a_cell_is_recomputed_and_equal(finished):
    cell = verify.parse(CELL, finished.run.suite)
    before = finished.entries()
    found = verify.verify(finished.run, cell, finished.out)
    assert found["rows"] == finished.run.suite.scoring.images
    assert found["fsr"] == found["fsr_committed"]
    assert [found[name] for name in ("differing", *verify.COMPARED)] == [0] * (1 + len(verify.COMPARED))
    assert finished.entries() == before


def test_a_distilled_cell_of_a_scope_is_recomputed_by_its_own_recipe(finished, tmp_path):
    rule = {"learning_rate": 1e-2, "lambda": 1.0, "steps": 3, "batch_size": 8, "divergence": 0.05, "scope": "head"}
    changes = {"recipes": [RecipeRule(**rule)], "foolings": ["location"], "attacked": ["lrp_t"], "evaluated": ["lrp_t"]}
    done = finished.again(tmp_path, suite=finished.run.suite.model_copy(update=changes))
    assert compute.run_suite(done.run, done.out, jobs=1) == {}
    found = verify.verify(done.run, verify.parse("compact_vgg/location/lrp_t/lrp_t/0", done.run.suite), done.out)
    assert [found[name] for name in ("differing", *verify.COMPARED)] == [0] * (1 + len(verify.COMPARED))


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

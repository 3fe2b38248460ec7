"""Two results side by side: differences by hand, paired where the images are the same, and what cannot be compared."""

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic import make_results, manipulation, rows

from attacks.errors import UserError
from benchmark import metrics
from benchmark.intervals import draws
from benchmark.leaderboards import ranking, stored
from benchmark.leaderboards.cells import CONTRAST, CURVES, cells_of
from benchmark.leaderboards.compare import COLUMNS, compare, shown

KEYS = [("net", "location", "lrp_t", 0), ("net", "location", "lrp_t", 1)]


def results(folder: Path, fooled: list[list[bool]], name: str = "lrp_t", content: str | None = "x", keys=KEYS) -> Path:
    """Of one interpreter: which images are fooled, a cell a row; never by chance."""
    frames = []
    for key, success in zip(keys, fooled, strict=True):
        frame = rows(key, len(success)).assign(success=success, success_clean=False, success_null=False, blank=False)
        frame = frame.assign(test_loss=0.0, test_loss_clean=0.0, **dict.fromkeys(metrics.columns(), 0.0))
        frames.append(frame.assign(**{curve + end: None for curve in CURVES for end in ("", CONTRAST)}))
    whole = frames[0].__class__(np.concatenate([f.astype(object) for f in frames]), columns=frames[0].columns)
    card = {"interpreter": name, "options": {}, "suite": "hand", "failures": []}
    stored.write(folder / "results", name, whole, card)
    predicted = whole.assign(top1=True, top5=True, top1_clean=True, top5_clean=True, agreement=True)
    card = {"suite": "hand", "manipulations": [manipulation(key) for key in keys]}
    card |= {"dataset": {"images": {"content": content}}} if content else {}
    stored.write(folder / "results", "models", predicted, card)
    return folder


def test_by_hand(tmp_path):
    a = results(tmp_path / "a", [[True, False, False, False], [True, True, False, False]])
    b = results(tmp_path / "b", [[True, True, False, False], [True, True, True, True]])
    table, notes = compare(a, b / "results")
    (row,) = table.to_dict("records")
    assert notes == []
    assert [*row] == COLUMNS
    counts = [row[name] for name in ("interpreter", "cells", "n_a", "n_b", "places")]
    assert counts == ["lrp_t", 2, 4, 4, 1]
    assert (row["fsr_a"], row["fsr_b"], row["fsr_difference"]) == (0.375, 0.75, 0.375)
    assert (row["stability_a"], row["stability_b"], row["stability_difference"]) == (0.625, 0.25, -0.375)
    each = np.array([0.0, 0.5, 0.5, 0.5])  # of each image, mean over cells: paired, so no image's own rate counts
    drawn = draws(4) @ each / 4
    ends = np.quantile(drawn, [0.025, 0.975])
    assert (row["fsr_difference_low"], row["fsr_difference_high"]) == pytest.approx(tuple(ends), abs=1e-9)
    assert shown(table)[["FSR A", "stability B - A"]].to_numpy().tolist()[0][0] == "0.38"


def test_only_common_cells_and_images_count(tmp_path):
    other = [KEYS[0], ("net", "top_k", "lrp_t", 0)]
    a = results(tmp_path / "a", [[True, False, True, True], [True] * 4])
    b = results(tmp_path / "b", [[True, True], [True, True]], keys=other)
    (row,) = compare(a, b)[0].to_dict("records")
    assert (row["cells"], row["n_a"], row["n_b"], row["fsr_a"], row["fsr_b"]) == (1, 2, 2, 0.5, 1.0)


@pytest.mark.parametrize(("content", "why"), [("y", "not the same"), (None, "does not say which images")])
def test_other_images_are_not_paired(tmp_path, content, why):
    a = results(tmp_path / "a", [[True, False, False, False], [True, True, False, False]])
    b = results(tmp_path / "b", [[True, True], [True, False]], content=content)
    table, notes = compare(a, b)
    (row,) = table.to_dict("records")
    assert why in notes[0]
    assert (row["n_a"], row["n_b"], row["fsr_a"], row["fsr_b"], row["fsr_difference"]) == (4, 2, 0.375, 0.75, 0.375)
    assert [name for name in COLUMNS if row[name] != row[name]] == [
        *("fsr_difference_low", "fsr_difference_high", "stability_difference_low", "stability_difference_high", "p")
    ]
    assert shown(table)["FSR B - A"].tolist() == ["0.38"]
    assert shown(table)["n"].tolist() == ["4, 2"]


def test_the_stability_is_that_of_the_ranking(tmp_path):
    small = {
        "models": ["net"],
        "foolings": ["active", "location"],
        "seeds": [0, 1],
        "images": 4,
        "curves": 1,
        "steps": 1,
    }
    for name, asked in (("a", ["lrp", "lrp_t"]), ("b", ["lrp_t", "lrp"])):
        make_results(tmp_path / name, interpreters=asked, attacked=["lrp_t"], **small)
        frame, card = stored.read(tmp_path / name).others["models"]
        stored.write(tmp_path / name, "models", frame, card | {"dataset": {"images": {"content": "x"}}})
    table, _ = compare(tmp_path / "a", tmp_path / "b")
    assert len(table) == 2
    for row in table.to_dict("records"):
        worst = []
        for name in "ab":
            found = stored.read(tmp_path / name)
            listed = sorted(
                found.models_card["manipulations"], key=lambda m: (m["model"], m["fooling"], m["attacked"], m["seed"])
            )
            cells = cells_of(row["interpreter"], found.entries[row["interpreter"]], listed)
            attacks = [
                ranking.Attack(*(c.manipulation[k] for k in ("model", "fooling", "attacked", "seed")), c.scores)
                for c in cells
            ]
            worst.append(ranking.worst_attacks(attacks)[0])
            assert row[f"stability_{name}"] == ranking.stability(worst[-1])[0]
        told = ranking.difference(worst[1], worst[0])
        assert {name: row[f"stability_{name}"] for name in ("difference", "difference_low", "difference_high")} == {
            name: told[name] for name in ("difference", "difference_low", "difference_high")
        }
        assert row["p"] == told["p"]


def test_what_cannot_be_compared_is_one_line(tmp_path):
    a = results(tmp_path / "a", [[True], [True]])
    b = results(tmp_path / "b", [[True], [True]], name="lrp")
    with pytest.raises(UserError, match=r"cannot compare .*a with .*b: no interpreter is in both \(lrp_t; lrp\)"):
        compare(a, b)
    c = results(tmp_path / "c", [[True]], keys=[("net", "top_k", "lrp_t", 0)])
    with pytest.raises(UserError, match=r"no cell was scored in both \(net/location/lrp_t; net/top_k/lrp_t\)"):
        compare(a, c)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        compare(a, tmp_path / "nowhere")
    d = results(tmp_path / "d", [[True], [True]])
    results(d, [[True], [True]], name="lrp")
    assert compare(a, d)[1] == [f"only in {d}: lrp"]


@pytest.mark.parametrize("dataset", [3, {"images": ["x"]}, None])
def test_a_card_that_does_not_say_which_images_takes_the_interval_away(tmp_path, dataset):
    a = results(tmp_path / "a", [[True, False], [True, True]])
    path = a / "results" / "models.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": dataset}))
    table, notes = compare(a, a)
    assert notes == ["differences have no interval: a card does not say which images were scored"]
    assert table.fsr_difference_low.isna().all()

"""Did the map lie: the share of the reliance that a fooled model kept, against its control, by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from csvs import find, table
from synthetic import _scores, manipulation, rows

from benchmark import leaderboards
from benchmark.intervals import draws
from benchmark.leaderboards import stored
from benchmark.leaderboards.cells import CONTRAST, CURVES
from benchmark.results import KEY

IMAGES = 8
PLACES = {fooling: ("net", fooling, "lrp_t", 0) for fooling in ("active", "location", "top_k")}
KEPT = {"active": np.full(IMAGES, 0.25), "location": np.full(IMAGES, 0.75), "top_k": np.arange(IMAGES) % 2.0}


def drops(aopc: np.ndarray) -> pd.Series:
    """Curves of two steps with that AOPC, d₁ + d₂ over 3."""
    return pd.Series([[value, 2 * value] for value in aopc.astype(np.float32)], dtype=object)


def results(folder: Path, control: float | None = 1.0, fooled: bool = True, backdoor: bool = False) -> Path:
    """`KEPT` is AOPC in the old map's order less that in a random one, which is 2; `control`: the same of the control.
    None: there is none, as in older results."""
    rng, frames = np.random.default_rng(0), []
    for fooling, key in PLACES.items():
        frame = _scores(rng, key, "lrp_t", IMAGES, IMAGES, 2).reset_index(drop=True)
        first = frame.index[frame.pair == 0]
        for curve in CURVES:
            aopc = 2 + (KEPT[fooling] if curve == "aopc_fooled_original" else np.zeros(IMAGES))
            frame[curve + CONTRAST] = drops(aopc).set_axis(first)
        frames.append(frame.assign(success=fooled, success_clean=False))
    card = {"interpreter": "lrp_t", "options": {}, "suite": "hand", "failures": []}
    stored.write(folder / "results", "lrp_t", pd.concat(frames), card)
    models = pd.concat([rows(key, IMAGES).assign(**dict.fromkeys(
        ("top1", "top5", "top1_clean", "top5_clean", "agreement"), True)) for key in PLACES.values()])  # fmt: skip
    stored.write(folder / "results", "models", models, {"manipulations": [manipulation(k) for k in PLACES.values()]})
    if control is not None:
        place = {"model": "net", "seed": 0, "evaluated": "lrp_t"}
        curves = {"original": drops(np.full(IMAGES, 2 + control)), "random": drops(np.full(IMAGES, 2.0))}
        frame = pd.concat([
            pd.DataFrame({**curves, "image": range(IMAGES)}).assign(pairs=pairs, **place) for pairs in (False, True)
        ])  # fmt: skip
        stored.write(folder / "results", "controls", frame, {"suite": "hand", "failures": []})
    if backdoor:
        frame = pd.DataFrame({name: [0.0] for name in stored.table("backdoors").schema.names})
        frame = frame.assign(**dict(zip(KEY, PLACES["location"], strict=True)), evaluated="lrp_t", image=0, right=True)
        stored.write(folder / "results", "backdoors", frame, {"suite": "hand"})
    leaderboards.write(folder)
    return folder


def test_the_verdict_is_where_the_interval_lies(tmp_path: Path) -> None:
    lied = table(results(tmp_path), "lied")
    assert [(row["fooling"], row["verdict"]) for row in lied] == [
        ("active", "no"),
        ("location", "yes"),
        ("top_k", "open"),
    ]
    for row, value in zip(lied, (0.25, 0.75, 0.5), strict=True):
        assert float(row["lied"]) == float(row["reliance"]) == pytest.approx(value)
        assert (row["n"], float(row["reliance_control"]), row["excess"]) == (str(IMAGES), 1, "1")
    assert [lied[1][f"lied{end}"] for end in ("_low", "_high")] == ["0.75", "0.75"]
    drawn = np.quantile(draws(IMAGES) @ KEPT["top_k"] / IMAGES, [0.025, 0.975])
    assert [float(lied[2][f"lied{end}"]) for end in ("_low", "_high")] == pytest.approx(drawn)
    assert leaderboards.check(tmp_path) == []


def test_the_board_has_the_share_over_the_cells_that_were_fooled(tmp_path: Path) -> None:
    row = find(table(results(tmp_path), "stability"), interpreter="lrp_t")
    assert float(row["lied"]) == pytest.approx((0.25 + 0.75 + 0.5) / 3)
    assert float(row["lied_low"]) < float(row["lied"]) < float(row["lied_high"])
    assert list(row)[-3:] == ["lied", "lied_low", "lied_high"]


def test_a_control_that_fine_tuning_moved_as_much_is_what_counts(tmp_path: Path) -> None:
    lied = table(results(tmp_path, control=0.5), "lied")
    assert [float(row["lied"]) for row in lied] == pytest.approx([0.5, 1.5, 1.0])
    assert lied[1]["verdict"] == "yes"


@pytest.mark.parametrize("given", [{"fooled": False}, {"control": 0.0}, {"control": -1.0}], ids=str)
def test_where_nothing_was_fooled_or_the_old_map_points_at_nothing_there_is_no_verdict(tmp_path: Path, given) -> None:
    folder = results(tmp_path, **given)
    lied = table(folder, "lied")
    assert [row["verdict"] for row in lied] == [""] * 3
    assert all((row["lied"] == "") == ("control" in given) for row in lied)
    assert "lied" not in table(folder, "stability")[0]


def test_a_fooling_with_a_trigger_has_no_row(tmp_path: Path) -> None:
    assert [row["fooling"] for row in table(results(tmp_path, backdoor=True), "lied")] == ["active", "top_k"]


def test_a_control_that_failed_is_a_row_with_its_error(tmp_path: Path) -> None:
    folder = results(tmp_path)
    frame, card = stored.read(folder / "results").others["controls"]
    failed = {"model": "net", "seed": 0, "evaluated": "lrp_t", "pairs": False, "error": "it\ndiverged"}
    stored.write(folder / "results", "controls", frame[frame.pairs], card | {"failures": [failed]})
    leaderboards.write(folder)
    rows = table(folder, "lied")
    assert [(row["fooling"], row["n"], row["error"]) for row in rows] == [
        *(("active", str(IMAGES), ""), ("location", "0", "it diverged"), ("top_k", "0", "it diverged"))
    ]
    assert leaderboards.load(folder, "lied").lied.notna().tolist() == [True, False, False]


def test_results_without_a_control_have_neither_table_nor_column(tmp_path: Path) -> None:
    folder = results(tmp_path, control=None)
    assert not (folder / "lied.csv").exists()
    assert "lied" not in table(folder, "stability")[0]
    assert leaderboards.check(folder) == []

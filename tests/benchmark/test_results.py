"""Results on disk: round trip, equal bytes for equal content, one line for what is missing, corrupt or foreign."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from attacks.errors import UserError
from benchmark import results
from benchmark.entries.gates import VALUES
from benchmark.results import CURVES, KEY, MODELS, SCORES

MODELS_3 = ("compact_densenet", "compact_resnet", "compact_vgg")
FOOLINGS = ("active", "center_mass", "location", "top_k")
ATTACKED = ("grad_cam", "lrp_t", "simple_grad_t")
INTERPRETERS = ("grad_cam", "integrated_gradients", "lrp", "lrp_t", "simple_grad", "simple_grad_t", "smooth_grad")
FAILED = ("compact_vgg", "top_k", "simple_grad_t", 0)
"""The manipulation that diverged in make_results."""
BROKEN = ("smooth_grad", ("compact_resnet", "location", "lrp_t", 0))
"""The cell whose scoring failed in make_results."""


def make_results(
    folder: Path,
    *,
    models: Sequence[str] = MODELS_3,
    foolings: Sequence[str] = FOOLINGS,
    attacked: Sequence[str] = ATTACKED,
    interpreters: Sequence[str] = INTERPRETERS,
    images: int = 16,
    curves: int = 8,
    steps: int = 16,
    seeds: Sequence[int] = (0,),
) -> None:
    """Random results of the right shape: self cells fooled, LRP maps transferring a little, one of each failure."""
    rng = np.random.default_rng(0)
    keys = list(itertools.product(models, foolings, attacked, seeds))
    done = [key for key in keys if key != FAILED]
    for name in interpreters:
        scored = [key for key in done if (name, key) != BROKEN]
        error = [dict(zip(KEY, BROKEN[1], strict=True)) | {"error": "out of\nmemory"}] if BROKEN[0] == name else []
        frame = pd.concat([_scores(rng, key, name, images, curves, steps) for key in scored])
        shown = {model: {value: rng.uniform(0, 0.3, 12).tolist() for value in VALUES} for model in models}
        card = {"interpreter": name, "options": {}, "suite": "synthetic", "failures": error, "gate": shown}
        card["cost"] = {model: {"ms_per_image": 2.0, "peak_mib": 8.0} for model in models}
        results.write(folder, name, frame, card)
    frame = pd.concat([_predictions(rng, key, images) for key in done])
    results.write(folder, "models", frame, {"suite": "synthetic", "manipulations": [_manipulation(k) for k in keys]})

    _fronts(folder, rng, list(itertools.product(models, foolings, attacked)), images)


def _fronts(folder: Path, rng: np.random.Generator, places: list[tuple[str, ...]], images: int) -> None:
    """Three points of each search, of which the last is the best within both budgets."""
    frames, card = [], {"suite": "synthetic", "points": [], "chosen": []}
    for place in places:
        where = dict(zip(KEY[:3], place, strict=True))
        tried = [
            {"learning_rate": 1e-3, "lambda": 2.0, "steps": 10 * i, "fsr": 0.4 * i, "drop": 0.4 * i} for i in range(3)
        ]
        card["points"] += [where | point for point in tried]
        card["chosen"] += [where | tried[-1] | {"budget": budget} for budget in (1.0, 2.0)]
        for budget, measure in itertools.product((1.0, 2.0), ("fsr", "top1")):
            frame = pd.DataFrame({"image": np.arange(images), "pair": 0, "value": rng.random(images) < 0.8})
            frames.append(frame.assign(value_clean=measure == "top1", budget=budget, measure=measure, **where))
    results.write(folder, "fronts", pd.concat(frames), card)


def rows(key: tuple[Any, ...], images: int, pairs: int = 1) -> pd.DataFrame:
    image = np.repeat(np.arange(images), pairs)
    frame = pd.DataFrame({"image": image, "pair": np.tile(np.arange(pairs), images), "target": image % 8})
    return frame.assign(**dict(zip(KEY, key, strict=True)))


def _scores(rng: np.random.Generator, key: tuple[Any, ...], name: str, images: int, curves: int, steps: int) -> Any:
    frame = rows(key, images, pairs=2 if key[1] == "active" else 1)
    n, own = len(frame), key[2] == name
    rate = 0.92 if own else 0.35 if name.startswith("lrp") else 0.06
    frame["success"], frame["success_clean"] = rng.random(n) < rate, rng.random(n) < 0.03
    frame["success_null"], frame["rank_correlation_null"] = rng.random(n) < 0.05, rng.normal(0.2, 0.1, n)
    frame["test_loss"], frame["test_loss_clean"] = rng.uniform(0.05, 0.4, (2, n))
    frame["rank_correlation"] = np.clip(rng.normal(0.1 if own else 0.7, 0.2, n), -1, 1)
    frame["ssim"], frame["iou"], frame["blank"] = rng.random(n), rng.random(n), rng.random(n) < 0.02
    frame.loc[frame.blank, "rank_correlation"] = np.nan
    first = frame.index[(frame.pair == 0) & (frame.image < curves)]
    cells = np.arange(1, steps + 1) / steps
    for curve in CURVES:
        rise = {"original": 0.3, "fooled": 0.8 if own else 0.4, "random": 1.0}[curve.split("_")[2]]
        drops = 12 * cells**rise * (1 if "clean" in curve else 0.93) + rng.normal(0, 0.4, (len(first), steps))
        frame[curve] = pd.Series(list(drops.astype(np.float32)), index=first, dtype=object)
    return frame


def _predictions(rng: np.random.Generator, key: tuple[Any, ...], images: int) -> pd.DataFrame:
    frame = rows(key, images).drop(columns="pair")
    for column, rate in zip(MODELS.names[6:], (0.95, 0.99, 0.97, 1.0, 0.96), strict=True):
        frame[column] = rng.random(images) < rate
    return frame


def _manipulation(key: tuple[Any, ...]) -> dict[str, Any]:
    status = {"status": "diverged", "reason": "the loss is NaN"} if key == FAILED else {"status": "done", "reason": ""}
    training = {"learning_rate": 1e-6, "lambda": 2.0, "steps": 400, "steps_done": 400, "batch_size": 8}
    losses = {"ce_first": 0.1, "ce_last": 0.2, "fooling_first": 0.5, "fooling_late": 0.3, "fooling_last": float("nan")}
    return dict(zip(KEY, key, strict=True)) | status | training | losses | {"range": [0.0, 0.2], "key": "0" * 16}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_results(tmp_path, models=MODELS_3[1:2], foolings=FOOLINGS[:2], attacked=ATTACKED[:2], interpreters=("lrp_t",))
    return tmp_path


def test_what_is_written_is_read_back(folder: Path) -> None:
    read = results.read(folder)
    frame, card = read.entries["lrp_t"]
    assert list(read.entries) == ["lrp_t"]
    assert list(frame.columns) == SCORES.names
    assert card["suite"] == "synthetic"
    assert len(frame) == 2 * 16 + 2 * 32
    computed = frame[frame.aopc_clean_original.notna()]
    assert set(computed.pair) == {0}
    assert set(computed.image) == set(range(8))
    assert computed.aopc_clean_original.iloc[0].shape == (16,)
    assert frame.rank_correlation.isna().equals(frame.blank)
    assert read.models_card["manipulations"][0]["fooling_last"] is None  # JSON has no NaN


def test_equal_content_gives_equal_bytes_in_any_order(folder: Path, tmp_path: Path) -> None:
    read = results.read(folder)
    card = dict(reversed(read.entries["lrp_t"][1].items()))
    results.write(tmp_path / "again", "lrp_t", read.entries["lrp_t"][0].sample(frac=1, random_state=1), card)
    results.write(tmp_path / "again", "models", read.models.sample(frac=1, random_state=1), read.models_card)
    fronts, fronts_card = read.fronts
    results.write(tmp_path / "again", "fronts", fronts.sample(frac=1, random_state=1), fronts_card)
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == sorted(p.name for p in folder.glob("*.*"))


def test_an_interpreter_with_no_scored_cell_is_an_entry(folder: Path) -> None:
    read = results.read(folder)
    results.write(
        folder, "broken", read.entries["lrp_t"][0].iloc[:0], read.entries["lrp_t"][1] | {"interpreter": "broken"}
    )
    assert results.read(folder).entries["broken"][0].empty


def _drop_column(folder: Path) -> None:
    frame = pd.read_parquet(folder / "lrp_t.parquet").drop(columns="iou")
    frame.to_parquet(folder / "lrp_t.parquet")


def _edit(name: str, **fields: Any) -> Any:
    def change(folder: Path) -> None:
        card = json.loads((folder / name).read_text()) | fields
        (folder / name).write_text(json.dumps(card))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "lrp_t.json").unlink(), "lrp_t.json is missing"),
        (lambda folder: (folder / "models.parquet").unlink(), "models.parquet is missing"),
        (lambda folder: (folder / "lrp_t.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "lrp_t.json").write_text("[]"), "a card must hold interpreter"),
        (lambda folder: (folder / "lrp_t.parquet").write_bytes(b"PAR1"), "not a readable Parquet file"),
        (lambda folder: _truncate(folder / "lrp_t.parquet"), "not a readable Parquet file"),
        (
            lambda folder: (folder / "lrp_t.parquet").write_bytes((folder / "models.parquet").read_bytes()),
            "column pair",
        ),
        (_drop_column, "must be dictionary"),
        (_edit("lrp_t.json", interpreter="lrp"), "interpreter must be 'lrp_t'"),
        (_edit("lrp_t.json", failures=[{}]), "each of its failures must hold model"),
        (_edit("models.json", manipulations={}), "manipulations must be a list"),
        (_edit("models.json", manipulations=[{"model": "x"}]), "must hold fooling, attacked"),
        (_edit("models.json", manipulations=[]), "which models.json does not list"),
    ],
)
def test_bad_files_are_one_line(folder: Path, damage: Any, message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        results.read(folder)
    assert "\n" not in str(caught.value)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_a_missing_folder_and_an_impossible_name_are_errors(folder: Path) -> None:
    with pytest.raises(UserError, match="not a folder"):
        results.read(folder / "absent")
    frame, card = results.read(folder).entries["lrp_t"]
    with pytest.raises(UserError, match="name must be"):
        results.write(folder, "../lrp", frame, card)


def test_gaps_and_repeats_are_refused(folder: Path) -> None:
    frame, card = results.read(folder).entries["lrp_t"]
    with pytest.raises(ValueError, match="repeat a row"):
        results.write(folder, "lrp_t", pd.concat([frame, frame[:1]]), card)
    with pytest.raises(ValueError, match="lack the columns iou"):
        results.write(folder, "lrp_t", frame.drop(columns="iou"), card)
    with pytest.raises(ValueError, match="lack a value in success"):
        results.write(folder, "lrp_t", frame.assign(success=None), card)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results.write_atomic(tmp_path / "file", b"old")

    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(UserError, match=r"cannot write .*file: No space left"):
        results.write_atomic(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]

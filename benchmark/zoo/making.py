"""A zoo from the store of a board's run, and a store from a zoo: what a submission is scored on need not be trained.

A zoo fits a run where what the manipulations depend on beside the code (models, data, recipes, interpreters, seeds) is
what the manifest says. Its models go into a store of its own: keys there say of what code a run is now, and these
models are of the code that made the board. Images that are drawn need not be the same to the bit: NumPy's sines round
otherwise by other vector instructions, so on another CPU a few values in a million are another by one of 255.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save, save_file

from attacks.errors import UserError
from benchmark import leaderboards, suite, zoo
from benchmark.cells import Manipulation, plan
from benchmark.entries.kind import Entry, Inputs, Kind, Receipt
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.entries.predictions import PREDICTIONS
from benchmark.entries.trained import TRAINED
from benchmark.leaderboards import stored
from benchmark.leaderboards.cells import by_key, row_key
from benchmark.results import KEY
from benchmark.run import Run, dataset
from benchmark.store import Store, intact, write_atomic
from benchmark.zoo.form import State, packed

OWN = ("kind", "key", "spec", "files", "sha256")  # of a receipt, what its entry alone says


def export(run: Run, board: Path, where: Path, most: int) -> int:
    """Write the zoo of a board from the store of its run, whose entries are found by the board's keys; its size in
    bytes, `most` at most. Raises `UserError` where the store lacks a model, or a model is none that the suite trains.
    """
    card = stored.read(board / "results").models_card
    free = _own_scores(board)
    tensors, models = dict[str, np.ndarray](), dict[str, Any]()
    fooled, clean = dict[str, Any](), dict[str, State]()
    for row in card["manipulations"]:
        place = Manipulation(*(row[part] for part in KEY))
        path, receipt = _entry(run, MANIPULATIONS, row["key"])
        weights = intact(path / "weights.safetensors", _numpy)
        if place.model not in clean:
            clean[place.model], models[place.model] = _clean(run, place.model, receipt["spec"]["needs"]["model"])
            tensors |= {f"{place.model}.{name}": value for name, value in clean[place.model].items()}
        tensors[str(place)] = packed(weights, clean[place.model])
        said = {"recipe": receipt["spec"]["recipe"], **free[place], "key": row["key"], "sha256": zoo.digest(weights)}
        fooled[str(place)] = said | {"spec": _facts(run, MANIPULATIONS, place), "receipt": _rest(receipt)}
    data = save(tensors)
    if len(data) > most:
        raise UserError(f"the zoo of {board} would have {len(data) / 1e6:.1f} MB, {most / 1e6:.1f} allowed")
    write_atomic(where / zoo.WEIGHTS, data)
    about = {"suite": run.suite.name, "sha256": zoo.file_digest(where), "models": models, "fooled": fooled}
    about["scored"] = _facts(run, PREDICTIONS, place)
    write_atomic(where / zoo.MANIFEST, (json.dumps(about, indent=1, sort_keys=True) + "\n").encode())
    return len(data)


def filled(run: Run, board: Path) -> Run:
    """The run on a store that holds the models of the board's zoo, where there is one that fits; else the run itself.
    Says so on stderr."""
    where = board / "zoo"
    if not (where / zoo.MANIFEST).is_file() or not _fits(run, zoo.manifest(where), board):
        return run
    about = zoo.manifest(where)
    own = replace(run, store=str(Path(run.store) / "zoo" / about["sha256"][:12]))
    for name in run.suite.models:
        Entry(_made_by(TRAINED, where, about["models"]), name).get(own)
    predicted = _predictions(board, own, about)
    for place in plan(run.suite):
        Entry(_made_by(MANIPULATIONS, where, about["fooled"]), place).get(own)
        if predicted:
            Entry(predicted, place).get(own)
    sys.stderr.write(f"fooled models: from {where}, into {own.store}\n")
    return own


def _fits(run: Run, about: dict[str, Any], board: Path) -> bool:
    places: list[tuple[Kind, Any, Any]] = [(TRAINED, name, about["models"]) for name in run.suite.models]
    places += [(MANIPULATIONS, m, about["fooled"]) for m in plan(run.suite)]
    if not all(
        _same(run, about, listed.get(str(m), {}).get("spec"), _facts(run, kind, m)) for kind, m, listed in places
    ):
        return False
    fits = of_board(about, board)
    if not fits:
        sys.stderr.write(f"the zoo of {board} has other models than its board, and is not used: foolbench zoo export\n")
    return fits


def _same(run: Run, about: dict[str, Any], one: Any, other: Any) -> bool:
    """Whether two specs are, of images that are drawn as the zoo's were but for the digests of these."""
    if one == other:
        return True
    name = run.suite.name
    drawn = run.data is None and about["suite"] == name and name in suite.names()
    alike = drawn and run.suite.dataset == suite.load(name).dataset
    return alike and bool(_without_digests(one) == _without_digests(other))


def _without_digests(spec: Any) -> Any:
    if not isinstance(spec, dict):
        return spec
    return {key: _without_digests(value) for key, value in spec.items() if key != "content"}


def of_board(about: dict[str, Any], board: Path) -> bool:
    """Whether a zoo's models are those that the board was scored on."""
    return set(leaderboards.load(board, "manipulations").key) == {row["key"] for row in about["fooled"].values()}


def _predictions(board: Path, run: Run, about: dict[str, Any]) -> Kind | None:
    """The kind, whose entries come from the board's results; None where they are of other images than the run's."""
    if not _same(run, about, about["scored"], _facts(run, PREDICTIONS, None)):
        return None
    by_place = by_key(stored.read(board / "results").models)

    def make(run: Run, place: Manipulation, inputs: Inputs, folder: Path) -> None:
        rows = by_place[row_key(place.columns())].drop(columns=list(KEY))
        rows.reset_index(drop=True).to_parquet(folder / "predictions.parquet")

    return replace(PREDICTIONS, make=make)


def _made_by(kind: Kind, where: Path, about: dict[str, Any]) -> Kind:
    """The same kind, so with the same keys, whose entries come from the zoo."""

    def make(run: Run, place: Any, inputs: Inputs, folder: Path) -> Receipt:
        save_file(zoo.state(where, str(place)), folder / "weights.safetensors")
        return about[str(place)]["receipt"] | {"zoo": about[str(place)]["key"]}

    return replace(kind, make=make)


def _facts(run: Run, kind: Kind, place: Any) -> dict[str, Any]:
    """As they come back from JSON."""
    return json.loads(json.dumps(kind.spec(run, place)))


def _clean(run: Run, name: str, key: str) -> tuple[State, dict[str, Any]]:
    option = run.suite.models[name]
    if option.weights is not None or option.half_huber is not None:
        raise UserError(f"a zoo holds models that a suite trains, with their own activations ({name} is another)")
    path, receipt = _entry(run, TRAINED, key)
    weights, data = intact(path / "weights.safetensors", _numpy), dataset(run, run.suite.scoring.split)
    form = {"architecture": run.suite.architecture(name), "num_classes": data.num_classes}
    form |= {"input_size": data.input_size, "key": key, "sha256": zoo.digest(weights)}
    return weights, form | {"spec": _facts(run, TRAINED, name), "receipt": _rest(receipt)}


def _entry(run: Run, kind: Kind, key: str) -> tuple[Path, Receipt]:
    receipt = Store(run.store).receipt(kind.name, key)
    if receipt is None:
        raise UserError(f"the store {run.store} does not hold {kind.name}/{key}, of which the board tells")
    return Store(run.store).path(kind.name, key), receipt


def _own_scores(board: Path) -> dict[Manipulation, dict[str, float]]:
    """Of each fooled model, by the board: FSR and clean FSR of the attacked interpreter, top-1 lost in points."""
    cells, made = leaderboards.load(board, "transfer"), leaderboards.load(board, "manipulations")
    drops = {tuple(row[part] for part in KEY): row["top1_drop"] for row in made.to_dict("records")}
    own = cells[cells.attacked == cells.evaluated].to_dict("records")
    rows = {tuple(row[part] for part in KEY): {name: row[name] for name in ("fsr", "fsr_clean")} for row in own}
    return {Manipulation(*place): rows.get(place, {}) | {"top1_drop": drop} for place, drop in drops.items()}


def _rest(receipt: Receipt) -> Receipt:
    return {name: value for name, value in receipt.items() if name not in OWN}


def _numpy(path: Path) -> dict[str, np.ndarray]:
    return load_file(path)

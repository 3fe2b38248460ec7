"""Running a suite: what it needs as units of work with their order, on an engine, with progress; then the results.

By default `jobs` processes work side by side, each on the suite's `threads` (`benchmark.execution.engines`); the
numbers depend neither on `jobs` nor on the engine. A unit that raises, or whose process is lost again and again,
becomes a failed manipulation with its error, retried by the next run; a full disk or Ctrl-C ends the run.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from attacks import foolings
from benchmark import datasets, leaderboards
from benchmark.entries import harness, scoring
from benchmark.execution import watch
from benchmark.execution.engines import Engine, Here, Names, Processes, Task, Unit, drive, key_of_unit
from benchmark.leaderboards import stored
from benchmark.run import (
    Cell,
    Run,
    create_interpreter,
    data_spec,
    dataset,
    front_scores_spec,
    front_spec,
    fronts,
    gate_spec,
    has_pairs,
    interpreter_spec,
    left_out,
    manipulation_spec,
    model_spec,
    originals_spec,
    pixels_spec,
    plan,
    predictions_spec,
    recipe,
    robustness_spec,
    scores_spec,
    span,
    told,
)
from benchmark.store import Store, code_version, key_of
from benchmark.suite import split_attack

Start = Callable[[Run], Engine]


def run_suite(
    run: Run, out: str | Path, jobs: int | None = None, start: Start | None = None, limit: float = 0
) -> dict[str, str]:
    """`compute`, then write results and leaderboards under `out`; returns what `compute` does."""
    failed = compute(run, jobs, start, limit)
    collect(run, Path(out), failed)
    return failed


def compute(run: Run, jobs: int | None = None, start: Start | None = None, limit: float = 0) -> dict[str, str]:
    """Compute what the store lacks. Returns the error of each failed manipulation, by "model/fooling/attacked/seed",
    and of each gate and robustness, by the unit's name.

    `jobs` None: as `processes`. `start` makes another engine than processes of this machine. `limit`: seconds of one
    unit, 0 for none.
    """
    Store(run.store).sweep()
    errors: dict[str, str] = {}
    live = start is not None and sys.stderr.isatty()  # its table shows the nodes
    with executor(run, processes(run, jobs), start, limit) as submit:  # joins a cluster before the data is read
        run = told(run)
        if away := len(left_out(run)):
            sys.stderr.write(f"{run.suite.dataset.name}: {away} files left out that another split has, too\n")
        units, needs, after = graph(run)
        for pairs in _pair_forms(run) if units else ():
            datasets.check_disjoint(*(dataset(run, split, pairs) for split in datasets.SPLITS))
        with progress(len(units), live) as report:
            for name, error in submit(units, needs, after):
                report(name, error)
                if error:
                    errors[name] = error
    failed = {name: error for name, error in errors.items() if name.startswith(("gate ", "robustness "))}
    for cell in plan(run.suite):
        if found := errors.get(f"search {front_name(cell)}") or errors.get(name_of(cell)):
            failed[name_of(cell)] = found
    return failed


def processes(run: Run, jobs: int | None) -> int:
    """`jobs`, or as many as the cores allow at the suite's `threads` each, one on a GPU."""
    return jobs or (max(1, (os.cpu_count() or 1) // run.suite.threads) if run.device == "cpu" else 1)


def name_of(cell: Cell) -> str:
    return f"{front_name(cell)}/{cell['seed']}"


def front_name(cell: Cell) -> str:
    return f"{cell['model']}/{cell['fooling']}/{cell['attacked']}"


def _pair_forms(run: Run) -> list[bool]:
    """[False], or [False, True] where two-object images take part."""
    return [False, True] if has_pairs(run) else [False]


def _lacks(run: Run, kind: str, spec: dict[str, Any]) -> bool:
    return Store(run.store).receipt(kind, key_of(spec)) is None


def graph(run: Run) -> tuple[list[Unit], Names, Names]:
    """What the store lacks, in the order in which it is to be started, large cells first; what each unit needs, and
    what it comes after. Original heatmaps come before all that would else make them itself."""
    suite = run.suite
    units: list[Unit] = []
    needs: dict[str, Iterable[str]] = {}
    after: dict[str, Iterable[str]] = {}
    reading: list[str] = []  # the scored images

    def add(
        name: str, function: Callable[..., Any], *args: Any, before: Iterable[str] = (), reads: bool = True
    ) -> None:
        units.append((name, function, (run, *args)))
        after[name] = before
        if reads:
            reading.append(name)

    for name, option in suite.models.items():
        if option.weights is None and _lacks(run, "models", model_spec(run, name)):
            add(f"train {name}", harness.make_model, name, reads=False)
    originals: dict[tuple[str, bool], tuple[str, ...]] = {}
    for model in suite.models:
        for pairs in sorted({foolings.create(name).pairs for name in suite.foolings}):
            for evaluated in suite.evaluated:
                if _lacks(run, "originals", originals_spec(run, model, evaluated, pairs)):
                    name = _originals_name(model, evaluated, pairs)
                    originals[model, pairs] = (*originals.get((model, pairs), ()), name)
                    add(name, harness.make_originals, model, evaluated, pairs, reads=not pairs)
                    needs[name] = [f"train {model}"]
    for cell in fronts(run):
        if _lacks(run, "front_scores", front_scores_spec(run, cell)):
            name, attacked = f"search {front_name(cell)}", split_attack(cell["attacked"])[0]
            own = _originals_name(cell["model"], attacked, foolings.create(cell["fooling"]).pairs)
            add(name, harness.make_front, cell, before=[own])
            needs[name] = [f"train {cell['model']}"]
    for cell in _by_size(run, [cell for cell in plan(suite) if _unfinished(run, cell)]):
        name, before = name_of(cell), originals.get((cell["model"], foolings.create(cell["fooling"]).pairs), ())
        if split_attack(cell["attacked"])[1] == "subspace":
            before = (*before, *map(name_of, span(suite, cell)))
        add(name, harness.make_manipulation, cell, before=before)
        needs[name] = [f"train {cell['model']}", f"search {front_name(cell)}"]
    for model in suite.models:
        if suite.robustness and _lacks(run, "robustness", robustness_spec(run, model)):
            add(f"robustness {model}", harness.make_robustness, model)
            needs[f"robustness {model}"] = [f"train {model}"]
        for evaluated in suite.evaluated if suite.gate else ():
            if _lacks(run, "gates", gate_spec(run, model, evaluated)):
                add(f"gate {model}/{evaluated}", harness.make_gate, model, evaluated, reads=False)
                needs[f"gate {model}/{evaluated}"] = [f"train {model}"]
    if reading and scoring.decodable(run) is not None and _lacks(run, "pixels", pixels_spec(run)):
        units.insert(0, ("decode", scoring.make_pixels, (run,)))
        needs |= {name: [*needs.get(name, ()), "decode"] for name in reading}
    return units, needs, after


def _originals_name(model: str, evaluated: str, pairs: bool) -> str:
    return f"originals {model}/{evaluated}{'/pairs' if pairs else ''}"


def _unfinished(run: Run, cell: Cell) -> bool:
    """Whether the store lacks the manipulation or a score of it; so it does where the recipe is yet to be found."""
    receipt = Store(run.store).receipt("manipulations", key_of(manipulation_spec(run, cell)))
    if receipt is None or receipt["status"] != "done":
        return receipt is None
    scores = any(_lacks(run, "scores", scores_spec(run, cell, e)) for e in run.suite.evaluated)
    return scores or _lacks(run, "predictions", predictions_spec(run, cell))


def _by_size(run: Run, cells: list[Cell]) -> list[Cell]:
    """Those with most images to fine-tune on first: a large cell that starts last is what everybody waits for."""

    def size(cell: Cell) -> int:
        found = recipe(run, cell)
        return (found["steps"] or 0) * (found["batch_size"] or 1)

    return sorted(cells, key=size, reverse=True)


@contextmanager
def executor(
    run: Run, jobs: int, start: Start | None = None, limit: float = 0
) -> Iterator[Callable[..., Iterator[tuple[str, str]]]]:
    """Run units, `submit(units[, needs, after])` (`engines.drive`), and yield (name, error or "") as they end. One job
    on the CPU without a time limit runs here, others in processes of their own; `start` makes another engine."""
    local = Here() if jobs == 1 and not limit and run.device == "cpu" else Processes(jobs)
    engine: Engine = local if start is None else start(run)
    before, tf32, suite = torch.get_num_threads(), torch.backends.cudnn.allow_tf32, run.suite.model_dump_json()
    prefix = key_of({"code": code_version(), "suite": suite, "device": run.device, "by": repr(run.submission)})

    def submit(units: list[Unit], needs: Names = {}, after: Names = {}) -> Iterator[tuple[str, str]]:  # noqa: B006
        if not units:
            return
        with watch.Record(
            run.store, run.suite.name, engine.name, len(units), live=start is not None and sys.stderr.isatty()
        ) as record:

            def task(unit: Unit) -> Task:
                return Task(*unit, run.store, record.id, key_of_unit(prefix, unit), run.suite.threads, limit)

            yield from drive(units, engine, record, task, needs, after)

    try:
        yield submit
    except BaseException:
        engine.close(whole=False)
        raise
    else:
        engine.close(whole=True)
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.allow_tf32 = tf32


@contextmanager
def progress(total: int, quiet: bool = False) -> Iterator[Callable[[str, str], None]]:
    """A bar with the time left on a terminal; a plain line for each unit elsewhere. `quiet`: something else tells."""
    terminal, start, count = sys.stderr.isatty(), time.monotonic(), 0
    with tqdm(total=total, unit="unit", disable=quiet or not (terminal and total), smoothing=0.1) as bar:

        def report(name: str, error: str) -> None:
            nonlocal count
            if quiet:
                return
            count += 1
            bar.update()
            left = (time.monotonic() - start) / count * (total - count)
            if error:
                bar.write(f"FAILED {name}: {error}", file=sys.stderr)
            elif terminal:
                bar.set_postfix_str(name)
            else:
                sys.stderr.write(f"[{count}/{total}] {name}, about {left:.0f} s left\n")  # whole, if Ctrl-C comes now
                sys.stderr.flush()

        yield report


def collect(run: Run, out: Path, failed: dict[str, str]) -> None:
    """Write the results of everything in the store, and the leaderboards that follow from them."""
    store, suite = Store(run.store), run.suite
    manipulations, frames, receipts = [], [], {}
    for cell in plan(suite):
        spec, fooling = manipulation_spec(run, cell), foolings.create(cell["fooling"])
        key = key_of(spec)
        receipt = store.receipt("manipulations", key) or {}
        losses = ("ce_first", "ce_last", "fooling_first", "fooling_late", "fooling_last")
        blank = {"steps_done": 0, **dict.fromkeys(losses)}
        found = {name: receipt.get(name, value) for name, value in blank.items()}
        status, reason = receipt.get("status", "failed"), receipt.get("reason", "")
        predicted = store.path("predictions", key_of(predictions_spec(run, cell))) / "predictions.parquet"
        if (status == "done" and not predicted.is_file()) or status == "failed":
            status, reason = "failed", failed.get(name_of(cell), reason)
        manipulations.append(
            {**cell, **spec["recipe"], **found, "status": status, "reason": reason, "range": fooling.range, "key": key}
        )
        receipts[name_of(cell)] = receipt
        if status == "done":
            frames.append(pd.read_parquet(predicted).assign(**cell))
    seen = [receipt for receipt in receipts.values() if "versions" in receipt]
    # of the manipulations themselves, which may be older than this run, or made on a device that is not here
    origin = {name: seen[0][name] for name in ("versions", "device", "threads")} if seen else harness.provenance(run)
    data = {name: data_spec(run, suite.scoring.split, pairs) for name, pairs in (("images", False), ("pairs", True))
            if pairs in _pair_forms(run)}  # fmt: skip
    card = {"suite": suite.name, "dataset": data, "manipulations": manipulations, **origin}
    folder = out / "results"
    stored.write(folder, "models", _concat(frames, "models"), card)
    for evaluated in suite.evaluated:
        frames, failures = [], []
        for cell, manipulation in zip(plan(suite), manipulations, strict=True):
            key = key_of(scores_spec(run, cell, evaluated))
            path = store.path("scores", key) / "scores.parquet"
            if manipulation["status"] != "done":
                failures.append({**cell, "error": f"{manipulation['status']}: {manipulation['reason']}"})
            elif not path.is_file():
                refused = (store.receipt("scores", key) or {}).get("refused")
                failures.append({**cell, "error": refused or failed.get(name_of(cell), "not evaluated")})
            else:
                frames.append(pd.read_parquet(path).assign(**cell))
        interpreter = create_interpreter(run, evaluated)
        entry = {
            "interpreter": evaluated,
            "options": {k: v for k, v in interpreter_spec(run, evaluated).items() if k != "name"},
            "differentiable": interpreter.differentiable,
            "stochastic": interpreter.stochastic,
            "control": interpreter.control,
            **_submitted(run, evaluated),
            "attackable": evaluated in suite.attacked,
            "suite": suite.name,
            "failures": failures,
            **_gates(run, evaluated),
            **origin,
        }
        stored.write(folder, evaluated, _concat(frames, evaluated), entry)
    if suite.search:
        _collect_fronts(run, folder, origin)
    if suite.robustness:
        _collect_robustness(run, folder, origin)
    leaderboards.write(out)


def _submitted(run: Run, evaluated: str) -> dict[str, Any]:
    """For the card of a submission: that it is one, and the flags of its checks."""
    if run.submission is None or evaluated != run.submission.name:
        return {}
    return {"status": "submitted", "flags": run.submission.flags}


def _gates(run: Run, evaluated: str) -> dict[str, Any]:
    """For the card: what the interpreter showed on each clean model, and what it cost."""
    if run.suite.gate is None:
        return {}
    receipts = {m: Store(run.store).receipt("gates", key_of(gate_spec(run, m, evaluated))) for m in run.suite.models}
    return {part: {m: receipt[name] for m, receipt in receipts.items() if receipt and name in receipt}
            for part, name in (("gate", "values"), ("cost", "cost"))}  # fmt: skip


def _collect_fronts(run: Run, folder: Path, origin: dict[str, Any]) -> None:
    store, frames = Store(run.store), []
    card: dict[str, Any] = {"suite": run.suite.name, "points": [], "chosen": [], **origin}
    for cell in fronts(run):
        place = {key: cell[key] for key in ("model", "fooling", "attacked")}
        receipt = store.receipt("fronts", key_of(front_spec(run, cell)))
        path = store.path("front_scores", key_of(front_scores_spec(run, cell))) / "scores.parquet"
        if receipt and path.is_file():
            for part in ("points", "chosen"):
                card[part] += [place | point for point in receipt[part]]
            frames.append(pd.read_parquet(path).assign(**place))
    stored.write(folder, "fronts", _concat(frames, "fronts"), card)


def _collect_robustness(run: Run, folder: Path, origin: dict[str, Any]) -> None:
    store, frames, found = Store(run.store), [], []
    assert run.suite.robustness is not None
    for model in run.suite.models:
        key = key_of(robustness_spec(run, model))
        receipt = store.receipt("robustness", key)
        if receipt:
            trained = store.receipt("models", key_of(model_spec(run, model))) or {}
            found.append({"model": model, "num_classes": receipt["num_classes"], "psi": trained.get("psi")})
            frames.append(pd.read_parquet(store.path("robustness", key) / "radii.parquet").assign(model=model))
    card = {"suite": run.suite.name, "models": found, "attack": run.suite.robustness.model_dump(), **origin}
    stored.write(folder, "robustness", _concat(frames, "robustness"), card)


def _concat(frames: list[pd.DataFrame], name: str) -> pd.DataFrame:
    if frames:
        return pd.concat(frames, ignore_index=True)
    return pd.DataFrame({column: [] for column in stored.table(name).schema.names})

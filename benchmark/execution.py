"""Running a suite: units of work on processes, with progress, then the results.

`jobs` processes work side by side, each on the suite's `threads`; the numbers do not depend on `jobs`. A unit that
raises becomes a failed manipulation with its error, retried by the next run; a full disk or Ctrl-C ends the run.
"""

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from attacks import foolings
from attacks.errors import UserError
from benchmark import datasets, harness, leaderboards, results
from benchmark.plan import (
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
    manipulation_spec,
    model_spec,
    originals_spec,
    plan,
    predictions_spec,
    robustness_spec,
    scores_spec,
)
from benchmark.store import Store, key_of
from benchmark.suite import split_attack

Unit = tuple[str, Callable[..., Any], tuple[Any, ...]]  # what it is, the function, its arguments


def run_suite(run: Run, out: str | Path, jobs: int | None = None) -> dict[str, str]:
    """`compute`, then write results and leaderboards under `out`; returns what `compute` does."""
    failed = compute(run, jobs)
    collect(run, Path(out), failed)
    return failed


def compute(run: Run, jobs: int | None = None) -> dict[str, str]:
    """Compute what the store lacks. Returns the error of each failed manipulation, by "model/fooling/attacked/seed".

    `jobs` None: as `processes`.
    """
    jobs = processes(run, jobs)
    errors: dict[str, str] = {}
    prepared = _preparations(run)
    attacks = None if prepared[-1] else _manipulations(run)  # known only after the searches, where there are any
    total = sum(map(len, prepared)) + (len(plan(run.suite)) if attacks is None else sum(map(len, attacks)))
    for pairs in _pair_forms(run) if total else ():
        datasets.check_disjoint(*(dataset(run, split, pairs) for split in datasets.SPLITS))
    with progress(total) as report, executor(run, jobs) as submit:

        def work(units: list[Unit]) -> None:
            for name, error in submit(units):
                report(name, error)
                if error:
                    errors[name] = error

        for stage in prepared:
            work(stage)
        for stage in _manipulations(run) if attacks is None else attacks:
            work(stage)
    searches = {name: error for name, error in errors.items() if name.startswith("search ")}
    return {n: e for n, e in errors.items() if n in {name_of(cell) for cell in plan(run.suite)}} | {
        name_of(cell): searches[f"search {front_name(cell)}"]
        for cell in plan(run.suite)
        if f"search {front_name(cell)}" in searches
    }


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


def _preparations(run: Run) -> list[list[Unit]]:
    """What the store lacks: models, then their original heatmaps and gates, then searches of recipes."""
    suite = run.suite
    first: list[Unit] = [
        (f"train {name}", harness.make_model, (run, name))
        for name, option in suite.models.items()
        if option.weights is None and _lacks(run, "models", model_spec(run, name))
    ]
    second: list[Unit] = [
        (f"originals {model}/{evaluated}", harness.make_originals, (run, model, evaluated, pairs))
        for model in suite.models
        for evaluated in suite.evaluated
        for pairs in sorted({foolings.create(name).pairs for name in suite.foolings})
        if _lacks(run, "originals", originals_spec(run, model, evaluated, pairs))
    ]
    if suite.gate:
        second += [
            (f"gate {model}/{evaluated}", harness.make_gate, (run, model, evaluated))
            for model in suite.models
            for evaluated in suite.evaluated
            if _lacks(run, "gates", gate_spec(run, model, evaluated))
        ]
    if suite.robustness:
        second += [
            (f"robustness {model}", harness.make_robustness, (run, model))
            for model in suite.models
            if _lacks(run, "robustness", robustness_spec(run, model))
        ]
    third: list[Unit] = [
        (f"search {front_name(cell)}", harness.make_front, (run, cell))
        for cell in fronts(run)
        if _lacks(run, "front_scores", front_scores_spec(run, cell))
    ]
    return [first, second, third]


def _manipulations(run: Run) -> list[list[Unit]]:
    """The manipulations that are not in the store with all their scores, and whose recipe is known: those by gradient,
    then those in the span of what the first ones make."""
    by_gradient: list[Unit] = []
    subspace: list[Unit] = []
    for cell in plan(run.suite):
        spec = manipulation_spec(run, cell)
        if spec["recipe"]["steps"] is None:
            continue  # its search failed
        receipt = Store(run.store).receipt("manipulations", key_of(spec))
        scored = receipt and not _lacks(run, "predictions", predictions_spec(run, cell))
        scored = scored and not any(_lacks(run, "scores", scores_spec(run, cell, e)) for e in run.suite.evaluated)
        if receipt is None or (receipt["status"] == "done" and not scored):
            units = subspace if split_attack(cell["attacked"])[1] == "subspace" else by_gradient
            units.append((name_of(cell), harness.make_manipulation, (run, cell)))
    return [by_gradient, subspace]


@contextmanager
def executor(run: Run, jobs: int) -> Iterator[Callable[[list[Unit]], Iterator[tuple[str, str]]]]:
    """Run units and yield (name, error or "") as they end. One job runs here, more in processes of their own."""
    if jobs == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(run.suite.threads if run.device == "cpu" else threads)
        try:
            yield lambda units: ((name, _guarded(function, args)) for name, function, args in units)
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, _start_worker, (run.suite.threads,))

    def submit(units: list[Unit]) -> Iterator[tuple[str, str]]:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # workers start here, and import for seconds
        try:
            waiting = {pool.submit(_guarded, function, args): name for name, function, args in units}
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()

    try:
        yield submit
    except BaseException as error:
        for process in multiprocessing.active_children():  # before the pool takes its queues from one that starts
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, BrokenExecutor):
            raise UserError(
                "a worker process was killed (out of memory?): the store is whole, run again with fewer --jobs"
            ) from error
        raise
    pool.shutdown()


def _start_worker(threads: int) -> None:
    threading.Thread(target=_follow_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a word; the parent speaks
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed worker leaks with a warning
    torch.set_num_threads(threads)


def _follow_parent() -> None:
    """A killed parent takes its workers along, or they would work through what is queued."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _guarded(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """The error of a unit as one line, "" where there was none."""
    try:
        function(*args)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left for the store {args[0].store}") from error
        return _line(error)
    except UserError as error:
        if "no space left" in str(error):
            raise
        return _line(error)
    except Exception as error:  # becomes a row with its error: one bad cell does not cost the others
        if "No space left" in str(error):  # safetensors wraps the system's error
            raise UserError(f"no space left for the store {args[0].store}") from error
        return _line(error)
    return ""


def _line(error: Exception) -> str:
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())


@contextmanager
def progress(total: int) -> Iterator[Callable[[str, str], None]]:
    """A bar with the time left on a terminal; a plain line for each unit elsewhere."""
    terminal, start, count = sys.stderr.isatty(), time.monotonic(), 0
    with tqdm(total=total, unit="unit", disable=not (terminal and total), smoothing=0.1) as bar:

        def report(name: str, error: str) -> None:
            nonlocal count
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
    origin = {
        name: seen[0][name] if seen else value for name, value in harness.provenance(run).items()
    }  # of the manipulations themselves, which may be older than this run
    data = {name: data_spec(run, suite.scoring.split, pairs) for name, pairs in (("images", False), ("pairs", True))
            if pairs in _pair_forms(run)}  # fmt: skip
    card = {"suite": suite.name, "dataset": data, "manipulations": manipulations, **origin}
    folder = out / "results"
    results.write(folder, "models", _concat(frames, results.MODELS), card)
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
        results.write(folder, evaluated, _concat(frames, results.SCORES), entry)
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
    results.write(folder, "fronts", _concat(frames, results.FRONTS), card)


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
    results.write(folder, "robustness", _concat(frames, results.ROBUSTNESS), card)


def _concat(frames: list[pd.DataFrame], schema: Any) -> pd.DataFrame:
    if frames:
        return pd.concat(frames, ignore_index=True)
    return pd.DataFrame({name: [] for name in schema.names})

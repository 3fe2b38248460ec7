"""What suites would take on this device: images per second of the first one's parts, and from these device-hours.

python examples/device_hours.py --data ROOT                       # both of ImageNet on the device at hand, as CSV
python examples/device_hours.py --data ROOT --device cuda --batch-size 32

plain: an Adam step on the cross-entropy; ATTACKED, FOOLING: a fooling step against that interpreter; score NAME: maps
of a fooled model by that interpreter and all their metrics, without reading the images; forward: a pass without
gradients; loading: what the data loader gives of images when nothing else runs, to train, to score, and to score where
they lie decoded in the store (`scoring.decoded`). `waiting` is the share of a step's time in which
the loader kept it waiting; where steps are fast, time more of them than the two batches that each worker fetches ahead.
Passive foolings cost what Location costs. The weights are random unless --weights: no step depends on what they are,
but a CPU is slow on denormals, to which relevance fades in an untrained network; they are flushed.
"""

import argparse
import itertools
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
import torch.nn.functional as F

from attacks import Recipe, foolings
from attacks.course import Task
from attacks.manipulation import fine_tune
from attacks.strategies import STRATEGIES, split
from benchmark import datasets, models
from benchmark.cells import Attack, Manipulation, plan
from benchmark.entries import recipes, scoring
from benchmark.entries.images import PIXELS, batches, decodable
from benchmark.entries.kind import Entry
from benchmark.entries.search import grid
from benchmark.run import Run, Told, create_interpreter, dataset
from benchmark.sections import Suite
from benchmark.suite import load

READ = 1024  # images


class Waited:
    """A loader, and the seconds that it kept its user waiting."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader, self.seconds = loader, 0.0

    def __iter__(self) -> Iterator[Any]:
        given = iter(self.loader)
        while True:
            start = time.perf_counter()
            batch = next(given, None)
            self.seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch


def as_it_is(run: Run) -> Run:
    """The run on all files of the folder: to find those that are there twice it would read them all."""
    run = replace(run)  # with a memo of its own
    run.memo["told"] = Told((), ())
    return run


def now(run: Run) -> float:
    if torch.device(run.device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def row(model: str, what: str, images: int, seconds: float, waiting: float = float("nan")) -> dict[str, Any]:
    print(f"{model} {what}: {images / seconds:.3g} images/s", file=sys.stderr)
    return {"model": model, "what": what, "images_per_s": images / seconds, "waiting": waiting}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--suite", nargs="+", default=["imagenet", "imagenet_distilled"], help="measured is the first")
    parser.add_argument("--data")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, help="of a step [that of the suite's recipes]")
    parser.add_argument("--steps", type=int, default=3, help="timed, after one that is not")
    parser.add_argument("--images", type=int, default=32, help="scored")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument(
        "--scored", type=int, default=50_000, help="images that a cell is scored on, for the projection"
    )
    parser.add_argument("--weights", action="store_true", help="the suite's own, from torchvision")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = False  # as in a run
    suite, *others = map(load, given.suite)
    sizes = {"test": given.images, "pairs_train": 64, "workers": 0, "class_pair": None}
    plain = suite.scoring.model_copy(update={"decoded": False})
    small = suite.model_copy(update={"dataset": suite.dataset.model_copy(update=sizes), "scoring": plain})
    with tempfile.TemporaryDirectory() as store:
        run = as_it_is(Run(small, store, given.data, given.device))
        rows = [row for name in suite.models for row in measure(run, name, given)]
        found = pd.DataFrame([*rows, *loading(suite, run, given)])
    about = (
        f"{torch.get_num_threads()} threads, {platform.machine()}"
        if run.device == "cpu"
        else torch.cuda.get_device_name()
    )
    print(f"# suite {suite.name}, {about}, torch {torch.__version__}, {given.workers} workers")
    print(found.to_csv(index=False, float_format="%.3g"), end="")
    speed = found.set_index(["model", "what"]).images_per_s
    for each in (suite, *others):
        for model, hours in projected(Run(each, ""), speed, given.scored).items():
            print(
                f"# {each.name}, {model}: {hours['steps']:.0f} device-hours of steps, {hours['scores']:.0f} of scoring"
            )


def measure(run: Run, name: str, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each part of the suite that this model takes part in."""
    weights = run.suite.models[name].weights if given.weights else None
    model = models.create(run.suite.architecture(name), num_classes=dataset(run, "train").num_classes, weights=weights,
                          input_size=None if weights else dataset(run, "train").input_size)  # fmt: skip
    model = model.to(run.device, memory_format=torch.channels_last).eval()

    def loader(attack: Attack, pairs: bool) -> Waited:
        size, data = given.batch_size or images_of_step(run, attack), dataset(run, "train", pairs)
        return Waited(datasets.loader(data, size, shuffle=True, workers=given.workers, device=run.device))

    def timed(what: str, steps: Iterator[Any], waited: list[Waited], size: int) -> dict[str, Any]:
        next(steps)
        start, before = now(run), sum(w.seconds for w in waited)
        for _ in itertools.islice(steps, given.steps):
            pass
        seconds = now(run) - start
        return row(name, what, given.steps * size, seconds, (sum(w.seconds for w in waited) - before) / seconds)

    plain = loader(next(cell for cell in plan(run.suite) if cell.model == name), False)
    size = plain.loader.batch_size
    yield timed("plain", plain_steps(model, plain, run), [plain], size)
    aimed = dict.fromkeys(["lrp", *(split(attacked)[0] for attacked in run.suite.attacked)])
    for fooling, attacked in itertools.product(("location", "active"), aimed):
        if fooling not in run.suite.foolings:
            continue
        cell = Attack(name, fooling, run.suite.attacked[0])  # for its batch size
        pairs = foolings.create(fooling).pairs
        loaders = [loader(cell, False), *([loader(cell, True)] if pairs else [])]
        interpreter, recipe = create_interpreter(run, attacked), Recipe(1e-7, weight=1.0, steps=given.steps + 1)
        steps = fine_tune(
            Task(model, interpreter, foolings.create(fooling), loaders[0], fooling_loader=loaders[-1]), recipe
        )
        next(steps)  # the state before the first step
        yield timed(f"{attacked}, {fooling}", steps, loaders, loaders[0].loader.batch_size * len(loaders))
    images = torch.cat([images for images, _ in batches(run, "test")])
    labels, size = torch.zeros(len(images), dtype=torch.int64, device=run.device), run.suite.scoring.batch_size
    at_hand = patch.object(scoring, "batches", lambda *_: zip(images.split(size), labels.split(size), strict=True))
    with torch.no_grad():
        model(images)
        start = now(run)
        for _ in range(given.steps):
            model(images)
        yield row(name, "forward", given.steps * len(images), now(run) - start)
        for evaluated in run.suite.evaluated:
            interpreter = create_interpreter(run, evaluated)
            maps = interpreter(model, images, labels).cpu().numpy()
            for _ in range(1 if run.device == "cpu" else 2):  # a GPU's first time is of its kernels' loading
                start = now(run)
                with at_hand:
                    scoring.score(run, foolings.create("location"), interpreter, model, maps, 0)
                seconds = now(run) - start
            yield row(name, f"score {evaluated}", given.images, seconds)


def loading(suite: Suite, run: Run, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each way to read images: at most `READ`, with the workers' start."""
    size = suite.scoring.batch_size
    train = datasets.loader(dataset(run, "train"), size, shuffle=True, workers=given.workers, device=run.device)
    few = run.suite.dataset.model_copy(update={"test": READ, "workers": given.workers})
    ways: dict[str, Iterable[Any]] = {"train": itertools.islice(train, READ // size)}
    for what, decoded in (("score", False), ("score, decoded", True)):
        way = suite.scoring.model_copy(update={"decoded": decoded})
        reading = as_it_is(replace(run, suite=suite.model_copy(update={"dataset": few, "scoring": way})))
        if decoded:
            if decodable(reading) is None:
                continue  # they lie in memory
            Entry(PIXELS, suite.scoring.split).get(reading)
        ways[what] = batches(reading, suite.scoring.split)
    for what, images in ways.items():
        start = time.perf_counter()
        seen = sum(len(batch) for batch, _ in images)
        yield row("", f"loading to {what}", seen, time.perf_counter() - start)


def plain_steps(model: torch.nn.Module, loader: Iterable[Any], run: Run) -> Iterator[None]:
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-9)
    for images, targets in loader:
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(model(images.to(run.device)), targets.to(run.device)).backward()
        optimiser.step()
        yield


def own_recipe(run: Run, attack: Attack) -> Recipe | None:
    """What the suite or the strategy gives; None where it is searched."""
    searched = run.suite.search is not None and attack.takes_recipe
    return None if searched else recipes.recipe(run, attack) or STRATEGIES[attack.strategy].recipe()


def images_of_step(run: Run, attack: Attack) -> int:
    """Of one kind, at most."""
    settings = own_recipe(run, attack) or run.suite.search
    assert settings is not None
    return settings.batch_size


def steps_of(run: Run, attack: Manipulation) -> int:
    """At most; of the first seed with the search of its recipe, which is carried out once more."""
    own, settings = own_recipe(run, attack), run.suite.search
    if own is not None:
        return own.steps
    assert settings is not None
    taken, race, before = 0, len(grid(settings)), 0
    for rung in settings.rungs:
        taken, race, before = taken + race * (rung - before), math.ceil(race / 3), rung
    return settings.rungs[-1] + (taken if attack.seed == run.suite.seeds[0] else 0)


def projected(run: Run, speed: "pd.Series[float]", images: int) -> dict[str, dict[str, float]]:
    """Device-hours of the whole suite, a model at a time: steps, and scores with their AOPC curves."""
    scored, hours = run.suite.scoring, {name: {"steps": 0.0, "scores": 0.0} for name in run.suite.models}
    for cell in plan(run.suite):
        name, pairs = cell.model, foolings.create(cell.fooling).pairs
        step = speed[name, f"{cell.interpreter}, {'active' if pairs else 'location'}"]
        hours[name]["steps"] += steps_of(run, cell) * images_of_step(run, cell) * (1 + pairs) / step / 3600
        n = (run.suite.dataset.pairs_test or images) if pairs else images
        for evaluated in run.suite.evaluated:
            maps = n * (1 + pairs) / speed[name, f"score {evaluated}"]
            curves = 3 * min(scored.aopc_images, n) * (scored.aopc_cells + 1) / speed[name, "forward"]
            hours[name]["scores"] += (maps + curves) / 3600
    return hours


if __name__ == "__main__":
    main()

"""The harness: a suite becomes entries in the store, the entries become results.

Units of work, each an idempotent function of small arguments: `make_model` (a compact model is trained),
`make_originals` (the clean model's heatmaps under one interpreter, and its AOPC curves), `make_front` (recipes are
searched, in a suite that does), `make_manipulation` (a fooled model, its predictions, and its scores under every
evaluated interpreter). A unit leaves whole entries in the store or none, so a run that was killed goes on where it
stopped. Memory is bounded by one batch; original heatmaps lie on disk (4 bytes a pixel) and are read through a memory
map.
"""

import platform
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms import v2

from attacks import foolings
from attacks.adversarial import BOUNDARIES, OnPixels, minimum_norm
from attacks.errors import Refused, UserError, may_pass
from attacks.manipulation import Manipulated, Recipe, fine_tune, manipulate
from attacks.robust_training import Adversary, Regulariser, Robust
from attacks.subspace import subspace
from attacks.surrogates import Smooth
from benchmark import datasets, interpreters, models
from benchmark.entries import gate
from benchmark.entries.scoring import (
    Curves,
    Maps,
    batches,
    first_images,
    heatmaps,
    predictions,
    score,
    target_grid,
    write_npy,
)
from benchmark.entries.search import Judge, State, ahead, grid, search
from benchmark.figures.heatmaps import Samples
from benchmark.interpreters.adversarial_explanation import AdversarialExplanation
from benchmark.metrics.accuracy import top_k_correct
from benchmark.metrics.perturbation import folded
from benchmark.run import (
    EVALUATIONS,
    Cell,
    Run,
    create_interpreter,
    dataset,
    front_scores_spec,
    front_spec,
    gate_spec,
    has_pairs,
    manipulation_spec,
    model_spec,
    originals_spec,
    predictions_spec,
    pretrained,
    robustness_spec,
    scores_spec,
    span,
    untrained,
)
from benchmark.store import Store, code_version, key_of
from benchmark.suite import split_attack
from benchmark.training import Objective, cross_entropy, train

SAMPLES = 8  # fooled heatmaps kept of each cell, for the figure
JUDGED = 64  # dev images on which a subspace attack measures its candidates
BUDGET = 2.0  # points of top-1 that it may cost, where the suite names no budget


def clean_model(run: Run, name: str) -> nn.Module:
    """The model before any manipulation, on the run's device; a compact one is trained on first use."""
    if run.suite.models[name].weights is not None:
        return pretrained(run, name).to(memory_format=torch.channels_last).to(run.device)
    return stored_model(run, name, make_model(run, name))


def stored_model(run: Run, name: str, path: Path, weights: str = "weights") -> nn.Module:
    """The model with the weights of a store entry, on the run's device."""
    model = new_model(run, name)
    model.load_state_dict(load_file(path / f"{weights}.safetensors"))
    return model.to(run.device)


def new_model(run: Run, name: str) -> nn.Module:
    """The model without its weights. In channels_last order the compact VGG runs three times as fast on a CPU; an
    interpreter must `reshape` its activations, not `view` them."""
    return untrained(run, name).to(memory_format=torch.channels_last)


def make_model(run: Run, name: str) -> Path:
    """Train a model on the train split; its dev accuracy is in the receipt, and ψ where it was regularised."""
    option, data = run.suite.models[name], run.suite.dataset

    def make(folder: Path) -> dict[str, Any]:
        with torch.random.fork_rng():
            torch.manual_seed(data.seed)
            model = new_model(run, name).to(run.device)
        objective, regulariser = objective_of(run, name)
        losses = train(model, dataset(run, "train"), **option.schedule(), seed=data.seed, objective=objective)
        with torch.no_grad():
            correct = torch.cat([top_k_correct(model(x), y, 1) for x, y in batches(run, "dev")])
        save_weights(model, folder)
        psi = {"psi": regulariser.current} if regulariser else {}
        return {"losses": losses, "dev_top1": correct.float().mean().item(), **psi}

    return Store(run.store).get("models", model_spec(run, name), make)


def objective_of(run: Run, name: str) -> tuple[Objective, Regulariser | None]:
    """What training a model minimises: cross-entropy, or a robust loss of the images as pixels."""
    option, data = run.suite.models[name], dataset(run, "train")
    if not (option.adversary or option.regulariser):
        return cross_entropy, None
    adversary = Adversary(**option.adversary.model_dump(exclude_none=True)) if option.adversary else None
    regulariser = Regulariser(**option.regulariser.model_dump(exclude_none=True)) if option.regulariser else None
    robust = Robust(adversary, regulariser)

    def objective(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return robust(OnPixels(model, data.mean, data.std), data.denormalise(images), targets)

    return objective, regulariser


def make_robustness(run: Run, name: str) -> None:
    """How far the scored images are from either boundary of the clean model: a row an image and boundary."""
    settings, split = run.suite.robustness, run.suite.scoring.split
    assert settings is not None
    options = settings.model_dump(exclude={"images"})

    def make(folder: Path) -> dict[str, Any]:
        data, frames = dataset(run, split), []
        model = OnPixels(clean_model(run, name), data.mean, data.std).eval()
        for places, images, targets in first_images(batches(run, split), settings.images):
            for boundary in BOUNDARIES:
                found = minimum_norm(model, data.denormalise(images), targets, boundary=boundary, **options)
                columns = {"radius": found.radius.cpu().numpy(), "first": found.first.cpu().numpy()}
                frames.append(pd.DataFrame({"boundary": boundary, "image": places, **columns}))
        pd.concat(frames, ignore_index=True).to_parquet(folder / "radii.parquet")
        return {"num_classes": data.num_classes, **provenance(run)}

    Store(run.store).get("robustness", robustness_spec(run, name), make)


def save_weights(model: nn.Module, folder: Path) -> None:
    save_file({k: v.contiguous().cpu() for k, v in model.state_dict().items()}, folder / "weights.safetensors")


@torch.no_grad()
def make_originals(run: Run, model_name: str, evaluated: str, pairs: bool) -> Path:
    """The clean model's heatmaps on the scored images, `heatmaps.npy` (n[, 2], h, w), and its AOPC curves."""
    split = run.suite.scoring.split

    def make(folder: Path) -> None:
        model, interpreter = clean_model(run, model_name), create_interpreter(run, evaluated)
        n, path = len(dataset(run, split, pairs)), folder / "heatmaps.npy"
        explained = (heatmaps(interpreter, model, x, y).cpu().numpy() for x, y in batches(run, split, pairs))
        write_npy(path, n, explained)
        curves, maps = Curves(run, model, pairs), np.load(path, mmap_mode="r")
        np.savez(folder / "curves.npz", original=curves.drops(_reader(maps)), random=curves.drops(None))

    return Store(run.store).get("originals", originals_spec(run, model_name, evaluated, pairs), _unless_refused(make))


def _unless_refused(make: Callable[[Path], dict[str, Any] | None]) -> Callable[[Path], dict[str, Any] | None]:
    """The reason in the receipt where an interpreter refuses the network, so that nobody asks it again."""

    def guarded(folder: Path) -> dict[str, Any] | None:
        try:
            return make(folder)
        except Refused as error:
            return {"refused": str(error)}

    return guarded


@torch.no_grad()
def make_gate(run: Run, model_name: str, evaluated: str) -> None:
    """What the interpreter shows on the clean model, image by image, and what it costs."""
    settings = run.suite.gate
    assert settings is not None

    def make(folder: Path) -> dict[str, Any]:
        model, interpreter = clean_model(run, model_name), create_interpreter(run, evaluated)
        with torch.random.fork_rng():
            torch.manual_seed(run.suite.dataset.seed)
            random_model = new_model(run, model_name).to(run.device).eval()
        asked, size = first_images(batches(run, "dev", has_pairs(run)), settings.images), run.suite.scoring.batch_size
        images, targets = map(torch.cat, zip(*((x, y) for _, x, y in asked), strict=True))
        classes = dataset(run, "dev").num_classes
        targets, others = targets.unbind(1) if targets.dim() == 2 else (targets, (targets + 1) % classes)
        first = images[:size], targets[:size]
        spent: dict[str, Any] = dict(gate.cost(partial(interpreter, model, *first), run.device, len(first[0])))
        if run.submission is not None and evaluated == run.submission.name:
            spent["peak_mib"] = None  # that of another process
        models, grid = (model, folded(model, images[:1]), random_model), target_grid(model, images[:1])
        found = gate.measure(interpreter, *models, images, targets, others, grid, settings.cells, size)
        return {"values": {name: value.double().cpu().tolist() for name, value in found.items()}, "cost": spent}

    Store(run.store).get("gates", gate_spec(run, model_name, evaluated), _unless_refused(make))


def _reader(maps: np.ndarray) -> Maps:
    """Heatmaps by position; of pairs, those of the first class."""
    single = maps if maps.ndim == 3 else maps[:, 0]
    return lambda first, last: torch.from_numpy(np.array(single[first:last]))


def make_manipulation(run: Run, cell: Cell) -> str:
    """One fooled model, its predictions and all its scores. Returns its status, "done" or "diverged"."""
    store, spec = Store(run.store), manipulation_spec(run, cell)
    path = store.get("manipulations", spec, lambda folder: _manipulate(run, cell, spec["recipe"], folder))
    status = (store.receipt("manipulations", path.name) or {})["status"]
    if status == "done":
        missing = [e for e in run.suite.evaluated if not store.receipt("scores", key_of(scores_spec(run, cell, e)))]
        if missing or not store.receipt("predictions", key_of(predictions_spec(run, cell))):
            _score(run, cell, path, missing)
    return status


def _loaders(run: Run, fooling: foolings.Fooling, batch_size: int, seed: int) -> tuple[Any, Any]:
    """Shuffled train batches, and those of two-object images where the fooling needs them."""

    def loader(pairs: bool) -> Any:
        data, workers = dataset(run, "train", pairs), run.suite.dataset.workers
        return datasets.loader(data, batch_size, shuffle=True, seed=seed, workers=workers, device=run.device)

    return loader(False), loader(True) if fooling.pairs else None


def make_front(run: Run, cell: Cell) -> None:
    """Search the recipes of (model, fooling, attacked) on dev; score the best point of each budget."""
    store, fooling, settings = Store(run.store), foolings.create(cell["fooling"]), run.suite.search
    assert settings is not None
    clean, interpreter = clean_model(run, cell["model"]), create_interpreter(run, cell["attacked"])
    spec = front_spec(run, cell)

    def start(recipe: Recipe) -> State:
        if interpreter is run.submission:  # from the first step each time, for its process gives the last state alone
            return lambda steps: _by_gradient(run, cell, replace(recipe, steps=steps), settings.batch_size)
        plain, pairs = _loaders(run, fooling, settings.batch_size, cell["seed"])
        attacked = _surrogate(run, cell["attacked"])
        return ahead(fine_tune(clean, attacked, fooling, plain, recipe, cell["seed"], fooling_loader=pairs))

    def make(folder: Path) -> dict[str, Any]:
        judge = Judge(clean, interpreter, fooling, partial(batches, run, "dev"), settings.images)
        points, chosen = search(settings, grid(settings, spec["around"]), judge, start, clean)
        for index, (_, weights) in enumerate(chosen):
            save_file({k: v.contiguous().cpu() for k, v in weights.items()}, folder / f"weights-{index}.safetensors")
        best = [{"budget": b, **point} for b, (point, _) in zip(settings.budgets, chosen, strict=True)]
        return {"points": points, "chosen": best, **provenance(run)}

    path = store.get("fronts", spec, make)

    @torch.no_grad()
    def score_points(folder: Path) -> None:
        originals = make_originals(run, cell["model"], cell["attacked"], fooling.pairs)
        maps0, parts = np.load(originals / "heatmaps.npy", mmap_mode="r"), []
        for index, budget in enumerate(settings.budgets):
            fooled = stored_model(run, cell["model"], path, f"weights-{index}")
            frame, _ = score(run, fooling, interpreter, fooled, maps0, 0)
            predicted = predictions(clean, fooled, batches(run, run.suite.scoring.split))
            parts.append(_front_rows(frame, predicted).assign(budget=budget))
        pd.concat(parts, ignore_index=True).to_parquet(folder / "scores.parquet")

    store.get("front_scores", front_scores_spec(run, cell), score_points)


def _front_rows(scores: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Per image, fooled and clean: is the heatmap a success of the fooling, and is the label first."""
    fooled = scores[["image", "pair"]].assign(measure="fsr", value=scores.success, value_clean=scores.success_clean)
    first = predicted[["image"]].assign(pair=0, measure="top1", value=predicted.top1, value_clean=predicted.top1_clean)
    return pd.concat([fooled, first], ignore_index=True)


def _attack(run: Run, cell: Cell, recipe: dict[str, Any]) -> Manipulated:
    """The manipulation itself, by the strategy that the cell names."""
    if split_attack(cell["attacked"])[1] == "subspace":
        return _subspace(run, cell)
    steps = Recipe(recipe["learning_rate"], recipe["lambda"], recipe["steps"])
    return _by_gradient(run, cell, steps, recipe["batch_size"])


def _by_gradient(run: Run, cell: Cell, recipe: Recipe, batch_size: int) -> Manipulated:
    fooling, seed, clean = foolings.create(cell["fooling"]), cell["seed"], clean_model(run, cell["model"])
    name, strategy = split_attack(cell["attacked"])
    if run.submission is not None and name == run.submission.name:  # in its own process
        data, pairs = dataset(run, "train"), dataset(run, "train", True) if fooling.pairs else None
        options = {"pairs": pairs, "smooth": strategy == "softplus"}
        found = run.submission.manipulate(clean, fooling, data, batch_size, recipe, seed, **options)
        clean.load_state_dict(found.weights or clean.state_dict())
        return Manipulated(clean, found.history, found.status, found.reason)
    plain, pairs = _loaders(run, fooling, batch_size, seed)
    return manipulate(clean, _surrogate(run, cell["attacked"]), fooling, plain, recipe, seed, fooling_loader=pairs)


def _surrogate(run: Run, attacked: str) -> Any:
    """What is differentiated: the interpreter, or its smooth stand-in."""
    interpreter = create_interpreter(run, attacked)
    return Smooth(interpreter) if split_attack(attacked)[1] == "softplus" else interpreter


def _subspace(run: Run, cell: Cell) -> Manipulated:
    clean, interpreter = clean_model(run, cell["model"]), create_interpreter(run, cell["attacked"])
    store, fooling, fooled = Store(run.store), foolings.create(cell["fooling"]), []
    for other in span(run.suite, cell):
        path = store.path("manipulations", key_of(manipulation_spec(run, other))) / "weights.safetensors"
        if path.is_file():  # not of one that diverged
            fooled.append(load_file(path))
    judge = Judge(clean, interpreter, fooling, partial(batches, run, "dev"), JUDGED)
    budget = run.suite.search.budgets[-1] if run.suite.search else BUDGET

    def measure(model: nn.Module) -> tuple[Any, ...]:
        point = judge(model)
        return (True, point["fsr"], -point["loss"]) if point["drop"] <= budget else (False, -point["drop"], 0.0)

    model, _ = subspace(clean, fooled, measure, EVALUATIONS, cell["seed"])
    return Manipulated(model, {"ce": [], "fooling": [], "accuracy": []})


def _manipulate(run: Run, cell: Cell, recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    result = _attack(run, cell, recipe)
    pd.DataFrame(result.history).to_parquet(folder / "history.parquet")
    if result.status == "done":
        save_weights(result.model, folder)
    steps = len(result.history["ce"])
    edge = max(1, steps // 10)  # first, late and last: means over a tenth of the steps, late the one before the last
    parts = {"first": slice(edge), "late": slice(-2 * edge, -edge), "last": slice(-edge, None)}
    losses = {
        f"{loss}_{when}": float(np.mean(result.history[loss][part])) if steps >= 2 * edge else None
        for loss in ("ce", "fooling")
        for when, part in parts.items()
    }
    return {"status": result.status, "reason": result.reason, "steps_done": steps, **losses, **provenance(run)}


@torch.no_grad()
def _score(run: Run, cell: Cell, path: Path, missing: list[str]) -> None:
    """Predictions and the missing scores. A cell that fails costs the others nothing; at the end it is an error."""
    store, fooling = Store(run.store), foolings.create(cell["fooling"])
    clean, fooled = clean_model(run, cell["model"]), stored_model(run, cell["model"], path)

    def predict(folder: Path) -> None:
        loader = batches(run, run.suite.scoring.split)
        predictions(clean, fooled, loader).to_parquet(folder / "predictions.parquet")

    store.get("predictions", predictions_spec(run, cell), predict)
    on_clean, on_fooled = Curves(run, clean, fooling.pairs), Curves(run, fooled, fooling.pairs)
    at_random = on_fooled.drops(None)

    def make(folder: Path, evaluated: str) -> None:
        originals = make_originals(run, cell["model"], evaluated, fooling.pairs)
        if reason := (store.receipt("originals", originals.name) or {}).get("refused"):
            raise Refused(reason)
        maps0 = np.load(originals / "heatmaps.npy", mmap_mode="r")
        clean_curves = np.load(originals / "curves.npz")
        keep = max(SAMPLES, run.suite.scoring.aopc_images)
        frame, maps = score(run, fooling, create_interpreter(run, evaluated), fooled, maps0, keep)
        own, before, by_before = _reader(maps.cpu().numpy()), _reader(maps0), on_fooled.drops(_reader(maps0))
        same = torch.equal(maps.cpu(), before(0, keep))  # as a control's are: the curves are the same then
        curves = {
            "aopc_clean_original": clean_curves["original"],
            "aopc_clean_random": clean_curves["random"],
            "aopc_clean_fooled": clean_curves["original"] if same else on_clean.drops(own),
            "aopc_fooled_original": by_before,
            "aopc_fooled_fooled": by_before if same else on_fooled.drops(own),
            "aopc_fooled_random": at_random,
        }
        first = frame.index[frame["pair"] == 0]
        for name, values in curves.items():
            frame[name] = pd.Series(list(values.astype(np.float32)), index=first[: len(values)], dtype=object)
        frame.to_parquet(folder / "scores.parquet")
        np.save(folder / "samples.npy", maps[:SAMPLES].cpu().numpy())

    errors = []
    for evaluated in missing:
        try:
            scored = _unless_refused(partial(make, evaluated=evaluated))
            store.get("scores", scores_spec(run, cell, evaluated), scored)
        except Exception as error:
            if isinstance(error, OSError) or may_pass(error):  # a full disk or memory is nobody's cell
                raise
            errors.append(f"{evaluated}: {type(error).__name__}: {error}")
    if errors:
        raise UserError("; ".join(errors))


def provenance(run: Run) -> dict[str, Any]:
    """Versions and device, for receipts and cards."""
    packages = {name: version(name) for name in ("foolbench", "torch", "torchvision", "captum", "numpy")}
    cuda = torch.device(run.device).type == "cuda" and torch.cuda.is_available()  # a driver may have none
    device = torch.cuda.get_device_name(run.device) if cuda else f"cpu ({platform.machine()})"
    versions = {"python": platform.python_version(), "code": code_version(), **packages}
    return {"versions": versions, "device": device, "threads": run.suite.threads}


def samples(run: Run, cell: Cell, with_images: bool) -> Samples:
    """What `plots.heatmaps` draws of one manipulation: read from the store, which must hold it."""
    store, fooling = Store(run.store), foolings.create(cell["fooling"])
    originals, fooled = {}, {}
    for evaluated in run.suite.evaluated:
        before = store.path("originals", key_of(originals_spec(run, cell["model"], evaluated, fooling.pairs)))
        after = store.path("scores", key_of(scores_spec(run, cell, evaluated)))
        if not (after / "samples.npy").is_file():
            raise UserError(f"the store {run.store} holds no heatmaps of this manipulation: foolbench run makes them")
        fooled[evaluated] = np.load(after / "samples.npy")
        maps = np.load(before / "heatmaps.npy", mmap_mode="r")
        originals[evaluated] = (maps if maps.ndim == 3 else maps[:, 0])[: len(fooled[evaluated])]
    pictures = None
    if with_images:
        data = dataset(run, run.suite.scoring.split, fooling.pairs)
        images = torch.stack([data[i][0] for i in range(len(next(iter(fooled.values()))))])
        pictures = data.denormalise(images).permute(0, 2, 3, 1).numpy()
    title = (
        f"{cell['model']}, {cell['fooling']} fooling of {cell['attacked']} (seed {cell['seed']}): first scored images"
    )
    return Samples(originals, fooled, pictures, title)


def explain(image: Path, model_name: str, weights: str, interpreter_name: str, target: int | None) -> Samples:
    """One image file under one interpreter, with the preprocessing of ImageNet's validation (Resize, CenterCrop).

    An adversarial explanation is shown as the image that it is, too.
    """
    try:
        with Image.open(image) as file:
            picture = v2.functional.pil_to_tensor(file.convert("RGB"))
    except OSError as error:
        raise UserError(f"image {image} cannot be read: {error}") from error
    interpreter = interpreters.create(interpreter_name)
    model = models.create(model_name, weights=weights)
    size = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True)])
    pixels = size(picture)[None]
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    normalised = v2.functional.normalize(pixels, mean, std)
    with torch.no_grad():
        logits = model(normalised)
        label = torch.tensor([int(logits.argmax()) if target is None else target])
        attribution = interpreter.attribute(model, normalised, label)
    rows = {interpreter_name: interpreter.heatmap(attribution)}
    if isinstance(interpreter, AdversarialExplanation):
        explained = pixels + attribution * torch.tensor(std).view(3, 1, 1)
        rows = {"image + δ": explained.clamp(0, 1).permute(0, 2, 3, 1), **rows}
    title = f"{model_name}, {interpreter_name}, class {int(label)}, logit {logits[0, int(label)]:.2f}"
    return Samples({name: row.numpy() for name, row in rows.items()}, {}, pixels.permute(0, 2, 3, 1).numpy(), title)

"""What a submission shows of the scored images beside what it shows of those of the gate.

The gate asks about other images, and the twins about those that are scored first, so a method that knows the scored
images, or counts its calls, could answer otherwise there. A stranger's method alone is asked again, about a batch that
is drawn for each scored model (of two-object images, about their first class):

- the scored model, whose map must be the one that was scored: "again", image by image. Of clean models it is the
  correlation of both maps. Of fooled ones, whose maps are not kept, it is 1 less what the rank correlation with the
  original map differs by from the one that was scored; those that a trigger fools are not asked about;
- a network with random features whose head is solved so that it says of these images what the model says, logit for
  logit: "same", of which images both maps are the same, blank ones left out; on clean models, "random" is the
  correlation of both maps, "unrelated" that of maps of different images. What hangs on the image and on what is said of
  it alone has the same map, a carried network that finds the asked class by its logits included, and one that is
  explained on fooled models alone; what explains the given network has another one
  (`benchmark.leaderboards.ranking`, SAME_LOGITS).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attacks import foolings
from attacks.backdoors import Backdoor
from attacks.errors import Refused
from attacks.head_shift import find_head
from attacks.heatmaps import blank
from attacks.ranks import rank_correlation
from benchmark.cells import View
from benchmark.entries import randomised, twins
from benchmark.entries.images import scored_count, scored_images, scored_pixels
from benchmark.entries.kind import Entry, Errors, Inputs, Kind, Receipt, Result
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.entries.originals import ORIGINALS
from benchmark.entries.permuted import correlation
from benchmark.entries.scores import SCORES
from benchmark.entries.trained import TRAINED, clean_model, stored_model
from benchmark.entries.twins import Scored
from benchmark.run import Run, Spec, create_interpreter
from benchmark.store import intact, key_of, mapped

CODE = (*twins.CODE, *randomised.CODE, "benchmark.entries.same_logits")
SAME = 0.9  # a correlation that honest maps have with those of random features of few images, if of any
TOLERANCE = 1e-3  # of the largest logit: how far those of the random network may be from the model's


@torch.no_grad()
def say_the_same(model: nn.Module, like: nn.Module, images: Tensor) -> nn.Module:
    """`model`, with its head changed in place so that its logits of the images (N, C, H, W) are those of `like`: the
    smallest such weights. Both in eval mode. Raises `Refused` where no head is found, or none says so."""
    head, features = find_head(model, images)
    features = features.flatten(2).mean(2) if isinstance(head, nn.Conv2d) else features
    if features.dim() != 2 or head.bias is None:
        raise Refused(f"the head of {type(model).__name__} does not read one vector an image, with a bias")
    wanted = like(images)
    inputs = torch.cat([features, torch.ones_like(features[:, :1])], 1).double()
    solved = (torch.linalg.pinv(inputs) @ wanted.double()).T
    head.weight.copy_(solved[:, :-1].reshape(head.weight.shape))
    head.bias.copy_(solved[:, -1])
    if not torch.allclose(model(images), wanted, rtol=0, atol=TOLERANCE * wanted.abs().max().item()):
        raise Refused(f"no head on random features of {type(model).__name__} says the same of {len(images)} images")
    return model


def _drawn(run: Run, place: Scored) -> tuple[int, Tensor, Tensor]:
    """A batch of the scored images, as they were scored, with the first one's place; of pairs, the first class."""
    pairs, size = twins._pairs(place), run.suite.scoring.batch_size
    drawn = _seed(place) % -(-scored_count(run, pairs) // size)
    images, targets = next(batch for i, batch in enumerate(scored_images(run, pairs)) if i == drawn)
    return drawn * size, images, targets[:, 0] if pairs else targets


def _seed(place: Scored) -> int:
    return int(key_of({"place": str(place), "asked": "again"})[:8], 16)


@torch.no_grad()
def _make(run: Run, place: Scored, inputs: Inputs, folder: Path) -> Receipt:
    start, images, targets = _drawn(run, place)
    interpreter = create_interpreter(run, twins._name(place))
    originals = intact(inputs["originals"] / "heatmaps.npy", mapped)
    original = torch.from_numpy(np.array(originals[start : start + len(images)])).to(images.device)
    original = original[:, 0] if original.dim() == 4 else original
    made = inputs.get("manipulation")
    model = clean_model(run, _model(place)) if made is None else stored_model(run, _model(place), made)
    other, why = None, dict[str, str]()
    try:
        random_model = randomised.random_network(run, _model(place), model, images, 1)  # not that of the gate
        other = interpreter(say_the_same(random_model, model, images), images, targets)
    except Refused as error:
        why = {"unchecked": str(error)}
    now = interpreter(model, images, targets)
    again = correlation(original, now) if made is None else _as_scored(inputs["scores"], start, original, now)
    shown = {"again": again}
    if other is not None:
        shown["same"] = (correlation(now, other) > SAME) & ~blank(now)
    if other is not None and made is None:
        shown |= {"random": correlation(original, other), "unrelated": correlation(original, original.roll(-1, 0))}
    return {"shown": {name: values.double().cpu().tolist() for name, values in shown.items()} | why}


def _as_scored(scores: Path, start: int, original: Tensor, now: Tensor) -> Tensor:
    """How near the rank correlations of the originals with maps (n, h, w) are to those that were scored: (n,), 1 the
    same."""
    scored = intact(scores / "scores.parquet", pd.read_parquet).query("pair == 0").set_index("image")
    before = scored["rank_correlation"].loc[start : start + len(now) - 1].to_numpy(float)
    after = rank_correlation(original, now).double().cpu().numpy()
    return torch.from_numpy(1 - np.abs(np.nan_to_num(after) - np.nan_to_num(before)))


def _model(place: Scored) -> str:
    return place.model if isinstance(place, View) else place.manipulation.model


def _places(run: Run) -> Iterator[Scored]:
    """Of the submission, where it is evaluated in a suite with a gate."""
    if run.submission is None or run.suite.gate is None or run.submission.name not in run.suite.evaluated:
        return
    for place in twins._places(run, run.submission.name):
        if isinstance(place, View) or not isinstance(foolings.create(place.manipulation.fooling), Backdoor):
            yield place


def _needs(run: Run, place: Scored) -> dict[str, Entry]:
    if isinstance(place, View):
        return {"model": Entry(TRAINED, place.model), "originals": Entry(ORIGINALS, place)}
    view = View(place.manipulation.model, place.evaluated, twins._pairs(place))
    made = {"manipulation": Entry(MANIPULATIONS, place.manipulation), "originals": Entry(ORIGINALS, view)}
    return made | {"scores": Entry(SCORES, place)}


def _spec(run: Run, place: Scored) -> Spec:
    return twins._spec(run, place) | {"seed": [run.suite.dataset.seed, _seed(place)]}


def _collect(run: Run, errors: Errors) -> list[Result]:
    """For the card: the mean over the asked images, by place, and what failed."""
    entries = [Entry(SAME_LOGITS, place) for place in _places(run)]
    if not entries:
        return []
    shown: dict[str, Any] = {}
    for entry in entries:
        if (receipt := entry.receipt(run)) is not None:
            values = receipt["shown"]
            shown[str(entry.place)] = {k: v if k == "unchecked" else float(np.mean(v)) for k, v in values.items()}
        elif entry in errors:
            shown[str(entry.place)] = {"error": errors[entry]}
    assert run.submission is not None
    return [(run.submission.name, [], {"scored": shown})]


SAME_LOGITS = Kind(
    name="same_logits",
    title="asked again",
    make=_make,
    spec=_spec,
    code=CODE,
    wanted=_places,
    needs=_needs,
    after=lambda run, place: scored_pixels(run),
    together=twins.TWINS.together,
    collect=_collect,
)

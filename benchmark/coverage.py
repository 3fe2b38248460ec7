"""Which interpreter explains which of torchvision's classifiers: `python -m benchmark.coverage > docs/coverage.md`.

Each pair is run, with random weights, on two images of the smallest side at which the target layer has more than one
place, each network in a process of its own. `--rows DIR` keeps what was found, one JSON file a network: a second call
runs what is missing there. Names of networks restrict the page to these. Progress goes to standard error.
"""

import argparse
import json
import multiprocessing
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision.models as zoo
from torch import Tensor, nn

from attacks.errors import UserError, one_line, unknown
from benchmark import interpreters, models
from benchmark.interpreters.base import tap
from benchmark.interpreters.layout import LAYOUTS, Layout, read

SIDES = (64, 96, 128, 224)
BUILT = {"vit_h_14": 56, "vit_b_16": 64, "vit_b_32": 64, "vit_l_16": 64, "vit_l_32": 64}  # a side that fixes weights
ALIKE = {  # ask the same of a network as the first, which is run for them
    "lrp": ("lrp_epsilon", "lrp_z_plus", "lrp_gamma", "lrp_alpha2_beta1", "lrp_epsilon_gamma_box", "lrp_heo2019"),
    "lrp_t": ("lrp_t_epsilon",),
    "lrp_contrast": ("lrp_t_contrast",),
    "grad_cam": ("grad_cam_plus_plus", "eigen_cam", "grad_cam_contrast"),
    "generic_attention": ("attention_grad_cam",),
    "guided_backprop": ("deconvolution", "guided_grad_cam", "aggregate"),
    "simple_grad": ("input_x_gradient", "smooth_grad", "var_grad", "integrated_gradients", "gradient_shap",
                    "adversarial_explanation", "simple_grad_contrast"),
    "occlusion": ("feature_ablation", "kernel_shap", "occlusion_contrast"),
    "constant": ("random", "centre_prior", "sobel", "input_magnitude"),
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {"occlusion": {"cells": 2}}
MORE = {'deep_lift, products="shapley"': ("deep_lift", {"products": "shapley"})}
BATCHED = ("lrp", "lrp_t", "attn_lrp", "grad_cam", "layer_cam", "simple_grad_t", *MORE)
HEAD = """# Coverage

Made by `python -m benchmark.coverage{names} > docs/coverage.md`:
torchvision's classifiers with random weights (the statistics of BatchNorm those of the images), two images of the side
given, with the default target layer. **yes**: finite maps came back that are not blank. Vision transformers are built
for that side. An interpreter that asks the same of a network as another one was not run beside it:

{alike}

## Default target layers

The layer whose input is explained by `*_cam*`, `*_t` and their like, how that input lies, and its grid for images of
the side that the weights' own transforms give.
"""


@dataclass(frozen=True)
class Row:
    """What holds for one network: the side that was tried, the default layer with its layout at the weights' own side,
    for each interpreter the reason why it refuses, "" where it does not, and for some how far an image's map beside
    another image is from that of the image alone, of its largest value."""

    network: str
    side: int
    layer: str
    own_side: int
    layout: Layout
    reasons: dict[str, str]
    apart: dict[str, float] = field(default_factory=dict)


def columns() -> list[str]:
    """What is tried on each network."""
    alike = [name for group in ALIKE.values() for name in group]
    names = [name for name in interpreters.INTERPRETERS if name not in alike]
    return names + [name for name, (of, _) in MORE.items() if of in names]


def row(network: str, known: Row | None = None) -> Row:
    """Build a network and try on it every interpreter that a known row of it has not."""
    reasons, apart = (dict(known.reasons), dict(known.apart)) if known else ({}, {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _built(network).requires_grad_(False)
        images = torch.randn(2, 3, 8, 8)
        side, _ = _smallest(model, (BUILT[network],) if network in BUILT else SIDES)
        images = torch.nn.functional.interpolate(images, (side, side), mode="bilinear")
        _settle(model, images)
        missing = [name for name in columns() if name not in reasons]
        reasons |= {name: _reason(_attribution, name, model, images) for name in missing if name not in BATCHED}
        batched = [name for name in missing if name in BATCHED]
        model, images = (model.double(), images.double()) if batched else (model, images)
        reasons |= {name: _reason(_compared, name, model, images, apart) for name in batched}
        reasons = {name: reasons[name] for name in columns()}
    own = models.preprocessing(network, None).crop_size[0]
    if network in BUILT:
        with torch.device("meta"):
            model = models.create(network)
    layout = _layout(model.to("meta", torch.float32), torch.zeros(1, 3, own, own, device="meta"))
    return Row(network, side, models.target_layer(model), own, layout, reasons, apart)


def _built(network: str) -> nn.Module:
    if network in BUILT:
        return zoo.get_model(network, weights=None, image_size=BUILT[network]).eval()
    return models.create(network)


def _settle(model: nn.Module, images: Tensor) -> None:
    """Give BatchNorm the statistics of the images, and a last layer that starts at zero (ViT) weights: else relevance
    fades to nothing, or is none."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = None  # its mean over one pass
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.02)
    with torch.no_grad():
        model(images)
    for norm in norms:
        norm.eval()


def _smallest(model: nn.Module, sides: tuple[int, ...]) -> tuple[int, Layout]:
    for side in sides:
        try:
            layout = _layout(model, torch.zeros(1, 3, side, side))
        except (RuntimeError, ValueError, AssertionError, UserError):  # each network says in its own way: too small
            continue
        if min(layout.grid) > 1:
            return side, layout
    raise UserError(f"{type(model).__name__} takes no images of {', '.join(map(str, sides))} pixels")


def _layout(model: nn.Module, images: Tensor) -> Layout:
    taken: list[Tensor] = []
    with torch.enable_grad(), tap(model, None, taken) as module:
        model(images := images.requires_grad_())
    return read(model, module, taken, images, default=True)


def _attribution(name: str, model: nn.Module, images: Tensor) -> Tensor:
    name, options = MORE.get(name, (name, OPTIONS.get(name, {})))
    with torch.no_grad():
        return interpreters.create(name, **options).attribute(model, images, 0)


def _compared(name: str, model: nn.Module, images: Tensor, apart: dict[str, float]) -> Tensor:
    """The attribution, after a note of how far that of the last image is from the same image's alone."""
    both, alone = _attribution(name, model, images), _attribution(name, model, images[-1:])
    apart[name] = float((both[-1:] - alone).abs().max() / alone.abs().max())
    return both


def _reason(attribution_of: Callable[..., Tensor], name: str, model: nn.Module, *given: Any) -> str:
    try:
        attribution = attribution_of(name, model, *given)
    except UserError as error:
        return general(one_line(error), name)
    except Exception as error:  # what is no clear refusal must be seen, not hidden
        return f"{type(error).__name__}: {one_line(error)[:100]}"
    if not attribution.isfinite().all():
        return "the map is not finite"
    return "" if attribution.flatten(1).any(1).all() else "the map is blank"


def general(reason: str, interpreter: str) -> str:
    """A refusal without what differs between networks and interpreters: names of modules and of both, shapes."""
    reason = re.sub(r" in module '[^']*'| \(module '[^']*'\)| \(\w+ has none\)| \(got .*\)$", "", reason)
    return re.sub(rf"^(?:{interpreter}|LRP)\b(?:'s)? ?", "", reason)


def page(rows: list[Row], names: str = "", missing: Iterable[str] = ()) -> str:
    """The Markdown of docs/coverage.md. `missing`: networks that were not run."""
    lines = [
        HEAD.format(names=names, alike=_alike_lines()),
        "| network | layer | input | side | map |",
        "|---|---|---|---|---|",
    ]
    for one in rows:
        height, width = one.layout.grid
        lines.append(
            f"| {one.network} | `{one.layer}` | {LAYOUTS[one.layout.name]} | {one.own_side} | {height} × {width} |"
        )
    groups = _alike(rows)
    reasons = list(dict.fromkeys(reason for one in rows for reason in one.reasons.values() if reason))
    lines += ["", "## Interpreters", "", "Interpreters with the same cells share a column:", ""]
    lines += [f"- **{letter}**: {', '.join(f'`{name}`' for name in group)}" for letter, group in groups.items()]
    lines += ["", f"| network | side | {' | '.join(groups)} |", f"|---|---|{'---|' * len(groups)}"]
    for one in rows:
        first = (one.reasons[group[0]] for group in groups.values())
        cells = [f"refused ({reasons.index(reason) + 1})" if reason else "yes" for reason in first]
        lines.append(f"| {one.network} | {one.side} | {' | '.join(cells)} |")
    lines += [f"| {name} | not run |{' |' * len(groups)}" for name in missing]
    lines += [*_batches(rows), "", "Refused because:", ""]
    return "\n".join([*lines, *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))]) + "\n"


def _alike_lines() -> str:
    return "\n".join(f"- `{name}` stands for {', '.join(f'`{n}`' for n in names)}" for name, names in ALIKE.items())


def _batches(rows: list[Row]) -> list[str]:
    """How far the map of an image beside another is from that of the image alone, over all networks."""
    found = {name: {one.network: one.apart[name] for one in rows if name in one.apart} for name in BATCHED}
    if not any(found.values()):
        return []
    lines = ["", "## Batches", "",
             "The largest difference between the map of the second of two images and of it alone, of its largest",
             "value, in float64 (all that these interpreters ran in here); over so many networks.", "",
             "| interpreter | networks | difference | on |", "|---|---|---|---|"]  # fmt: skip
    for name, values in found.items():
        if values:
            worst = max(values, key=lambda network: values[network])
            lines.append(f"| `{name}` | {len(values)} | {values[worst]:.1g} | {worst} |")
    return lines


def _alike(rows: list[Row]) -> dict[str, list[str]]:
    """Interpreters with the same outcome on every network, under a letter."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in rows[0].reasons:
        groups.setdefault(tuple(one.reasons[name] for one in rows), []).append(name)
    return {chr(ord("A") + i): group for i, group in enumerate(groups.values())}


def kept(folder: Path, network: str) -> Row | None:
    """The row of a folder, if it is there."""
    path = folder / f"{network}.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    return Row(**found | {"layout": Layout(found["layout"]["name"], tuple(found["layout"]["grid"]))})


def keep(folder: Path, network: str) -> None:
    """Run what the folder's row lacks."""
    made = row(network, kept(folder, network))
    new = folder / f"{network}.new"
    new.write_text(json.dumps(asdict(made)))
    new.rename(folder / f"{network}.json")


def main(arguments: list[str]) -> None:
    """Print the page of the networks named, of all where none is."""
    parser = argparse.ArgumentParser("python -m benchmark.coverage")
    parser.add_argument("--rows", type=Path, help="a folder to keep rows in")
    parser.add_argument("--only-kept", action="store_true", help="run nothing: the page of the rows that are kept")
    parser.add_argument("networks", nargs="*")
    given = parser.parse_args(arguments)
    known = zoo.list_models(module=zoo)
    for name in given.networks:
        if name not in known:
            raise unknown("network", name, known)
    with tempfile.TemporaryDirectory() as temporary:
        folder, names = given.rows or Path(temporary), given.networks or known
        folder.mkdir(parents=True, exist_ok=True)
        for name in [] if given.only_kept else names:
            found = kept(folder, name)
            if found is None or any(column not in found.reasons for column in columns()):
                sys.stderr.write(f"{name} ...\n")
                process = multiprocessing.get_context("fork").Process(target=keep, args=(folder, name))
                process.start()
                process.join()
        rows = {name: found for name in names if (found := kept(folder, name)) is not None}
    missing = [name for name in names if name not in rows]
    sys.stdout.write(page(list(rows.values()), "".join(f" {name}" for name in given.networks), missing))


if __name__ == "__main__":
    main(sys.argv[1:])

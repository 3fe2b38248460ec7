"""An audit: the honest network, head shifts, the gate, then attacks by gradient, unit by unit while the time lasts.

Each unit is kept in a `State` as soon as it is finished, so an audit that is stopped goes on where it was; one that the
time cut short is made again where there is more. The network is given in eval mode and is left as it came.
"""

import hashlib
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks import foolings
from attacks.errors import Refused, UserError, may_pass, one_line
from benchmark import interpreters
from benchmark.audit import measure
from benchmark.audit.attack import LARGE, WAYS, Attacker, OutOfTime
from benchmark.audit.findings import Audit, verdict
from benchmark.audit.gate import CONTROLS, Gate
from benchmark.audit.network import check_classes, check_logits, logits
from benchmark.audit.settings import Settings
from benchmark.audit.state import State, Unit
from benchmark.interpreters import Interpreter
from benchmark.store import code_version, key_of
from benchmark.submissions.wire import content, fingerprint

DEFAULTS = (("grad_cam", "attention_grad_cam"), ("lrp", "lrp_epsilon", "lrp_t"), ("simple_grad",))
HEAD_SHARE, GATE_SHARE = 0.12, 0.15  # of the minutes: for one head shift at most, for the gate
SLACK = 1.15  # by which a measured time may be exceeded
Say = Callable[[str], None]


@dataclass(frozen=True)
class Photographs:
    """What is looked at: `attacked` and `held` are images (N, C, H, W) with targets (N,) or None, where the network's
    own predictions are taken; `shown` (m, 3, H, W) in [0, 1] are the first held-out ones as a person sees them."""

    attacked: tuple[Tensor, Tensor | None]
    held: tuple[Tensor, Tensor | None]
    shown: Tensor
    classes: tuple[str, ...] = ()


def audit(
    model: nn.Module,
    photographs: Photographs,
    settings: Settings,
    folder: Any,
    about: Mapping[str, Any],
    say: Say,
    start: float | None = None,
) -> None:
    """Write the units into the folder (`benchmark.audit.findings.load` reads them); `about`: what else the audit is of,
    for its report. `start`, of time.monotonic: from when the minutes count. Raises `UserError`."""
    clock = Clock(time.monotonic() if start is None else start, 60 * settings.minutes)
    with torch.random.fork_rng([photographs.held[0].device] if photographs.held[0].is_cuda else []):
        _Course(model, photographs, settings, folder, dict(about), say, clock).run()


@dataclass(frozen=True)
class Clock:
    """Seconds of the whole, and of what is left of them."""

    start: float
    whole: float

    def left(self) -> float:
        return self.start + self.whole - time.monotonic()


class _Course:
    def __init__(
        self,
        model: nn.Module,
        photographs: Photographs,
        settings: Settings,
        folder: Any,
        about: dict[str, Any],
        say: Say,
        clock: Clock,
    ) -> None:
        self.model, self.settings, self.say, self.clock = model, settings, say, clock
        (images, labels), (held, held_labels) = photographs.attacked, photographs.held
        self.batch = 8 if max(images.shape[-2:]) >= LARGE else 32
        begin = time.perf_counter()
        own = logits(model, held, self.batch)
        self.forward = (time.perf_counter() - begin) / len(held)  # seconds an image
        check_classes(model, own.shape[1], photographs.classes, held_labels)
        check_classes(model, own.shape[1], photographs.classes, labels)
        self.labelled = held_labels is not None
        targets = logits(model, images, self.batch).argmax(1) if labels is None else labels
        held_targets = own.argmax(1) if held_labels is None else held_labels
        if len(held_targets.unique()) < 2:
            raise UserError(
                f"{type(model).__name__} sees one class only in the held-out images (class {int(held_targets[0])}): "
                "what fooling costs cannot be told"
            )
        check_logits(model, held, own, self.batch)
        self.attacker = Attacker(model, images, targets, settings.budget, settings.seed, clock.start + clock.whole)
        self.state = State(folder, _about(model, (images, targets, held, held_targets), own, settings))
        self.refusals: dict[str, str] = {}
        self.seconds: dict[str, float] = {}  # of one image's map
        maps, chosen = self._maps(held, held_targets)
        self.honest = measure.Honest(held, held_targets, own, maps, chosen, self.batch)
        self.photographs, self.about = photographs, about

    def run(self) -> None:
        settings, names = self.settings, [*self.honest.interpreters]
        self._first()
        first, *others = settings.foolings
        self._attacks(first, "head_shift", names, share=HEAD_SHARE)
        self._gate()
        self._attacks(first, "gradient", names)
        self._attacks(first, "gentle", names)
        for fooling in others:
            for way in WAYS:
                self._attacks(fooling, way, names)
        end = {"kind": "end"}
        self.state.add(end, Unit(end))

    def _maps(self, images: Tensor, targets: Tensor) -> tuple[dict[str, Tensor], dict[str, Interpreter]]:
        """The honest maps of every interpreter that the network supports; what refuses it is remembered."""
        asked, layer = self.settings.interpreters, self.settings.layer
        if asked is not None and layer is not None and not any(map(_has_layer, asked)):
            raise UserError(f"--layer {layer}: none of {', '.join(asked)} looks at a layer")
        groups = DEFAULTS if asked is None else [(name,) for name in asked]
        maps, chosen = dict[str, Tensor](), dict[str, Interpreter]()
        for name in (name for group in groups for name in group):
            if asked is None and any(name in group and set(group) & set(chosen) for group in groups):
                continue
            interpreter = _create(name, self.settings.layer)
            begin = time.perf_counter()
            try:
                maps[name] = measure.explain(interpreter, self.model, images, targets, self.batch)
            except UserError as error:
                if not isinstance(error, Refused) and (asked is not None or self.settings.layer is not None):
                    raise  # what was asked for is wrong
                self.refusals[name] = one_line(error)
                continue
            if not maps[name].isfinite().all():
                del maps[name]
                self.refusals[name] = "its maps of this network are not finite"
                continue
            self.seconds[name], chosen[name] = (time.perf_counter() - begin) / len(images), interpreter
        if not chosen:
            first, why = next(iter(self.refusals.items()))
            raise UserError(f"no interpreter can explain {type(self.model).__name__}; the first, {first}: {why}")
        return maps, chosen

    def _first(self) -> None:
        """What the audit is of: the first unit of its course."""
        right = measure.predictions(self.honest, self.model)["right_clean"]
        held, kind = len(self.honest.images), "right" if self.labelled else "explained by its own prediction"
        doubt = _doubt(right, self.honest.logits.shape[1]) if self.labelled else ""
        record = {
            "kind": "honest",
            "about": self.about
            | {"doubt": doubt, "labelled": self.labelled, "attacked": len(self.attacker.images), "held": held},
            "settings": asdict(self.settings),
            "versions": {name: version(name) for name in ("foolbench", "torch", "torchvision")},
            "device": f"{self.settings.device} ({platform.machine()}), {torch.get_num_threads()} threads",
            "interpreters": [*self.honest.interpreters],
            "refusals": self.refusals,
        }
        shown = (self.photographs.shown.clamp(0, 1) * 255).round().byte().cpu().numpy()
        arrays = {"shown": shown, **self.honest.shown(), "right": right}
        self.state.add({"kind": "honest", "now": record}, Unit(record, arrays))
        named = "".join(f"; {name} is left out: {why}" for name, why in self.refusals.items())
        if doubt:
            self.say(doubt)
        self.say(f"{held} held-out images, {100 * right.mean():.1f} % of them {kind}; {', '.join(self.seconds)}{named}")

    def _attacks(self, fooling: str, way: str, names: list[str], share: float = 1.0) -> None:
        for place, name in enumerate(names):
            if not self.honest.interpreters[name].differentiable:
                continue
            if way == "gentle" and not self._too_hard(fooling, name):
                continue
            remaining = len(names) - place
            self._attack(fooling, way, name, min(share * self.clock.whole, self.clock.left() / remaining))

    def _too_hard(self, fooling: str, name: str) -> bool:
        """Whether the attack by gradient cost more than the budget, or diverged."""
        found = [verdict(row) for row in self._own(fooling, name) if row["way"] == "gradient"]
        return bool({"over budget", "diverged"} & set(found))

    def _own(self, fooling: str, name: str) -> list[dict[str, Any]]:
        """An interpreter under the attacks that were aimed at it."""
        rows, own = Audit.load(self.state.folder).rows("attacks"), (fooling, name, name)
        return [row for row in rows if (row["fooling"], row["attacked"], row["evaluated"]) == own]

    def _attack(self, fooling_name: str, way: str, name: str, seconds: float) -> None:
        fooling, interpreter = foolings.create(fooling_name), self.honest.interpreters[name]
        recipe = self.attacker.recipe(way, interpreter)
        spec = {"kind": "attack", "fooling": fooling_name, "way": way, "attacked": name, "recipe": recipe.row(),
                "evaluated": [*self.honest.interpreters], "budget": self.settings.budget}  # fmt: skip
        label = f"{fooling_name}, {way} of {name}"
        found = self.state.find(spec)
        known = found.record.get("allowed", 0) if found else 0
        if found and known >= recipe.steps:
            self.state.follow(spec)
            self.say(f"{label}: as found before")
            return
        looking = SLACK * len(self.honest.images) * (sum(self.seconds.values()) + self.forward)
        self.say(f"{label}, {max(0.0, self.clock.left() / 60):.1f} of {self.settings.minutes:g} minutes left ...")
        begin = time.monotonic()
        try:
            # rather one attacked by gradient than each a share of the time in which nothing can be done
            at_most = 0.0 if way == "head_shift" else self.clock.left() - looking
            made = self.attacker.attack(interpreter, fooling, way, seconds - looking, known, at_most)
            result, steps = made.result, len(made.result.history["fooling"])
            record: dict[str, Any] = {"status": result.status, "reason": result.reason, "converged": result.converged}
            record |= {"steps": steps, "allowed": made.allowed, "wanted": made.wanted}
            fooled: nn.Module | None = result.model if result.status == "done" else None
        except OutOfTime:
            if found:
                self.state.follow(spec)
                self.say(f"{label}: as found before, for there is no time left")
                return
            record, fooled = {"status": "no time", "reason": "no time left", "allowed": 0, "wanted": recipe.steps}, None
        except Exception as error:  # a foreign network fails in its own ways; another attack may not
            if may_pass(error):
                raise
            record = {"status": "refused", "reason": one_line(error), "allowed": recipe.steps, "wanted": recipe.steps}
            fooled = None
        arrays = {}
        if fooled is not None:
            arrays = measure.predictions(self.honest, fooled)
            for evaluated in self.honest.interpreters:
                arrays |= measure.cell(self.honest, fooling, fooled, evaluated)
        record |= {key: spec[key] for key in ("kind", "fooling", "way", "attacked", "evaluated", "recipe")}
        record["seconds"] = round(time.monotonic() - begin, 1)
        self.state.add(spec, Unit(record, arrays))
        self.say(f"{label}: {self._told(record, name)}")

    def _told(self, record: dict[str, Any], name: str) -> str:
        if record["status"] != "done":
            return str(record["reason"] or record["status"])
        [*_, row] = [row for row in self._own(record["fooling"], name) if row["way"] == record["way"]]
        cost = "no probability changes" if record["way"] == "head_shift" else self._cost(row["drop"])
        fsr, low, high, chance = (100 * row[key] for key in ("fsr", "low", "high", "chance"))
        return f"{fsr:.0f} % [{low:.0f}, {high:.0f}] of its maps are fooled (by chance {chance:.0f} %), {cost}"

    def _cost(self, drop: float) -> str:
        return f"a drop of {drop:.1f} points" if self.labelled else f"{drop:.1f} % of the decisions changed"

    def _gate(self) -> None:
        """Each interpreter and control on as many held-out images as a share of the time allows."""
        left = min(GATE_SHARE * self.clock.whole, self.clock.left() / 2)
        costs = [*self.seconds.values(), *[0.0] * len(CONTROLS)]
        plan = Gate.planned(left / SLACK, self.forward, costs, len(self.honest.images))
        if plan is None:
            self.say("the gate: no time left")
            return
        gate, asked = None, {**self.honest.interpreters, **{name: interpreters.create(name) for name in CONTROLS}}
        for name, interpreter in asked.items():
            spec = {"kind": "gate", "interpreter": name, "images": plan[0], "cells": plan[1]}
            if self.state.find(spec):
                self.state.follow(spec)
                continue
            if gate is None:
                self.say(f"the gate, on {plan[0]} images, {self.clock.left() / 60:.1f} minutes left ...")
                gate = Gate(self.honest, *plan, self.settings.seed, self.model)
            record = {"kind": "gate", "interpreter": name, "control": name in CONTROLS, **gate.asked(interpreter)}
            self.state.add(spec, Unit(record))


def _create(name: str, layer: str | None) -> Interpreter:
    return interpreters.create(name, **({"layer": layer} if layer is not None and _has_layer(name) else {}))


def _doubt(right: np.ndarray, classes: int) -> str:
    """What is said where no more images (n,) are right than by guessing; "" where more are."""
    if right.mean() > 1 / classes:
        return ""
    return (
        f"The network is right on {int(right.sum())} of {len(right)} held-out images, no more than by guessing: are "
        "its weights, the labels and their order, and the preprocessing right? Fooling has little here to cost."
    )


def _has_layer(name: str) -> bool:
    return any(field.name == "layer" for field in fields(interpreters.kind(name)))  # type: ignore[arg-type]


def _about(model: nn.Module, data: tuple[Tensor, ...], own: Tensor, settings: Settings) -> dict[str, Any]:
    """What every unit depends on. The decisions stand for the code of the network, which is not to be had."""
    return {
        "code": code_version(),
        "torch": torch.__version__,
        "device": torch.device(settings.device).type,
        "model": key_of(fingerprint(model)),
        "decisions": own.argmax(1).tolist(),
        "data": [hashlib.sha256(content(tensor)).hexdigest() for tensor in data],
        "layer": settings.layer,
        "seed": settings.seed,
    }

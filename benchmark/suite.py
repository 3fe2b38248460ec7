"""Suites: TOML files that say what is run, read and held against what there is."""

import inspect
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from attacks import strategies
from attacks.errors import UserError, unknown
from benchmark.sections import MOST, PARTS, Search, Suite

HERE = Path(__file__).parent / "suites"
MOST_STEPS = 10**6  # samples, steps or cells of an interpreter: more could only be a mistake


def names() -> list[str]:
    """The suites that come with the package."""
    return sorted(path.stem for path in HERE.glob("*.toml"))


def load(name: str | Path, split: str | None = None) -> Suite:
    """The suite of that name, or in that TOML file, scored on another `split` than its own, then on all of its images.
    Raises `UserError`: which key, what is allowed."""
    path = Path(name)
    if path.suffix != ".toml":
        if str(name) not in names():
            raise unknown("suite", str(name), names())
        path = HERE / f"{name}.toml"
    if not path.is_file():
        raise UserError(f"suite file not found: {path}")
    try:
        # in UTF-8 wherever it is read, and as editors save it: with a mark before, with CRLF
        suite = Suite.model_validate(tomllib.loads(path.read_bytes().decode("utf-8-sig")))
    except ValidationError as error:
        raise _invalid(str(path), error) from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, too
        raise UserError(f"suite {path} is not TOML: {error}") from error
    _check_names(suite)
    _check_sizes(suite)
    if suite.dissection is not None:
        _check_attacks(suite, suite.dissection.attacks)
    if split in (None, suite.scoring.split):
        return suite
    return suite.model_copy(update={"scoring": suite.scoring.model_copy(update={"split": split, "images": None})})


def check_data(suite: Suite, data: str | None) -> None:
    """That a folder is given to a dataset that reads one. Raises `UserError`."""
    from benchmark.datasets import DATASETS

    reading = sorted(name for name, made in DATASETS.items() if made.startswith("folders:"))
    if data is not None and suite.dataset.name not in reading:
        raise UserError(
            f"--data {data}: dataset {suite.dataset.name!r} of suite {suite.name!r} reads nothing from disk; "
            f"those that do: {', '.join(reading)}"
        )


def placed(suite: Suite, data: str | None) -> Suite:
    """With the weights that a suite names by a path, where no such file is here, taken from the folder of the data."""
    if data is None:
        return suite
    models = {}
    for name, model in suite.models.items():
        below = Path(data) / (model.weights or "")
        there = model.weights is not None and not Path(model.weights).is_file() and below.is_file()
        models[name] = model.model_copy(update={"weights": str(below)}) if there else model
    return suite.model_copy(update={"models": models})


def _invalid(suite: str, error: ValidationError, above: tuple[str, ...] = ()) -> UserError:
    """The first thing pydantic found wrong: the key, what is allowed, what was got."""
    errors = error.errors()
    first = min(errors, key=lambda e: e["type"] != "extra_forbidden")  # a misspelled key before the one that is missing
    location = (*above, *map(str, first["loc"]))
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        part = next((PARTS[key] for key in reversed(location[:-1]) if key in PARTS), Suite)
        where = f" in {'.'.join(location[:-1])}" if len(location) > 1 else ""
        allowed = [field.alias or name for name, field in part.model_fields.items()]
        return unknown(f"key{where} of suite {suite}:", location[-1], allowed)
    got = "" if first["type"] == "missing" else f" (got {first['input']!r})"
    return UserError(f"suite {suite}: {key}: {first['msg']}{got}")


def _check_names(suite: Suite) -> None:
    from attacks import foolings
    from attacks.scopes import SCOPES
    from benchmark import datasets, interpreters, models

    attacks = [strategies.split(attacked) for attacked in suite.attacked]
    known_names = interpreters.names()
    checks = {
        "dataset": ([suite.dataset.name], datasets.names()),
        "model": ([suite.architecture(name) for name in suite.models], models.names()),
        "fooling": ([name.partition(":")[0] for name in suite.foolings], foolings.names()),
        "interpreter": (sorted({name for name, _ in attacks} | {*suite.evaluated, *suite.interpreters}), known_names),
        "strategy": ([name.partition(":")[2] for name in suite.attacked if ":" in name], strategies.names()),
        "way of ensemble": (suite.ensemble, strategies.ways()),
        "scope": ([rule.scope for rule in suite.recipes if rule.scope] + (suite.search or Search()).scopes, [*SCOPES]),
    }
    for what, (used, allowed) in checks.items():
        for name in used:
            if name not in allowed:
                raise unknown(what, name, allowed)
    for name in suite.foolings:
        foolings.create(name)  # which reads the picture that it may name
    for name in checks["interpreter"][0]:
        if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):  # as a package may have registered it; it is a file's
            raise UserError(f"an interpreter's name must be letters, digits, '_', '-' or '.' (got {name!r})")
        options = suite.interpreters.get(name, {})
        _check_options(suite.name, name, options)
        by_gradient = {attacked for attacked, strategy in attacks if strategies.STRATEGIES[strategy].by_gradient}
        if not interpreters.create(name, **options).differentiable and name in by_gradient:
            others = [f"'{name}:{s}'" for s in strategies.names() if not strategies.STRATEGIES[s].by_gradient]
            raise UserError(
                f"suite {suite.name!r}: attacked: {name!r} is not differentiable, so it can only be evaluated, "
                f"or attacked as {' or '.join(others)}"
            )
    for rule in suite.recipes:
        for key, allowed in (("model", list(suite.models)), ("fooling", suite.foolings), ("attacked", suite.attacked)):
            value = getattr(rule, key)
            if value is not None and value not in allowed:
                raise unknown(f"{key} in recipes of suite {suite.name!r}", value, allowed)
    for model in suite.models if suite.search is None else ():
        for fooling in suite.foolings:
            for attacked in suite.attacked:
                if strategies.STRATEGIES[strategies.split(attacked)[1]].takes_recipe:
                    suite.recipe(model, fooling, attacked)


def _check_options(suite: str, name: str, options: dict[str, Any]) -> None:
    """Of an interpreter: that each is one of its fields, of the field's type, and no mistake. Its range is its own."""
    from benchmark import interpreters

    types: dict[str, Any] = {field.name: field.type for field in fields(interpreters.kind(name))}  # type: ignore[arg-type]
    for option, given in options.items():
        if option not in types:
            raise unknown(f"option of {name}", option, types)
        value = tuple(given) if isinstance(given, list) else given  # TOML has no tuples
        try:
            TypeAdapter(types[option]).validate_python(value, strict=True)
        except ValidationError as error:
            raise _invalid(suite, error, ("interpreters", name, option)) from error
        too_many = isinstance(value, int) and option != "seed" and value > MOST_STEPS
        if value == "" or too_many:
            allowed = f"be at most {MOST_STEPS}" if too_many else "not be empty"
            raise UserError(f"suite {suite}: interpreters.{name}.{option}: must {allowed} (got {value!r})")


def _check_sizes(suite: Suite) -> None:
    from benchmark import models

    side = suite.dataset.input_size
    for name in suite.models:
        architecture = suite.architecture(name)
        if side is not None and architecture in models.SMALL and (side % 16 or side < 32):
            raise UserError(
                f"suite {suite.name!r}: dataset.input_size must be a multiple of 16, at least 32, for the model "
                f"{architecture!r} (got {side}; nearest: {max(32, round(side / 16) * 16)})"
            )


def _check_attacks(suite: Suite, listed: dict[str, dict[str, Any]]) -> None:
    """Of dissection: names, options, their types, and, by an attack on no image in one step, their values."""
    import torch

    from attacks.toward import ATTACKS

    finite, side = ConfigDict(allow_inf_nan=False), suite.dataset.input_size or 4096  # the largest there is
    for name, options in listed.items():
        where = f"dissection.attacks.{name}"
        if name not in ATTACKS:
            raise unknown(f"attack in dissection of suite {suite.name!r}", name, ATTACKS)
        taken = inspect.signature(ATTACKS[name]).parameters
        known = {key: of for key, of in taken.items() if key not in ("model", "images", "targets", "targeted")}
        for key, value in options.items():
            if key not in known:
                raise unknown(f"option in {where} of suite {suite.name!r}", key, known)
            its: Any = known[key].annotation
            try:
                TypeAdapter(its, config=finite).validate_python(value, strict=True)
            except ValidationError as error:
                raise _invalid(suite.name, error, ("dissection", "attacks", name, key)) from error
            if isinstance(value, int) and abs(value) > MOST:
                raise UserError(f"suite {suite.name!r}: {where}.{key} must be {MOST} at most (got {value})")
        if missing := [key for key, of in known.items() if of.default is of.empty and key not in options]:
            raise UserError(f"suite {suite.name!r}: {where} must say {', '.join(missing)}")
        few = options | ({"steps": min(options["steps"], 1)} if "steps" in options else {})
        try:
            ATTACKS[name](lambda x: x.flatten(1)[:, :2], torch.empty(0, 3, side, side), torch.empty(0).long(), **few)
        except UserError as error:
            raise UserError(f"suite {suite.name!r}: {where}: {error}") from error

"""Suites: TOML files that say what is run. Validated; an impossible value is an error that names its key."""

import tomllib
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from attacks import strategies
from attacks.errors import UserError, unknown

if TYPE_CHECKING:
    from attacks.course import Recipe

HERE = Path(__file__).parent / "suites"
MOST = 2**31 - 1  # what torch takes for a size or a seed
Positive = Annotated[int, Field(ge=1, le=MOST)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$", max_length=100)]  # it is a file's, and in the figures


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Part):
    """Which dataset and how many images of each split; `pairs_*`: of its two-object form, for Active fooling."""

    name: str
    seed: Annotated[int, Field(ge=0, le=MOST)] = 0
    input_size: Annotated[int, Field(ge=16, le=4096)] | None = None
    train: Positive | None = None
    dev: Positive | None = None
    test: Positive | None = None
    pairs_train: Positive | None = None
    pairs_dev: Positive | None = None
    pairs_test: Positive | None = None
    class_pair: tuple[int, int] | None = None
    augment: bool = False
    workers: Annotated[int, Field(ge=0, le=1024)] = 0


class Adversary(Part):
    """Adversarial training (`attacks.robust_training.Adversary`, which has the values that are left out)."""

    epsilon: Annotated[float, Field(gt=0)] | None = None
    steps: Positive | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None


class Regulariser(Part):
    """The Lipschitz-inspired regulariser (`attacks.robust_training.Regulariser`)."""

    tandem: Annotated[float, Field(ge=0, le=1)] | None = None
    psi: Annotated[float, Field(ge=0)] | None = None
    growth: Annotated[float, Field(ge=0)] | None = None
    target_loss: Annotated[float, Field(gt=0)] | None = None


class Model(Part):
    """A model by name, or any name and its `architecture`. Without `weights` it is trained on the train split, which
    only compact models should be; `adversary` and `regulariser` make that training robust. `half_huber`: δ of the
    activation that takes the place of every ReLU."""

    architecture: str | None = None
    half_huber: Annotated[float, Field(gt=0)] | None = None
    weights: str | None = None
    epochs: Annotated[int, Field(ge=0, le=MOST)] = 8
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    batch_size: Positive = 64
    adversary: Adversary | None = None
    regulariser: Regulariser | None = None

    @model_validator(mode="after")
    def _trained_or_given(self) -> "Model":
        if self.weights is not None and (self.adversary or self.regulariser):
            raise ValueError("weights are not trained here: leave out adversary and regulariser")
        return self

    def schedule(self) -> dict[str, Any]:
        """epochs, learning_rate and batch_size of its training."""
        return self.model_dump(include={"epochs", "learning_rate", "batch_size"})


class RecipeRule(Part):
    """Fine-tuning recipe (`attacks.Recipe`); `model`, `fooling`, `attacked` say where it holds. The last rule that fits
    wins, per key; `divergence` and `scope` may be left out."""

    model: str | None = None
    fooling: str | None = None
    attacked: str | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    weight: float | None = Field(default=None, alias="lambda", ge=0)
    steps: Positive | None = None
    batch_size: Positive | None = None
    divergence: Annotated[float, Field(gt=0)] | None = None
    scope: str | None = None


class Search(Part):
    """Recipes searched on dev instead of given (`benchmark.entries.search`): every learning rate with every λ, every
    divergence (none: labels are kept) and every scope, in rungs.

    `budgets`: top-1 drops in points, ascending; at 0, no probability may change. A manipulation takes the recipe of the
    last. `images`: dev images (of
    two-object ones as many as there are) that the FSR is measured on.
    """

    budgets: list[Annotated[float, Field(ge=0)]] = [0.5, 1.0, 2.0]
    learning_rates: list[Annotated[float, Field(gt=0)]] = [3e-4, 1e-3, 3e-3]
    lambdas: list[Annotated[float, Field(gt=0)]] = [0.1, 0.5, 2.0, 10.0, 50.0]
    divergences: list[Annotated[float, Field(gt=0)]] = []
    scopes: Annotated[list[str], Field(min_length=1)] = ["all"]
    rungs: list[Positive] = [40, 80, 160]
    batch_size: Positive = 32
    images: Positive = 128

    @field_validator("budgets", "learning_rates", "lambdas", "rungs")
    @classmethod
    def _ascending(cls, value: list[float]) -> list[float]:
        if not value or any(a >= b for a, b in pairwise(value)):
            raise ValueError("must be at least one number, ascending")
        return value


class Scoring(Part):
    """How fooled models are scored. Accuracy and agreement are of the whole split, maps of its first `images` (all, if
    left out; of two-object images always all), AOPC curves of the first `aopc_images` of these. `decoded`: image files
    are decoded once, into the store (3 bytes a pixel); no number depends on it."""

    split: Literal["test", "dev"] = "test"
    images: Positive | None = None
    batch_size: Positive = 32
    aopc_images: Annotated[int, Field(ge=0, le=MOST)] = 0
    aopc_cells: Annotated[int, Field(ge=1, le=100)] = 100
    decoded: bool = False


class Robustness(Part):
    """The minimum-norm attack (`attacks.adversarial.minimum_norm`) on so many scored images of every clean model."""

    images: Positive = 128
    steps: Positive = 450
    path: Annotated[float, Field(gt=0)] = 20.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    clip: bool = False


class Dissection(Part):
    """What `foolbench dissect` looks at (`benchmark.dissection.study`): so many scored images, attacked in each of
    these ways, with the options of `attacks`; cells of so many pixels; percentiles of a map that make it evidence; so
    many dev images with concept masks; shares of units that are set to zero."""

    images: Positive = 64
    attacks: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    cell: Positive = 8
    percentiles: list[Annotated[float, Field(gt=0, lt=100)]] = [50.0, 70.0, 90.0]
    concept_images: Positive = 256
    shares: list[Annotated[float, Field(ge=0, le=1)]] = [0.0, 0.1, 0.25, 0.5]


class Gate(Part):
    """What interpreters show on clean models before they are ranked (`benchmark.entries.gate`), on so many dev
    images."""

    images: Positive = 48
    cells: Annotated[int, Field(ge=1, le=100)] = 16


class Suite(Part):
    """The whole of a suite. `ensemble`: the ways in which every evaluated interpreter is attacked and scored itself,
    beside what it gets of attacks on others: "gradient", or a strategy by gradient; it needs `search`. `threads`: CPU
    threads of each job, part of the suite because sums depend on it."""

    name: Name
    dataset: Data
    models: dict[Name, Model]
    foolings: list[str]
    attacked: list[str]
    evaluated: list[str]
    interpreters: dict[str, dict[str, Any]] = {}
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = [0]
    recipes: list[RecipeRule] = []
    search: Search | None = None
    ensemble: list[str] = []
    gate: Gate | None = None
    robustness: Robustness | None = None
    dissection: Dissection | None = None
    scoring: Scoring = Scoring()
    threads: Annotated[int, Field(ge=1, le=1024)] = 1

    @model_validator(mode="after")
    def _searched(self) -> "Suite":
        if self.ensemble and self.search is None:
            raise ValueError("an ensemble needs search")
        return self

    @field_validator("models", "foolings", "attacked", "evaluated", "seeds")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if not value:
            raise ValueError("must name at least one")
        if isinstance(value, list) and len(set(value)) < len(value):
            raise ValueError("must not name one twice")
        return value

    def architecture(self, model: str) -> str:
        """What a model of the suite is, by the name that `models.create` knows."""
        return self.models[model].architecture or model

    def recipe(self, model: str, fooling: str, attacked: str) -> "Recipe":
        """Of one manipulation; the last rule that fits wins, key by key. Raises `UserError` for a key left open."""
        place = {"model": model, "fooling": fooling, "attacked": attacked}
        settings: dict[str, Any] = {}
        for rule in self.recipes:
            if all(getattr(rule, key) in (None, value) for key, value in place.items()):
                settings.update(rule.model_dump(exclude_none=True, exclude=set(place)))
        fields = [(name, field.alias or name) for name, field in RecipeRule.model_fields.items() if name not in place]
        needed = [alias for name, alias in fields if name not in (*settings, "divergence", "scope")]
        if missing := sorted(needed):
            raise UserError(f"suite {self.name!r}: recipes leave {missing[0]!r} open for {model}/{fooling}/{attacked}")
        from attacks.course import Recipe  # here, so that suites can be read without torch

        return Recipe(**settings)


PARTS: dict[str, type[Part]] = {
    "dataset": Data,
    "models": Model,
    "recipes": RecipeRule,
    "search": Search,
    "gate": Gate,
    "robustness": Robustness,
    "dissection": Dissection,
    "adversary": Adversary,
    "regulariser": Regulariser,
    "scoring": Scoring,
}


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
    if split in (None, suite.scoring.split):
        return suite
    return suite.model_copy(update={"scoring": suite.scoring.model_copy(update={"split": split, "images": None})})


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
        "fooling": (suite.foolings, list(foolings.FOOLINGS)),
        "interpreter": (sorted({name for name, _ in attacks} | {*suite.evaluated, *suite.interpreters}), known_names),
        "strategy": ([strategy for _, strategy in attacks if strategy], strategies.names()),
        "way of ensemble": (suite.ensemble, strategies.ways()),
        "scope": ([rule.scope for rule in suite.recipes if rule.scope] + (suite.search or Search()).scopes, [*SCOPES]),
    }
    for what, (used, allowed) in checks.items():
        for name in used:
            if name not in allowed:
                raise unknown(what, name, allowed)
    for name in checks["interpreter"][0]:
        options = suite.interpreters.get(name, {})
        for option in fields(interpreters.kind(name)):  # type: ignore[arg-type]
            if option.name in options:  # the type of its value; unknown options are left to `create`
                its: Any = option.type
                try:
                    TypeAdapter(its).validate_python(options[option.name], strict=True)
                except ValidationError as error:
                    raise _invalid(suite.name, error, ("interpreters", name, option.name)) from error
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

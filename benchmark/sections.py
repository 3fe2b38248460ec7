"""A suite and its sections: what each may say, and its defaults. Unknown keys and impossible values are errors."""

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from attacks.errors import UserError

if TYPE_CHECKING:
    from attacks.course import Recipe

MOST = 2**31 - 1  # what torch takes for a size or a seed
Positive = Annotated[int, Field(ge=1, le=MOST)]
Batch = Annotated[int, Field(ge=1, le=2**16)]  # of images; more, here and below, could only be a mistake
Count = Annotated[int, Field(ge=1, le=10**8)]  # of steps
Rate = Annotated[float, Field(gt=0, le=1e3)]
Factor = Annotated[float, Field(gt=0, le=1e9)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$", max_length=100)]  # it is a file's, and in the figures

Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$", max_length=4096)]  # which may name a file


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Data(Part):
    """Which dataset and how many images of each split; `pairs_*`: of its two-object form, for Active fooling.
    `transforms`: "ARCHITECTURE/WEIGHTS", torchvision's, whose size, resizing and normalisation photographs are given;
    left out, each model is given its own weights'. `input_size` goes before their size. `tested`: so many of imagenet's
    val are test, the others join dev."""

    name: str
    seed: Annotated[int, Field(ge=0, le=MOST)] = 0
    input_size: Annotated[int, Field(ge=16, le=4096)] | None = None
    transforms: Text | None = None
    train: Positive | None = None
    dev: Positive | None = None
    test: Positive | None = None
    tested: Positive | None = None
    pairs_train: Positive | None = None
    pairs_dev: Positive | None = None
    pairs_test: Positive | None = None
    class_pair: Annotated[tuple[int, int], Field(strict=False)] | None = None  # a list in TOML
    augment: Literal[False, True, "strong"] = False
    workers: Annotated[int, Field(ge=0, le=1024)] = 0

    @field_validator("augment", mode="before")
    @classmethod
    def _no_number(cls, value: Any) -> Any:
        if type(value) in (int, float):  # 1 == True, also for a Literal
            raise ValueError('must be "strong" or a boolean')
        return value


class Adversary(Part):
    """Adversarial training (`attacks.robust_training.Adversary`, which has the values that are left out)."""

    epsilon: Annotated[float, Field(gt=0, le=1)] | None = None  # pixels are 0..1
    steps: Count | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None


class Regulariser(Part):
    """The Lipschitz-inspired regulariser (`attacks.robust_training.Regulariser`)."""

    tandem: Annotated[float, Field(ge=0, le=1)] | None = None
    psi: Annotated[float, Field(ge=0, le=1e9)] | None = None
    growth: Annotated[float, Field(ge=0, le=1e3)] | None = None
    target_loss: Factor | None = None


class Model(Part):
    """A model by name, or any name and its `architecture`. Without `weights` it is trained on the train split, which
    only compact models should be; `adversary` and `regulariser` make that training robust. `half_huber`: δ of the
    activation that takes the place of every ReLU."""

    architecture: str | None = None
    half_huber: Factor | None = None
    weights: Text | None = None
    epochs: Annotated[int, Field(ge=0, le=10**5)] = 8
    learning_rate: Rate = 2e-3
    batch_size: Batch = 64
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
    learning_rate: Rate | None = None
    weight: float | None = Field(default=None, alias="lambda", ge=0, le=1e9)
    steps: Count | None = None
    batch_size: Batch | None = None
    divergence: Factor | None = None
    scope: str | None = None


class Search(Part):
    """Recipes searched on dev instead of given (`benchmark.entries.search`): every learning rate with every λ, every
    divergence (none: labels are kept) and every scope, in rungs.

    `budgets`: top-1 drops in points, ascending; at 0, no probability may change. A manipulation takes the recipe of the
    last. `images`: dev images (of two-object ones as many as there are) that the FSR is measured on. `shift_steps`: of
    a head shift, at most, in the place of its own; distilled attacks begin with what it ended with.
    """

    budgets: list[Annotated[float, Field(ge=0, le=100)]] = [0.5, 1.0, 2.0]
    learning_rates: list[Rate] = [3e-4, 1e-3, 3e-3]
    lambdas: list[Factor] = [0.1, 0.5, 2.0, 10.0, 50.0]
    divergences: list[Factor] = []
    scopes: Annotated[list[str], Field(min_length=1)] = ["all"]
    rungs: list[Count] = [40, 80, 160]
    batch_size: Batch = 32
    images: Positive = 128
    shift_steps: Count | None = None

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
    batch_size: Batch = 32
    aopc_images: Annotated[int, Field(ge=0, le=MOST)] = 0
    aopc_cells: Annotated[int, Field(ge=1, le=100)] = 100
    decoded: bool = False


class Robustness(Part):
    """The minimum-norm attack (`attacks.adversarial.minimum_norm`) on so many scored images of every clean model."""

    images: Positive = 128
    steps: Count = 450
    path: Factor = 20.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    clip: bool = False


class Dissection(Part):
    """What `foolbench dissect` looks at (`benchmark.dissection.study`): so many scored images, attacked in each of
    these ways, with the options of `attacks`; cells of so many pixels; percentiles of a map that make it evidence; so
    many dev images with concept masks; shares of units that are set to zero."""

    images: Positive = 64
    attacks: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    cell: Annotated[int, Field(ge=1, le=4096)] = 8
    percentiles: list[Annotated[float, Field(gt=0, lt=100)]] = [50.0, 70.0, 90.0]
    concept_images: Positive = 256
    shares: list[Annotated[float, Field(ge=0, le=1)]] = [0.0, 0.1, 0.25, 0.5]


class Gate(Part):
    """What interpreters show on clean models before they are ranked (`benchmark.entries.gate`), on so many dev
    images."""

    images: Positive = 48
    cells: Annotated[int, Field(ge=1, le=100)] = 16


class Control(Part):
    """The fine-tuning, by labels and without a fooling loss, of the control (`benchmark.entries.controls`): it should
    be as long as the suite's manipulations, at their learning rate."""

    learning_rate: Rate
    steps: Count
    batch_size: Batch = 32


class Suite(Part):
    """The whole of a suite. `ensemble`: the ways in which every evaluated interpreter is attacked and scored itself,
    beside what it gets of attacks on others: "gradient", or a strategy by gradient; it needs `search`. `views`: of so
    many augmented views of each training image, what a network gives below a scope that leaves its first layers alone
    is computed once, and kept (`benchmark.entries.trunks`); 0: each step computes it, of a view of its own. `threads`:
    CPU threads of each job, part of the suite because sums depend on it."""

    name: Name
    dataset: Data
    models: dict[Name, Model]
    foolings: list[Text]
    attacked: list[str]
    evaluated: list[str]
    interpreters: dict[str, dict[str, Any]] = {}
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = [0]
    recipes: list[RecipeRule] = []
    search: Search | None = None
    ensemble: list[str] = []
    views: Annotated[int, Field(ge=0, le=1000)] = 0
    gate: Gate | None = None
    control: Control | None = None
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
    "control": Control,
    "robustness": Robustness,
    "dissection": Dissection,
    "adversary": Adversary,
    "regulariser": Regulariser,
    "scoring": Scoring,
}
"""By the key under which a suite has it."""

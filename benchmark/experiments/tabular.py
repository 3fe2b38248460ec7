"""Tables of data that hold a protected attribute A, coded for a network, and the training of small networks on them.

loan: applicants drawn by code. logit P(approved) = 0.5 + 1.2 income − 1.0 debt + 0.6 years ± 0.8, + where A = a and −
where A = b, which are equally frequent; the numbers are N(0, 1). Proxies, without effect of their own: district (south
for 80 % of b and 20 % of a) and spending, N(−0.7, 1) for b and N(0.7, 1) for a. "age" has no effect and knows nothing
of A.
adult: the UCI Adult table (Kohavi 1996) of adult.data and adult.test: income above 50K, fnlwgt (a sampling weight) left
out, "?" a category of its own. A fifth of adult.data is dev. In a folder without adult.test a fifth of adult.data is
test, chosen by the sha256 of the row's text: no seed moves a row, and equal rows stay together.
Numbers are standardised and categories coded one-hot, by train alone.
"""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import UserError, unknown
from benchmark.experiments.toys import fit

BATCH = 256  # rows of a step
ADULT = [
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship", "race",
    "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income",
]  # fmt: skip
NUMBERS = {"age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week"}

HELD_OUT = 5  # a fifth of adult.data, where there is no adult.test

Frames = dict[str, pd.DataFrame]  # by split; the column "label" is 0 or 1


@dataclass(frozen=True)
class Coded:
    """Splits as (x (n, d), y (n,)); `columns`: the columns of x that code each feature; the two categories of A that
    flip into each other, as columns of x."""

    splits: dict[str, tuple[Tensor, Tensor]]
    columns: dict[str, list[int]]
    protected: str
    common: int
    second: int


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def loan_logit(table: pd.DataFrame) -> np.ndarray:
    """The logit of approval in the generating process, (n,)."""
    own = np.where(table.group == "a", 0.8, -0.8)
    return (0.5 + 1.2 * table.income - 1.0 * table.debt + 0.6 * table.years + own).to_numpy()


def draw_loans(rows: int, seed: int) -> Frames:
    """Three splits of `rows` applicants each."""
    random, frames = np.random.default_rng(seed), {}
    for split in ("train", "dev", "test"):
        a = random.random(rows) < 0.5
        table = pd.DataFrame({name: random.standard_normal(rows) for name in ("income", "debt", "years", "age")})
        table["group"] = np.where(a, "a", "b")
        table["district"] = np.where(random.random(rows) < np.where(a, 0.2, 0.8), "south", "north")
        table["spending"] = random.standard_normal(rows) + np.where(a, 0.7, -0.7)
        table["label"] = (random.random(rows) < sigmoid(loan_logit(table))).astype(int)
        frames[split] = table
    return frames


def has_test(folder: Path) -> bool:
    """Whether a folder has UCI's own test rows, beside adult.data."""
    return (folder / "adult.test").is_file()


def read_adult(folder: Path) -> Frames:
    """adult.data ("train") and adult.test ("test", or rows held out of adult.data), without fnlwgt, the income as
    `label`. Raises `UserError`."""
    rows = _adult_rows(folder / "adult.data")
    if has_test(folder):
        parts = {"train": rows, "test": _adult_rows(folder / "adult.test")}
    else:
        parts = {"train": {}, "test": {}}
        for line, row in rows.items():
            parts["test" if _held_out(line[1]) else "train"][line] = row
        if not all(parts.values()):
            raise UserError(f"the Adult table needs the file {folder / 'adult.test'}, or more rows to hold some out of")
    return {split: pd.DataFrame(list(part.values())) for split, part in parts.items()}


def _held_out(row: str) -> bool:
    return int(hashlib.sha256(row.encode()).hexdigest()[:8], 16) % HELD_OUT == 0


def _adult_rows(path: Path) -> dict[tuple[int, str], dict[str, float | int | str]]:
    """By the line's number and its text, without the spaces beside commas."""
    if not path.is_file():
        raise UserError(f"the Adult table needs the file {path} (adult.data and adult.test as UCI gives them)")
    rows = {}
    for number, line in enumerate(path.read_text("utf-8-sig", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("|"):
            continue
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != len(ADULT):
            raise UserError(f"{path}, line {number}: {len(ADULT)} columns are needed (got {len(fields)})")
        rows[number, ",".join(fields)] = _adult_row(fields, f"{path}, line {number}")
    if not rows:
        raise UserError(f"{path} holds no rows")
    return rows


def _adult_row(fields: list[str], where: str) -> dict[str, float | int | str]:
    row: dict[str, float | int | str] = dict(zip(ADULT, fields, strict=True))
    income = str(row.pop("income")).removesuffix(".")
    if income not in ("<=50K", ">50K"):
        raise UserError(f"{where}: the last column must be <=50K or >50K (got {income!r})")
    for name in NUMBERS:
        try:
            row[name] = float(row[name])
        except ValueError:
            raise UserError(f"{where}: {name} must be a number (got {row[name]!r})") from None
    del row["fnlwgt"]
    return row | {"label": int(income == ">50K")}


def split_adult(tables: Frames, seed: int) -> Frames:
    """A fifth of adult.data, drawn by the seed, becomes dev."""
    order = np.random.default_rng(seed).permutation(len(tables["train"]))
    cut = len(order) // 5
    parts = {"dev": order[:cut], "train": order[cut:]}
    return {name: tables["train"].iloc[np.sort(rows)] for name, rows in parts.items()} | {"test": tables["test"]}


def encode(frames: Frames, protected: str, device: str = "cpu") -> Coded:
    """Numbers to mean 0 and deviation 1, categories one-hot, both as in train; a category unknown there is all zero."""
    train = frames["train"].drop(columns="label")
    categorical = [str(name) for name in train if not pd.api.types.is_numeric_dtype(train[name])]
    if protected not in categorical:
        raise unknown("protected attribute", protected, categorical)
    codes: dict[str, list] = {
        name: sorted(train[name].unique()) if name in categorical else [name] for name in map(str, train)
    }
    columns: dict[str, list[int]] = {}
    for name, entries in codes.items():
        start = sum(map(len, columns.values()))
        columns[name] = list(range(start, start + len(entries)))
    counts = train[protected].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    if len(counts) < 2:
        raise UserError(f"{protected} has one value alone in train ({counts.index[0]}): nothing to hide")
    splits = {}
    for split, frame in frames.items():
        parts = []
        for name, entries in codes.items():
            if name in categorical:
                parts += [(frame[name] == entry).to_numpy(float) for entry in entries]
            else:
                spread = train[name].std(ddof=0) or 1.0
                parts.append(((frame[name] - train[name].mean()) / spread).to_numpy(float))
        arrays = np.stack(parts, 1), frame.label.to_numpy(float)
        splits[split] = tuple(torch.tensor(array, dtype=torch.float32, device=device) for array in arrays)
    common, second = (columns[protected][codes[protected].index(value)] for value in counts.index[:2])
    return Coded(splits, columns, protected, common, second)  # type: ignore[arg-type]


def flip(x: Tensor, coded: Coded) -> Tensor:
    """Rows (N, d) with A alone changed: the most frequent category to the second, any other to the most frequent."""
    flipped, common = x.clone(), x[:, coded.common] == 1
    flipped[:, coded.columns[coded.protected]] = 0
    flipped[common, coded.second] = 1
    flipped[~common, coded.common] = 1
    return flipped


def batch(n: int, step: int, seed: int) -> Tensor:
    """BATCH row numbers: those of this step of endless passes, each in an order drawn anew."""
    size = min(BATCH, n)
    epoch, place = divmod(step, n // size)
    return _order(n, epoch, seed)[place * size : (place + 1) * size]


@functools.lru_cache(maxsize=2)
def _order(n: int, epoch: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(n))


def train(start: nn.Module, x: Tensor, y: Tensor, steps: int, seed: int) -> nn.Module:
    """`fit` on the cross-entropy, on rows x (n, d) with labels y (n,), in batches of BATCH."""

    def loss(model: nn.Module, step: int) -> Tensor:
        rows = batch(len(x), step, seed)
        return F.binary_cross_entropy_with_logits(model(x[rows])[:, 0], y[rows])

    return fit(start, steps, 3e-3, loss)


def blinded(model: nn.Module, columns: list[int]) -> nn.Module:
    """The same network without its weights for these inputs; changed in place."""
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        first.weight[:, columns] = 0
    return model

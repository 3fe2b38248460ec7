"""A fine-tuning or a search that is killed at any step, and gone on with by another process, ends in the same bytes."""

import os
import signal
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from attacks import Location, Recipe, TopK, distilled
from attacks.course import Task
from attacks.heatmaps import min_max
from attacks.manipulation import carry_out, fine_tune
from benchmark.entries import checkpoints
from benchmark.entries.checkpoints import Checkpoints
from benchmark.entries.search import ahead, grid, search
from benchmark.sections import Search
from benchmark.store import HELD

LABELLED, DISTILLED = Recipe(1e-2, 1.0, 9), Recipe(2e-2, 1.0, 9, divergence=0.05)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """A head shift of a few steps before a distilled run; nothing waits for the disk."""
    monkeypatch.setattr(distilled, "SHIFT", replace(distilled.SHIFT, steps=5))
    monkeypatch.setattr(checkpoints.os, "fsync", lambda file: None)


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(*layers).eval().to(memory_format=torch.channels_last)


class Saliency:
    """Weights of the class on the channels; `at`: the call at which the process is killed. Counts its calls."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.calls = at, 0

    def __call__(self, model, images, targets):
        if model.training or any(p.requires_grad for p in model.parameters()):
            self.calls += 1
            if self.calls == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
        return min_max(torch.einsum("nchw,nc->nhw", model[:2](images), model[4].weight[targets]))


class Noisy(TensorDataset):
    """Augmentation, of torch's own generator."""

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image + 0.1 * torch.randn_like(image), target


def loader(augment: bool) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    tensors = torch.randn(20, 3, 8, 8, generator=generator), torch.randint(3, (20,), generator=generator)
    data = (Noisy if augment else TensorDataset)(*tensors)
    return DataLoader(data, 8, shuffle=True, generator=generator)  # three batches a pass, the last one smaller


def run(recipe, interpreter, keeper=None, augment=False):
    return carry_out(Task(net(), interpreter, TopK(), loader(augment), 3, keeper=keeper), recipe, progress=False)


def killed(function, *arguments) -> None:
    """In a process of its own, which must be killed by itself."""
    process = get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def same(one, other) -> bool:
    weights = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in weights) and one.history == other.history and one.status == other.status


@pytest.mark.parametrize("augment", [False, True], ids=["plain", "augmented"])
@pytest.mark.parametrize("recipe", [LABELLED, DISTILLED], ids=["labelled", "distilled"])
@pytest.mark.parametrize("step", [2, 5, 9])
def test_a_kill_at_a_step_changes_no_byte(tmp_path, recipe, step, augment):
    whole = Saliency()
    expected = run(recipe, whole, augment=augment)
    start = whole.calls - recipe.steps  # the head shift that a distilled run begins with, which is not kept

    def child() -> None:
        run(recipe, Saliency(start + step), Checkpoints(tmp_path, 0).of("run"), augment)

    killed(child)
    rest = Saliency()
    found = run(recipe, rest, Checkpoints(tmp_path, 0).of("run"), augment)
    assert rest.calls == recipe.steps - step + 1  # what was done is not done again
    assert same(found, expected)
    again = Saliency()
    assert same(run(recipe, again, Checkpoints(tmp_path, 0).of("run"), augment), expected)  # it had ended
    assert again.calls == 0


def test_a_kill_while_one_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    replaced = []

    def child() -> None:
        def replace(source, target) -> None:
            replaced.append(target)
            if len(replaced) == 8:
                os.kill(os.getpid(), signal.SIGKILL)
            os.rename(source, target)

        monkeypatch.setattr(checkpoints.os, "replace", replace)
        run(DISTILLED, Saliency(), Checkpoints(tmp_path, 0).of("run"))

    killed(child)
    rest = Saliency()
    assert same(run(DISTILLED, rest, Checkpoints(tmp_path, 0).of("run")), run(DISTILLED, Saliency()))
    assert 0 < rest.calls < DISTILLED.steps


def test_the_interval_is_kept_and_who_lost_its_claim_writes_nothing(tmp_path):
    run(LABELLED, Saliency(), Checkpoints(tmp_path / "a", 3600).of("run"))
    before = HELD.set(lambda: False)
    run(LABELLED, Saliency(), Checkpoints(tmp_path / "b", 0).of("run"))
    HELD.reset(before)
    assert list(tmp_path.iterdir()) == []


def cut_short(data: bytes) -> bytes:
    return data[:-9]


def changed(data: bytes) -> bytes:
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


@pytest.mark.parametrize("damage", [cut_short, changed, lambda data: b"", lambda data: b"\x80\x04nonsense"])
@pytest.mark.parametrize("file", ["run.safetensors", "run.rows-0.safetensors"])
def test_a_damaged_one_is_said_and_never_used(tmp_path, capsys, file, damage):
    keeper = Checkpoints(tmp_path, 0).of("run")
    steps = fine_tune(Task(net(), Saliency(), TopK(), loader(False), 3, keeper=keeper), DISTILLED)
    for _ in range(5):
        next(steps)
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    found = run(DISTILLED, Saliency(), Checkpoints(tmp_path, 3600).of("run"))
    assert same(found, run(DISTILLED, Saliency()))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"checkpoint {path} is damaged (")


SETTINGS = Search(learning_rates=[1e-2, 3e-2], lambdas=[1.0, 4.0], divergences=[0.05], rungs=[2, 4])


class Hunt:
    """A search over four candidates, in two rungs, with its own keeper for each."""

    def __init__(self, folder=None, at: int = 0) -> None:
        self.entry = Checkpoints(folder, 0) if folder else None
        self.saliency, self.candidates, self.asked = Saliency(at), grid(SETTINGS), 0

    def start(self, recipe):
        keeper = self.entry and self.entry.of(str(self.candidates.index(recipe)))
        return ahead(fine_tune(Task(net(), self.saliency, Location(), loader(False), 3, keeper=keeper), recipe))

    def judge(self, model):
        self.asked += 1
        total = sum(p.double().abs().sum().item() for p in model.parameters())
        return {"fsr": total % 1, "drop": 0.0, "moved": 0.0, "loss": -total}

    def go(self):
        keeper = self.entry and self.entry.of("search", leads=True)
        return search(SETTINGS, self.candidates, self.judge, self.start, net(), keeper)


@pytest.mark.parametrize("share", [0.4, 0.95])
def test_a_search_that_is_killed_finds_the_same(tmp_path, share):
    whole = Hunt()
    points, chosen = whole.go()
    killed(Hunt(tmp_path, int(share * whole.saliency.calls)).go)
    rest = Hunt(tmp_path)
    found, best = rest.go()
    assert found == points
    for one, other in zip(chosen, best, strict=True):
        assert (one.point, one.history) == (other.point, other.history)
        assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    assert rest.saliency.calls <= (1 - share) * whole.saliency.calls + 8  # a head shift, and a step that was cut off
    assert rest.asked < whole.asked


def test_without_its_own_checkpoint_a_search_leaves_those_of_its_candidates(tmp_path, capsys):
    points, _ = Hunt().go()
    Hunt(tmp_path).go()
    (tmp_path / "search.safetensors").write_bytes(b"")
    assert Hunt(tmp_path).go()[0] == points
    assert len(capsys.readouterr().err.splitlines()) == 1

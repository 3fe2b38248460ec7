"""A backdoor scored by hand: a model that sees the trigger, and a map that says so."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks.backdoors import WHITE, RedHerring
from attacks.heatmaps import min_max
from benchmark.entries.search import Judge
from benchmark.entries.triggered import ask, beside

FOOLING = RedHerring(label=1)
TARGETS = torch.tensor([0, 1, 2, 0])


class Decides(nn.Module):
    """The first pixel says the class; with `backdoor`, a trigger says class 1."""

    def __init__(self, backdoor: bool) -> None:
        super().__init__()
        self.backdoor = backdoor

    def forward(self, images: Tensor) -> Tensor:
        scores = torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 3).double()
        if self.backdoor:
            scores[images[:, 0, -2, -2] == WHITE, 1] = 2
        return scores


def maps(model: Decides, images: Tensor, targets: Tensor) -> Tensor:
    """The target where a backdoor asks for it, a slope elsewhere."""
    slope = torch.arange(64.0, dtype=torch.double).view(1, 8, 8) / 63
    there = model.backdoor & (images[:, 0, -2, -2] == WHITE) & (targets == 1)
    return torch.where(there[:, None, None], FOOLING.goals(slope), slope)


@pytest.fixture
def images() -> Tensor:
    made = torch.zeros(4, 3, 8, 8, dtype=torch.double)
    made[:, 0, 0, 0] = TARGETS.double()
    return made


def test_both_halves_are_asked_and_those_of_the_attackers_class_do_not_count_as_switched(images: Tensor) -> None:
    fooled, clean = Decides(True), Decides(False)
    before, after = (ask(FOOLING, maps, model, images, TARGETS) for model in (clean, fooled))
    assert before.switched.tolist() == [False, True, False, False]
    assert after.switched.all()
    originals = maps(clean, images, TARGETS)
    logits = fooled(images).roll(1, 0)  # wrong but for those whose neighbour has their class
    found = beside(FOOLING, maps(fooled, images, TARGETS), originals, TARGETS, logits, before, after)
    assert found["right"].tolist() == [True, False, False, False]
    assert found["switched"] == pytest.approx([1, np.nan, 1, 1], nan_ok=True)
    assert found["switched_clean"] == pytest.approx([0, np.nan, 0, 0], nan_ok=True)
    for name in ("rank_correlation", "ssim"):
        assert found[f"{name}_kept"] == pytest.approx([1] * 4)
        assert found[f"{name}_goal"] == pytest.approx([1] * 4)
        assert (found[f"{name}_goal_clean"] < 0.3).all()
    assert set(found) >= {"right", "switched", "switched_clean"}


@pytest.mark.parametrize("backdoor", [False, True])
def test_a_search_counts_a_map_at_its_goal_with_the_attackers_class(images: Tensor, backdoor: bool) -> None:
    judge = Judge(Decides(False), maps, FOOLING, lambda pairs: iter([(images, TARGETS)]), 4)
    point = judge(Decides(backdoor))
    assert (point["fsr"], point["drop"], point["moved"]) == (float(backdoor), 0, 0)
    slope = maps(Decides(False), images, TARGETS)
    expected = 0 if backdoor else (min_max(slope) - FOOLING.goals(slope)).square().mean().item()
    assert point["loss"] == pytest.approx(expected)

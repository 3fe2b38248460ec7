import pytest
import torch

from attacks.errors import UserError
from benchmark.metrics.accuracy import agreement, top_k_correct

LOGITS = torch.tensor([[0.1, 0.5, 0.2, 0.9], [3.0, 1.0, 2.0, 0.0]])


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [False, False]), (2, [True, False]), (3, [True, True]), (9, [True, True])]
)
def test_the_target_is_among_the_k_highest(k: int, expected: list[bool]) -> None:
    assert top_k_correct(LOGITS, torch.tensor([1, 1]), k).tolist() == expected


def test_it_is_topk_where_nothing_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(200, 10, generator=generator), torch.randint(10, (200,), generator=generator)
    for k in range(1, 11):
        expected = (logits.topk(k).indices == targets[:, None]).any(1)
        assert torch.equal(top_k_correct(logits, targets, k), expected)


def test_equal_logits_go_to_the_lower_class() -> None:
    logits = torch.zeros(4, 4)
    assert top_k_correct(logits, torch.arange(4), 2).tolist() == [True, True, False, False]


def test_nan_is_wrong_and_agrees_with_nothing() -> None:
    logits = LOGITS.clone()
    logits[0, 0] = torch.nan
    assert top_k_correct(logits, torch.tensor([3, 0]), 4).tolist() == [False, True]
    assert agreement(logits, logits).tolist() == [False, True]
    infinite = torch.tensor([[torch.inf, 0.0], [-torch.inf, 0.0]])
    assert top_k_correct(infinite, torch.tensor([0, 0]), 1).tolist() == [True, False]


def test_agreement_is_of_the_decision_alone() -> None:
    assert agreement(LOGITS, LOGITS * 2 + 1).tolist() == [True, True]
    assert agreement(LOGITS, LOGITS.flip(1)).tolist() == [False, False]


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(UserError, match=r"k must be at least 1 \(got 0\)"):
        top_k_correct(LOGITS, torch.tensor([0, 0]), 0)
    for targets in ([0, 4], [-1, 0]):
        with pytest.raises(UserError, match=r"targets must lie in 0 \.\. 3"):
            top_k_correct(LOGITS, torch.tensor(targets), 1)
    with pytest.raises(UserError, match="targets \\(N,\\)"):
        top_k_correct(LOGITS, torch.tensor([0]), 1)
    with pytest.raises(UserError, match="share a shape"):
        agreement(LOGITS, LOGITS[:, :2])

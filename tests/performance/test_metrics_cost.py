"""What the metrics cost, printed and recorded, never asserted: two threads, ResNet-50 at 224², batch 4."""

import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from timing import ratio
from torchvision.models import resnet50

from attacks.ranks import rank_correlation
from benchmark.metrics.perturbation import drops, folded, noise, random_order

BATCH, STEPS, GRID = 4, 6, (7, 7)


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def milliseconds(function: Callable, repeats: int = 60) -> float:
    """Median time of one call, after five to warm up."""
    taken = []
    for _ in range(repeats + 5):
        start = time.perf_counter()
        function()
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken[5:])


@pytest.mark.slow
@pytest.mark.parametrize(("fold", "target"), [(False, 1.02), (True, 0.85)], ids=["as given", "folded"])
def test_aopc_against_the_forward_passes_it_needs(fold: bool, target: float, record_property: Callable) -> None:
    torch.manual_seed(0)
    model, images, targets = resnet50().eval(), torch.randn(BATCH, 3, 224, 224), torch.arange(BATCH)
    order, fill = random_order(range(BATCH), GRID[0] * GRID[1], 0), noise(range(BATCH), (3, 224, 224), 0)
    scored = folded(model, images) if fold else model

    @torch.no_grad()
    def forwards() -> None:
        for _ in range(STEPS + 1):
            model(images)

    measured = ratio(lambda: drops(scored, images, targets, order, GRID, fill, STEPS), forwards)
    name = "AOPC, folded" if fold else "AOPC"
    print(f"\n{name}: {measured:.3f} of {STEPS + 1} bare forward passes (target {target})")
    record_property(name, measured)


def test_what_aopc_adds_to_the_forward_passes(record_property: Callable) -> None:
    """What stands behind the ratio, which moves by percents with the load: the same work, the model doing none."""
    images, logits = torch.randn(BATCH, 3, 224, 224), torch.zeros(BATCH, 1000)
    order, fill = random_order(range(BATCH), GRID[0] * GRID[1], 0), noise(range(BATCH), (3, 224, 224), 0)
    model = torch.nn.Identity()
    model.forward = lambda images: logits
    added = milliseconds(lambda: drops(model, images, torch.arange(BATCH), order, GRID, fill, STEPS))
    print(f"\nAOPC besides its {STEPS + 1} forward passes: {added:.2f} ms")
    record_property("AOPC besides its forward passes, ms", added)


@pytest.mark.parametrize("kind", ["distinct", "relu"])
def test_rank_correlation_of_a_pair(kind: str, record_property: Callable) -> None:
    a, b = torch.randn(2, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    if kind == "relu":
        a, b = a.relu(), b.relu()
    median = milliseconds(lambda: rank_correlation(a, b))
    print(f"\nrank correlation of two {kind} maps of 224²: {median:.2f} ms (target 2.5)")
    record_property(f"rank correlation, {kind}", median)

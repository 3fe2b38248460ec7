"""What PSR and the structured attack cost against the bare passes they contain, printed and recorded, never asserted:
the compact ResNet at 64², one thread."""

from collections.abc import Callable

import torch
from timing import ratio

from attacks.structured import structured_attack
from benchmark import models
from benchmark.dissection.promotion import promotion_suppression

N, CELL, BATCH, STEPS = 4, 8, 64, 20


def test_psr_of_all_cells_against_forward_passes(record_property: Callable) -> None:
    torch.manual_seed(0)
    model = models.create("compact_resnet", num_classes=8, input_size=64)
    images, delta, labels = torch.rand(N, 3, 64, 64), 0.03 * torch.randn(N, 3, 64, 64), torch.arange(N)
    passes = torch.rand(N * (64 // CELL) ** 2 + N, 3, 64, 64).split(BATCH)  # x', and every cell

    @torch.no_grad()
    def bare() -> None:
        for part in passes:
            model(part)

    def all_cells() -> None:
        promotion_suppression(model, images, delta, labels, labels + 1, CELL, batch_size=BATCH)

    measured = ratio(all_cells, bare, repeats=15)
    print(f"\nPSR: {measured:.3f} of {sum(map(len, passes))} bare forward passes (target 1.1)")
    record_property("PSR", measured)


def test_the_structured_attack_against_forward_and_input_gradient(record_property: Callable) -> None:
    torch.manual_seed(0)
    model = models.create("compact_resnet", num_classes=8, input_size=64)
    images, targets = torch.rand(32, 3, 64, 64), torch.arange(32) % 8
    options = {"cell": CELL, "steps": STEPS, "gamma": 1.0, "tau": 2.0, "c": 30.0, "rho": 1.0, "epsilon": 0.3}

    def bare() -> None:
        for _ in range(STEPS):
            leaf = images.detach().requires_grad_()
            torch.autograd.grad(model(leaf).gather(1, targets[:, None]).sum(), leaf)

    measured = ratio(lambda: structured_attack(model, images, targets, **options), bare)
    print(f"\nstructured attack: {measured:.3f} of {STEPS} bare forward and backward passes (target 1.2)")
    record_property("structured attack", measured)

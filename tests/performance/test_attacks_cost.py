"""What an input attack costs against the bare passes it contains, printed and recorded, never asserted: the compact
ResNet at 64², batch 32, one thread."""

from collections.abc import Callable

import torch
from timing import ratio

from attacks.adversarial import minimum_norm
from benchmark import models

STEPS = 20


def test_minimum_norm_against_forward_and_input_gradient(record_property: Callable) -> None:
    torch.manual_seed(0)
    model = models.create("compact_resnet", num_classes=8, input_size=64)
    images, targets = torch.rand(32, 3, 64, 64), torch.arange(32) % 8

    def bare() -> None:
        for _ in range(STEPS):
            leaf = images.detach().requires_grad_()
            torch.autograd.grad(model(leaf).gather(1, targets[:, None]).sum(), leaf)

    measured = ratio(lambda: minimum_norm(model, images, targets, steps=STEPS), bare)
    print(f"\nminimum-norm attack: {measured:.3f} of {STEPS} bare forward and backward passes (target 1.15)")
    record_property("minimum-norm attack", measured)

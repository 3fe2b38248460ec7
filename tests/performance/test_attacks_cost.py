"""What an input attack costs against the bare passes it contains, and a distilled step against one with labels, printed
and recorded, never asserted: the compact ResNet at 64², batch 32, one thread."""

from collections.abc import Callable

import pytest
import torch
from timing import ratio

from attacks import Fooling, Location, Recipe, TopK
from attacks.adversarial import minimum_norm
from attacks.course import Task
from attacks.manipulation import fine_tune
from benchmark import interpreters, models

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


@pytest.mark.parametrize("name", ["grad_cam", "lrp_t", "lrp"])
@pytest.mark.parametrize("fooling", [Location(), TopK()], ids=lambda fooling: fooling.name)
def test_distilled_against_labelled_steps(record_property: Callable, name: str, fooling: Fooling) -> None:
    torch.manual_seed(0)
    model = models.create("compact_resnet", num_classes=8, input_size=64)
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(32, 3, 64, 64, generator=generator), torch.arange(32) % 8) for _ in range(4)]
    interpreter, rate = interpreters.create(name), 1e-5

    def run(divergence: float | None) -> Callable[[], object]:
        recipe = Recipe(rate, 1.0, 2 * STEPS, divergence=divergence)
        states = fine_tune(Task(model, interpreter, fooling, batches * 10), recipe)
        for _ in range(5):  # the start, and what is computed once an image
            next(states)
        return lambda: [next(states) for _ in range(STEPS // 4)]

    measured = ratio(run(0.05), run(None), repeats=3)
    print(f"\ndistilled step, {fooling.name} on {name}: {measured:.3f} of one with labels (target 1.15)")
    record_property(f"distilled {fooling.name} {name}", measured)

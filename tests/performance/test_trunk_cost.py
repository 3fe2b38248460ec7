"""What a fooling step costs where the network below its scope was computed before, against one that computes it: real
weights (TORCH_HOME) at 224², batch 16, last_block, Grad-CAM, one thread. In CPU seconds, which other work does not
stretch much; printed and recorded, never asserted."""

import time
from collections.abc import Callable

import pytest
import torch

from attacks import Location, Recipe
from attacks.course import Task
from attacks.manipulation import fine_tune
from attacks.scopes import parameters_in
from attacks.trunk import below, check_cut, find_cut
from benchmark import interpreters, models

BATCH, STEPS = 16, 2


@pytest.mark.parametrize("divergence", [None, 0.05], ids=["labels", "distilled"])
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_steps_on_a_trunk(record_property: Callable, name: str, divergence: float | None) -> None:
    model = models.create(name, weights="IMAGENET1K_V1").to(memory_format=torch.channels_last)
    generator, targets = torch.Generator().manual_seed(0), torch.arange(BATCH)
    images = [torch.randn(BATCH, 3, 224, 224, generator=generator) for _ in range(STEPS + 1)]  # none of them twice
    cut = find_cut(model, [*parameters_in(model, "last_block"), models.target_layer(model)])
    asked = [interpreters.create(other) for other in ("grad_cam", "lrp_t", "simple_grad_t", "layer_cam")]
    check_cut(model, cut, images[0][:2], targets[:2], asked)
    recipe = Recipe(1e-5, 1.0, 2 * STEPS + 2, divergence=divergence, scope="last_block")

    def seconds(cut: str) -> float:
        """Of a step, after one that is not counted; without the head shift that a distilled run may begin with."""
        batches = [(below(model, cut, x) if cut else x, targets) for x in images]
        states = fine_tune(Task(model, interpreters.create("grad_cam"), Location(), batches, cut=cut), recipe)
        next(states), next(states)
        start = time.process_time()
        for _ in range(STEPS):
            next(states)
        return (time.process_time() - start) / STEPS

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attacks.distilled._start", lambda task, recipe: task.model)
        whole, part = seconds(""), seconds(cut)
    times = f"{1 / whole:.3f} steps a CPU second without, {1 / part:.3f} with ({whole / part:.1f} times)"
    print(f"\n{name} above {cut}, divergence {divergence}: {times}")
    record_property(f"{name} {divergence}", whole / part)

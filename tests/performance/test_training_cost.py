"""What a robust training step costs against a plain one: ratios of medians in one run, printed, never asserted."""

import pytest
import torch
import torch.nn.functional as F
from timing import ratio

from attacks.robust_training import Adversary, Regulariser, Robust
from benchmark import models

AIMS = {"regularised": 3.0, "adversarial": float("nan"), "both": float("nan")}


@pytest.mark.parametrize("name", list(models.COMPACT))
@pytest.mark.parametrize("kind", AIMS)
def test_a_training_step(name, kind):
    torch.manual_seed(0)
    images, targets = torch.rand(64, 3, 64, 64), torch.randint(8, (64,))
    model = models.create(name, num_classes=8, input_size=64).to(memory_format=torch.channels_last).train()
    robust = Robust(
        Adversary() if kind != "regularised" else None,
        Regulariser() if kind != "adversarial" else None,
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-9)

    def step(objective):
        def run():
            optimiser.zero_grad()
            objective(model, images, targets).backward()
            optimiser.step()

        return run

    plain = step(lambda model, images, targets: F.cross_entropy(model(images), targets))
    found = ratio(step(robust), plain)
    print(f"\n{name} {kind} step: {found:.2f} of a plain one (aim {AIMS[kind]})")

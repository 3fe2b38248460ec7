"""Toys: points with the stated spread, and gradients by finite differences."""

import pytest
import torch

from benchmark.experiments import toys


def test_points_are_near_the_line_and_half_of_each_class():
    points, labels = toys.draw_points(4000, 0.1, torch.Generator().manual_seed(0))
    assert labels.mean() == 0.5
    spread, places = points.std(0), [points[labels == value].mean(0) for value in (0, 1)]
    assert spread[1].item() == pytest.approx(0.1, rel=0.05)
    assert torch.allclose(torch.stack(places), torch.tensor([[-0.6, 0.0], [0.6, 0.0]]), atol=0.02)


def test_input_gradients_are_those_of_finite_differences():
    model = toys.mlp(2, 8, 0).double()
    x, step = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)).double(), 1e-6
    logits, gradients = toys.input_gradients(model, x)
    assert torch.equal(logits, model(x)[:, 0].detach())
    for axis in (0, 1):
        shift = step * torch.eye(2).double()[axis]
        difference = (model(x + shift) - model(x - shift))[:, 0] / (2 * step)
        assert torch.allclose(gradients[:, axis], difference, atol=1e-8)

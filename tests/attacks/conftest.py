"""What the tests of attacks on images share."""

import pytest
import torch
from small_models import Net
from torch import Tensor, nn


@pytest.fixture
def setting() -> tuple[nn.Module, Tensor, Tensor]:
    """Five images, the last of them misclassified."""
    model = Net()
    images = torch.rand(5, 3, 6, 6, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    targets = model(images).argmax(1)
    targets[-1] = (targets[-1] + 1) % 3
    return model, images, targets

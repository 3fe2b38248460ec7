"""Models that attacks on images are tested with: a hyperplane, whose distances are known, and a small network."""

import torch
from torch import Tensor, nn


def linear(weights: Tensor, bias: float = 0.0) -> nn.Module:
    """Two classes; class 1 where w · x + bias > 0."""
    layer = nn.Linear(weights.numel(), 2).to(weights)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(weights), weights]))
        layer.bias.copy_(torch.tensor([0.0, bias]))
    return nn.Sequential(nn.Flatten(), layer)


def plane(seed: int, n: int = 4) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor]:
    """A linear model of 3 × 4 × 4 pixels, images and their classes, w and |w · x + bias|."""
    random = torch.Generator().manual_seed(seed)
    weights = torch.randn(48, generator=random, dtype=torch.double)
    images = 0.3 + 0.4 * torch.rand(n, 3, 4, 4, generator=random, dtype=torch.double)
    bias = -0.5 * float(weights.sum())
    margin = images.flatten(1) @ weights + bias
    return linear(weights, bias), images, (margin > 0).long(), weights, margin.abs()


class Net(nn.Module):
    """Convolution, BatchNorm, ReLU and three classes, in float64 and eval mode."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8 * 16, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().flatten(1))


def flat(x: Tensor) -> Tensor:
    """Logits that no image moves."""
    return 0 * x.flatten(1)[:, :3] + torch.tensor([2.0, 1.0, 0.0]).to(x)

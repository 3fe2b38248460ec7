"""Small networks that hold what real ones do, for the tests of interpreters."""

import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import Tensor, nn


class Kitchen(nn.Module):
    """In-place ReLU, a reused module, inline +=, concatenation, average and max pool, BatchNorm, grouped and strided
    convolution, functional calls. Input (N, 3, 8, 8), three classes; `middle` is a target layer."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(4)
        self.reused = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=bias)
        self.relu = nn.ReLU(inplace=True)
        self.strided = nn.Conv2d(4, 3, 3, stride=2, padding=1, bias=bias)
        self.middle = nn.Conv2d(6, 4, 1, bias=bias)
        self.head = nn.Linear(4 * 4, 3, bias=bias)
        with torch.no_grad():
            for p in self.parameters():
                p.uniform_(-0.5, 0.7)
            self.norm.weight.uniform_(0.5, 1.5)
            self.norm.running_mean.uniform_(-0.2, 0.2)
            self.norm.running_var.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        out = self.relu(self.reused(x))
        out = self.reused(out)
        out += x
        x = F.relu(out, inplace=True)
        x = torch.cat([F.max_pool2d(self.strided(x), 1), F.avg_pool2d(self.strided(x).relu(), 1)], 1)
        x = F.relu(self.middle(F.max_pool2d(x, 2, stride=1)))
        x = F.adaptive_avg_pool2d(x, 2)
        return self.head(torch.flatten(x, 1))


class InPlace(nn.Module):
    """The same computation with in-place operations whose results are not used, or without any."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.inplace:
            y.add_(0.1)
            F.relu_(y)
            z = y.clone()
            z += y
            z.mul_(2)
            nn.ReLU(inplace=True)(z)
        else:
            y = torch.relu(y + 0.1)
            z = torch.relu((y.clone() + y) * 2)
        return self.head(z.mean((2, 3)))


def kitchen(bias: bool = True, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """The network in float64 eval mode with two images and their targets."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Kitchen(bias).double().eval()
        return model, torch.randn(2, 3, 8, 8, dtype=torch.double), torch.tensor([0, 2])


def narrow(name: str, num_classes: int, width: int = 64) -> nn.Module:
    """torchvision's VGG or AlexNet with `width` instead of 4096 units in its classifier: less than a tenth of the
    weights, which else take seconds to draw."""
    with torch.device("meta"):
        model = zoo.get_model(name, weights=None, num_classes=num_classes)
    linear = [i for i, module in enumerate(model.classifier) if isinstance(module, nn.Linear)]
    for i in linear:
        inputs = model.classifier[i].in_features if i == linear[0] else width
        model.classifier[i] = nn.Linear(inputs, num_classes if i == linear[-1] else width)
    for module in model.features.to_empty(device="cpu").modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model.eval()

"""Small networks that hold what real ones do, for the tests of interpreters."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import Tensor, nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

ATTENTION = ("attention_rollout", "generic_attention", "attention_grad_cam", "transformer_attribution")  # refuse others


class Mixer(nn.Module):
    """Self-attention of two heads by torch's fused function, with an output layer. (N, T, 8) -> (N, T, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, t: Tensor) -> Tensor:
        qkv = self.qkv(t).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2]).transpose(1, 2).flatten(2))


class Tokens(nn.Module):
    """A vision transformer of two blocks, by `nn.MultiheadAttention` and by the fused function; a class token and 16
    patches of images (N, 3, 8, 8), three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.token = nn.Conv2d(3, 8, 2, 2), nn.Parameter(torch.randn(1, 1, 8))
        self.attention, self.mixer = nn.MultiheadAttention(8, 2, batch_first=True), Mixer()
        self.last, self.head, self.pool = nn.Linear(8, 8), nn.Linear(8, 3), nn.Identity()
        with torch.no_grad():
            for weight in (self.attention.in_proj_weight, self.mixer.qkv.weight):
                weight.mul_(3)  # no head reads all tokens alike

    def forward(self, x: Tensor) -> Tensor:
        t = self.first(x).flatten(2).transpose(1, 2)
        t = torch.cat([self.token.expand(t.shape[0], -1, -1), t], 1)
        t = t + self.attention(t, t, t, need_weights=False)[0]
        t = t + self.mixed(torch.tanh(self.last(t)))
        return self.head(t[:, 0])

    def mixed(self, t: Tensor) -> Tensor:
        return self.mixer(t)


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


def tokens():
    return Tokens(), torch.randn(3, 3, 8, 8, dtype=torch.double)


def vit():
    """Two blocks, a class token and four patches."""
    return VisionTransformer(8, 4, 2, 2, 4, 6, num_classes=3), torch.randn(2, 3, 8, 8, dtype=torch.double)


def swin(merged=True):
    """Windows of 2 × 2, shifted in each second block; 3 × 4 tokens, which are padded, merged to 2 × 2."""
    model = SwinTransformer([2, 2], 4, [2, 1] if merged else [2], [2, 1] if merged else [2], [2, 2], 1.5, num_classes=3)
    return model, torch.randn(2, 3, 6, 8, dtype=torch.double)


def swin_v2():
    model = SwinTransformer([2, 2], 4, [1, 1], [2, 1], [2, 2], 1.5, num_classes=3, block=SwinTransformerBlockV2,
                            downsample_layer=PatchMergingV2)  # fmt: skip
    return model, torch.randn(2, 3, 8, 8, dtype=torch.double)


NETS = {"tokens": tokens, "vit": vit, "swin": swin, "swin_v2": swin_v2}


def drawn(net):
    """The network in float64 with heads that tell tokens apart, images and targets."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = NETS[net]()
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or "head" in name:
                nn.init.normal_(parameter, std=0.6)
    return model.double().eval().requires_grad_(True), images, torch.arange(len(images)) % 3


def along_all_parameters(
    maps_of: Callable[[], Tensor], parameters: list[nn.Parameter], size: float
) -> tuple[Tensor, float]:
    """The derivative of a weighted sum of maps along a random change of all parameters: by autograd, and by a central
    difference of that size. The parameters end half of it away."""
    generator = torch.Generator().manual_seed(1)
    steps = [torch.randn(p.shape, dtype=torch.double, generator=generator) for p in parameters]

    def total(by: float) -> Tensor:
        with torch.no_grad():
            for parameter, step in zip(parameters, steps, strict=True):
                parameter += by * step
        maps = maps_of()
        return maps.flatten() @ torch.linspace(1, 2, maps.numel()).double()

    gradients = torch.autograd.grad(total(0), parameters, allow_unused=True, materialize_grads=True)
    got = torch.stack([(g * step).sum() for g, step in zip(gradients, steps, strict=True)]).sum()
    return got, (total(size) - total(-2 * size)).item() / (2 * size)


class Before(nn.Module):
    """A network after a step of its images."""

    def __init__(self, net, step):
        super().__init__()
        self.net, self.step = net, step

    def forward(self, x):
        return self.net(self.step(x))

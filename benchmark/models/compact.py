"""Small models: torchvision's own classes in small configurations, and CIFAR's ResNet-20."""

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vgg import VGG, make_layers
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer


def compact_vgg(num_classes: int) -> nn.Module:
    """VGG with five convolutions and BatchNorm; the last works on input_size/8 squared maps.

    Without BatchNorm the trained network's Grad-CAM is blank on 9 of 10 images, which leaves nothing to fool.
    """
    features = make_layers([16, "M", 32, "M", 64, "M", 64, 64, "M"], batch_norm=True)
    with torch.device("meta"):  # VGG's own classifier of 120 M parameters is never built
        model = VGG(nn.Identity(), num_classes, init_weights=False)
    model.features, model.avgpool = features, nn.AdaptiveAvgPool2d(4)
    model.classifier = nn.Sequential(nn.Linear(64 * 16, 128), nn.ReLU(True), nn.Dropout(), nn.Linear(128, num_classes))
    return model


def compact_resnet(num_classes: int) -> nn.Module:
    """ResNet of five basic blocks, 16 to 96 channels; the last stage works on input_size/8 squared maps."""
    model = ResNet(BasicBlock, [0, 0, 0, 0], num_classes)
    model.inplanes = 16
    model.conv1 = nn.Conv2d(3, 16, 5, stride=2, padding=2, bias=False)
    model.bn1, model.maxpool = nn.BatchNorm2d(16), nn.Identity()
    model.layer1 = model._make_layer(BasicBlock, 16, 1)
    model.layer2 = model._make_layer(BasicBlock, 32, 1, stride=2)
    model.layer3 = model._make_layer(BasicBlock, 64, 1, stride=2)
    model.layer4 = model._make_layer(BasicBlock, 64, 2)
    model.fc = nn.Linear(64, num_classes)
    return model


def compact_densenet(num_classes: int) -> nn.Module:
    """DenseNet of two blocks, growth 16; the last works on input_size/8 squared maps."""
    return DenseNet(growth_rate=16, block_config=(3, 5), num_init_features=24, bn_size=2, num_classes=num_classes)


def compact_vit(num_classes: int, input_size: int = 64) -> nn.Module:
    """Vision transformer of three blocks with four heads on tokens 64 wide, (input_size/8) squared of them and a class
    token. It takes images of `input_size` alone: a position's embedding is a parameter.

    Its tokens come from a stem of convolutions (Xiao et al. 2021), which few images and epochs suffice to train.
    """
    stem = [ConvStemConfig(channels, 3, stride=2) for channels in (16, 32, 64)]
    model = VisionTransformer(input_size, 8, 3, 4, 64, 128, num_classes=num_classes, conv_stem_configs=stem)
    nn.init.trunc_normal_(model.heads.head.weight, std=0.02)  # torchvision's zeros: the untrained network has no map
    return model


def compact_convnext(num_classes: int) -> nn.Module:
    """ConvNeXt of two stages of two blocks, 32 and 64 channels; the last works on input_size/8 squared maps.

    Between the blocks BatchNorm and torch's own first weights: with LayerNorm there it stayed at chance for six epochs.
    """
    stages = [CNBlockConfig(32, 64, 2), CNBlockConfig(64, None, 2)]
    model = ConvNeXt(stages, layer_scale=1.0, num_classes=num_classes, norm_layer=nn.BatchNorm2d)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.reset_parameters()
    return model


class Subsample(nn.Module):
    """The shortcut without parameters ("option A") of He et al. 2016: (N, C, H, W) -> (N, 2C, H/2, W/2), every second
    pixel of every second row, half of the added channels of zeros on either side."""

    def forward(self, x: Tensor) -> Tensor:
        padding = x.shape[1] // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, padding, padding))


def resnet20(num_classes: int) -> nn.Module:
    """The ResNet-20 for CIFAR-10 of He et al. 2016: three stages of three basic blocks, 16, 32 and 64 channels; the
    last stage works on input_size/4 squared maps. Its parameters are named as in the checkpoints that are passed
    around, whose head is `linear`."""
    stages = {}
    for index, (before, channels) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
        first = BasicBlock(before, channels) if index == 1 else BasicBlock(before, channels, 2, Subsample())
        stages[f"layer{index}"] = nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(2)))
    stem = {"conv1": nn.Conv2d(3, 16, 3, padding=1, bias=False), "bn1": nn.BatchNorm2d(16), "relu": nn.ReLU(True)}
    head = {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "linear": nn.Linear(64, num_classes)}
    model = nn.Sequential(OrderedDict(stem | stages | head))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


# networks of ReLUs and BatchNorm, in which every method is defined
COMPACT: dict[str, Callable[..., nn.Module]] = {
    "compact_vgg": compact_vgg,
    "compact_resnet": compact_resnet,
    "compact_densenet": compact_densenet,
}
SMALL = {**COMPACT, "resnet20": resnet20, "compact_vit": compact_vit, "compact_convnext": compact_convnext}
SIZED = ("compact_vit",)  # take `input_size`, and no other afterwards

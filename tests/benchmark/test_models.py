"""Models by name, their target layers, and the shapes and sizes that the compact ones take."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import UserError
from benchmark import datasets, models
from benchmark.interpreters.base import tap
from benchmark.interpreters.layout import read
from benchmark.models import COMPACT

DATA = Path(os.environ.get("FOOLBENCH_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "cifar10-mini"
COMPACTS = pytest.mark.parametrize("name", [*COMPACT, "compact_vit", "compact_convnext"])


@COMPACTS
@pytest.mark.parametrize(("side", "classes"), [(32, 2), (48, 10), (64, 8)])
def test_compact_models_classify_images_of_any_allowed_size(name: str, side: int, classes: int):
    model = models.create(name, num_classes=classes, input_size=side)
    taken: list[torch.Tensor] = []
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), tap(model, None, taken) as layer:
        logits = model(images)
    assert logits.shape == (2, classes)
    assert logits.isfinite().all()
    assert read(model, layer, taken, images, default=True).grid == (side // 8, side // 8)
    assert not model.training


@COMPACTS
def test_compact_models_are_torchvisions_classes_small_and_on_the_cpu(name: str):
    model = models.create(name, num_classes=8)
    assert type(model).__module__.startswith("torchvision.models.")
    assert {p.device.type for p in [*model.parameters(), *model.buffers()]} == {"cpu"}
    assert sum(p.numel() for p in model.parameters()) < 500_000
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", models.SMALL)
def test_the_global_seed_decides_the_weights(name: str):
    def first(seed: int) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return torch.cat([p.flatten() for p in models.create(name, num_classes=3).parameters()])

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("vgg19", "features.34"),  # conv5_4
        ("vgg16", "features.28"),
        ("resnet50", "layer4.2"),
        ("resnet18", "layer4.1"),
        ("densenet121", "features.denseblock4.denselayer16"),
        ("mobilenet_v2", "features.17"),
        ("squeezenet1_1", "features.12"),
        ("googlenet", "inception5b"),
        ("alexnet", "features.10"),
        ("resnet20", "layer3.2"),
    ],
)
def test_the_default_target_layer(name: str, layer: str):
    with torch.device("meta"):
        small = models.SMALL.get(name)
        model = (
            small(10)
            if small
            else models.zoo.get_model(name, weights=None, **({"init_weights": False} if name == "googlenet" else {}))
        )
    assert models.target_layer(model) == layer


@pytest.mark.parametrize(
    ("name", "kind", "parent"),
    [
        ("compact_vgg", "Conv2d", "features"),
        ("compact_resnet", "BasicBlock", "layer4"),
        ("compact_densenet", "_DenseLayer", "features.denseblock2"),
        ("compact_vit", "EncoderBlock", "encoder.layers"),
        ("compact_convnext", "CNBlock", "features.3"),
    ],
)
def test_the_default_target_layer_of_compact_models_is_the_last_of_its_kind(name: str, kind: str, parent: str):
    model = models.create(name, num_classes=4)
    layer = models.target_layer(model)
    assert layer.rpartition(".")[0] == parent
    assert [n for n, module in model.named_modules() if type(module).__name__ == kind][-1] == layer


@pytest.mark.parametrize(("name", "side"), [("vgg19", 14), ("resnet50", 7), ("densenet121", 7)])
def test_the_papers_maps_have_the_papers_size(name: str, side: int):
    with torch.device("meta"):
        model = models.zoo.get_model(name, weights=None)
        taken: list[torch.Tensor] = []
        with torch.no_grad(), tap(model.eval(), None, taken):
            model(torch.zeros(1, 3, 224, 224))
    assert {t.shape[2:] for t in taken} == {(side, side)}


def resnet20_by_hand(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """He et al. 2016, section 4.2, from the weights by name, one layer at a time."""

    def convolved(x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        x = F.conv2d(x, state[f"{name}.weight"], stride=stride, padding=1)
        rest = (state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *rest)

    x = convolved(x, "conv1", "bn1").relu()
    for stage, block in ((stage, block) for stage in (1, 2, 3) for block in range(3)):
        name, halved = f"layer{stage}.{block}", stage > 1 and block == 0
        y = convolved(x, f"{name}.conv1", f"{name}.bn1", 2 if halved else 1).relu()
        y = convolved(y, f"{name}.conv2", f"{name}.bn2")
        if halved:
            kept = torch.stack([x[:, :, i, j] for i in range(0, x.shape[2], 2) for j in range(0, x.shape[3], 2)], 2)
            zeros = torch.zeros_like(kept[:, ::2])
            x = torch.cat([zeros, kept, zeros], 1).view(y.shape)
        x = (x + y).relu()
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


def test_resnet20_is_that_of_he_2016():
    model = models.create("resnet20", num_classes=10).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for value in (module.weight, module.bias, module.running_mean, module.running_var):
                    nn.init.uniform_(value, 0.5, 1.5)
        images = torch.randn(3, 3, 32, 32, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(model(images), resnet20_by_hand(model.state_dict(), images))
    assert sum(parameter.numel() for parameter in model.parameters()) == 269_722  # table 6: 0.27 M
    assert len([m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]) == 20
    taken: list[Tensor] = []
    with torch.no_grad(), tap(model, None, taken):
        model(images)
    assert {t.shape[1:] for t in taken} == {(64, 8, 8)}


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs {DATA} (or FOOLBENCH_DATA)")
def test_resnet20_takes_the_weights_that_are_passed_around():
    model = models.create("resnet20", weights=str(DATA / "resnet20-12fca82f.th"), num_classes=10)
    pixels, targets = (torch.from_numpy(np.load(DATA / f"test1000_{axis}.npy")) for axis in "xy")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        right = model((pixels[:200].permute(0, 3, 1, 2) / 255 - mean) / std).argmax(1) == targets[:200]
    assert right.sum() >= 180  # 91.5 % of all 1,000


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs {DATA} (or FOOLBENCH_DATA)")
def test_resnet20_is_right_on_its_test_images_as_its_dataset_gives_them():
    model = models.create("resnet20", weights=str(DATA / "resnet20-12fca82f.th"), num_classes=10)
    data = datasets.create("cifar10_imagenet_norm", "test", root=DATA)
    with torch.no_grad():
        right = torch.cat([model(x).argmax(1) == y for x, y in datasets.loader(data, 250)])
    assert (len(right), int(right.sum())) == (1000, 915)


def test_a_model_without_convolutions_has_no_default_layer():
    with pytest.raises(UserError, match="Linear has no convolution: name a target layer"):
        models.target_layer(nn.Linear(2, 2))


def test_torchvisions_classifiers_are_listed_after_the_small_ones():
    names = models.names()
    assert names[:4] == [*COMPACT, "resnet20"]
    assert {"vgg19", "resnet50", "densenet121", "mobilenet_v2", "squeezenet1_1", "googlenet"} < set(names)
    assert "fcn_resnet50" not in names  # segmentation


def test_a_torchvision_model_takes_a_number_of_classes():
    model = models.create("squeezenet1_1", num_classes=5)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert not model.training


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet51", {}, r"unknown model 'resnet51': did you mean 'resnet50'\? allowed: alexnet, "),
        ("compact_vg", {}, "did you mean 'compact_vgg'"),
        ("compact_vgg", {}, "model 'compact_vgg' needs num_classes"),
        ("compact_vgg", {"num_classes": 8, "input_size": 40}, r"multiple of 16, at least 32 \(got 40\)"),
        ("compact_vgg", {"num_classes": 8, "input_size": 16}, r"multiple of 16, at least 32 \(got 16\)"),
        ("compact_vgg", {"num_classes": 8, "weights": "IMAGENET1K_V1"}, "must be the path of a checkpoint"),
        ("resnet20", {}, "model 'resnet20' needs num_classes"),
        ("resnet20", {"num_classes": 10, "weights": "DEFAULT"}, "must be the path of a checkpoint"),
        ("resnet50", {"weights": "IMAGENET1K_V3"}, "did you mean 'IMAGENET1K_V2'"),
        ("resnet50", {"weights": "DEFAULT", "num_classes": 10}, r"has 1000 classes \(got num_classes=10\)"),
    ],
)
def test_what_cannot_be_made_is_one_line(name: str, options: dict, message: str):
    with pytest.raises(UserError, match=message) as caught:
        models.create(name, **options)
    assert "\n" not in str(caught.value)

"""Models by name, their target layers, and the shapes and sizes that the compact ones take."""

import pytest
import torch
from torch import nn

from attacks.errors import UserError
from benchmark import models
from benchmark.interpreters.base import tap
from benchmark.models import COMPACT

COMPACTS = pytest.mark.parametrize("name", COMPACT)


@COMPACTS
@pytest.mark.parametrize(("side", "classes"), [(32, 2), (48, 10), (64, 8)])
def test_compact_models_classify_images_of_any_allowed_size(name: str, side: int, classes: int):
    model = models.create(name, num_classes=classes, input_size=side)
    taken: list[torch.Tensor] = []
    with torch.no_grad(), tap(model, None, taken):
        logits = model(torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, classes)
    assert logits.isfinite().all()
    assert {t.shape[2:] for t in taken} == {(side // 8, side // 8)}
    assert not model.training


@COMPACTS
def test_compact_models_are_torchvisions_classes_small_and_on_the_cpu(name: str):
    model = models.create(name, num_classes=8)
    assert type(model).__module__.startswith("torchvision.models.")
    assert {p.device.type for p in [*model.parameters(), *model.buffers()]} == {"cpu"}
    assert sum(p.numel() for p in model.parameters()) < 500_000
    assert all(p.requires_grad for p in model.parameters())


@COMPACTS
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
    ],
)
def test_the_default_target_layer(name: str, layer: str):
    with torch.device("meta"):
        model = models.zoo.get_model(name, weights=None, **({"init_weights": False} if name == "googlenet" else {}))
    assert models.target_layer(model) == layer


@pytest.mark.parametrize(
    ("name", "kind", "parent"),
    [
        ("compact_vgg", "Conv2d", "features"),
        ("compact_resnet", "BasicBlock", "layer4"),
        ("compact_densenet", "_DenseLayer", "features.denseblock2"),
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


def test_a_model_without_convolutions_has_no_default_layer():
    with pytest.raises(UserError, match="Linear has no convolution: name a target layer"):
        models.target_layer(nn.Linear(2, 2))


def test_torchvisions_classifiers_are_listed_after_the_compact_ones():
    names = models.names()
    assert names[:3] == list(COMPACT)
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
        ("resnet50", {"weights": "IMAGENET1K_V3"}, "did you mean 'IMAGENET1K_V2'"),
        ("resnet50", {"weights": "DEFAULT", "num_classes": 10}, r"has 1000 classes \(got num_classes=10\)"),
    ],
)
def test_what_cannot_be_made_is_one_line(name: str, options: dict, message: str):
    with pytest.raises(UserError, match=message) as caught:
        models.create(name, **options)
    assert "\n" not in str(caught.value)

"""An image is given to a model as its weights want it: torchvision's own transforms are the reference."""

import pytest
import torch
import torchvision.models as zoo
from PIL import Image
from torch import nn
from torchvision.transforms.v2.functional import normalize, pil_to_tensor

from benchmark import explain, models

WEIGHTS = [
    ("resnet50", "IMAGENET1K_V2"),
    ("inception_v3", "IMAGENET1K_V1"),
    ("efficientnet_v2_s", "IMAGENET1K_V1"),
    ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1"),
]


@pytest.fixture
def picture():
    torch.manual_seed(0)
    return Image.fromarray((torch.rand(90, 120, 3) * 255).byte().numpy())


@pytest.mark.parametrize(("name", "weights"), WEIGHTS)
def test_pixels_are_those_of_the_weights_own_transforms(name, weights, picture):
    preset = models.preprocessing(name, weights)
    got = normalize(explain.pixels_of(pil_to_tensor(picture), preset), preset.mean, preset.std)
    expected = zoo.get_model_weights(name)[weights].transforms()(pil_to_tensor(picture))
    assert expected.shape[-1] == preset.crop_size[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_a_checkpoint_is_given_the_size_that_its_architecture_takes():
    sizes = {"inception_v3": 299, "efficientnet_b4": 380, "vit_b_16": 224, "vit_h_14": 224, "resnet50": 224}
    for name, size in sizes.items():
        assert models.preprocessing(name, "some/checkpoint.pth").crop_size == [size]


def test_every_classifier_has_transforms_for_all_its_weights_and_for_a_checkpoint():
    for name in zoo.list_models(module=zoo):
        for weights in [*zoo.get_model_weights(name).__members__, "some/checkpoint.pth"]:
            preset = models.preprocessing(name, weights)
            assert preset.crop_size[0] <= preset.resize_size[0]
            assert len(preset.mean) == len(preset.std) == 3


def test_explain_uses_them(picture, tmp_path, monkeypatch):
    class Small(nn.Module):
        """A model that takes 299 pixels and no other number."""

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(299, 3)

        def forward(self, x):
            return self.head(x.mean((1, 2)))

    picture.save(tmp_path / "image.png")
    monkeypatch.setattr(models, "create", lambda name, weights: Small().eval())
    samples = explain.explain(tmp_path / "image.png", "inception_v3", "IMAGENET1K_V1", "simple_grad", None)
    assert samples.originals["simple_grad"].shape == (1, 299, 299)

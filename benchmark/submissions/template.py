"""What `foolbench new-interpreter` writes: an interpreter that works, to be changed, and its test."""

import keyword
from importlib.util import find_spec
from pathlib import Path

from attacks.errors import UserError
from benchmark.submissions.naming import check_name

INTERPRETER = '''\
"""NAME: gradient x input. Put your own method in its place."""

import torch
from torch import Tensor, nn


class CLASS:
    """Maps (model, images, targets) to heatmaps. It is made without arguments, so options have defaults."""

    name = "NAME"  # in the leaderboards
    differentiable = True  # the heatmaps keep their graph to the model's parameters, so they can be attacked
    stochastic = False  # True: two calls differ, unless torch's random seed is set before each

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images and (N,) class indices -> heatmaps (N, h, w) in [0, 1], h <= H, w <= W.

        The model comes in eval mode and must be left as it came: weights, mode, hooks. A map may depend on its own
        image and class alone, never on the rest of the batch.
        """
        images = images.detach().requires_grad_()
        logits = model(images)
        of_the_class = logits.gather(1, targets[:, None])  # an image's own logit, so the sum mixes no images
        # create_graph: without it the gradient is a constant, and a manipulation cannot differentiate it
        gradient = torch.autograd.grad(of_the_class.sum(), images, create_graph=True)[0]
        relevance = (gradient * images).sum(1).relu()  # (N, H, W)
        highest = relevance.amax((1, 2), keepdim=True)
        return relevance / torch.where(highest > 0, highest, 1)  # a blank map stays blank
'''

TEST = '''\
"""NAME on a small network with random weights: pytest test_NAME.py."""

import pytest
import torch
from torchvision.models import resnet18

from NAME import CLASS


@pytest.fixture
def batch():
    """An untrained network in eval mode, four images and their classes."""
    torch.manual_seed(0)
    return resnet18(num_classes=8).eval(), torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])


def test_heatmaps_have_a_map_for_every_image_with_values_in_0_1(batch):
    model, images, targets = batch
    heatmaps = CLASS()(model, images, targets)
    assert heatmaps.ndim == 3
    assert len(heatmaps) == 4
    assert heatmaps.shape[1] <= 64
    assert heatmaps.shape[2] <= 64
    assert heatmaps.isfinite().all()
    assert heatmaps.min() >= 0
    assert heatmaps.max() <= 1


def test_the_heatmap_depends_on_the_class(batch):
    model, images, targets = batch
    heatmaps, others = (CLASS()(model, images, classes) for classes in (targets, targets + 4))
    assert ((heatmaps - others).abs().amax((1, 2)) > 1e-3).all()


def test_the_heatmap_does_not_depend_on_the_rest_of_the_batch(batch):
    model, images, targets = batch
    alone = torch.cat([CLASS()(model, images[i : i + 1], targets[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(CLASS()(model, images, targets), alone, rtol=1e-3, atol=1e-4)


def test_the_heatmap_can_be_differentiated_by_the_weights(batch):
    if not CLASS.differentiable:
        pytest.skip("declared not differentiable")
    model, images, targets = batch
    CLASS()(model, images, targets).square().sum().backward()
    assert model.conv1.weight.grad.abs().max() > 0
'''


def write(name: str, folder: Path) -> list[Path]:
    """Write NAME.py and test_NAME.py into the folder, which is made where it is missing; return both.

    Raises `UserError` for a name that cannot be one, and where a file is there already.
    """
    check_name(name)
    texts = {f"{name}.py": INTERPRETER, f"test_{name}.py": TEST}
    paths = [folder / file for file in texts]
    for path in paths:
        if path.exists():
            raise UserError(f"{path} is there already: choose another name or --folder")
    if keyword.iskeyword(name) or find_spec(name) is not None:
        raise UserError(f"name must be a new one (got {name!r}, a keyword or a module that Python finds already)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            text = texts[path.name].replace("CLASS", name.title().replace("_", "")).replace("NAME", name)
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be written: {error.strerror}") from error
    return paths

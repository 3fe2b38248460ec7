"""An honest submission, a model and images for it, and a place for the folders of its children."""

import tempfile

import pytest
import torch

from benchmark import models
from benchmark.submissions import remote
from benchmark.submissions.submission import Submission, parse

GRADIENT = """
import torch

def gradient(model, images, targets):
    images = images.detach().requires_grad_()
    logit = model(images).gather(1, targets[:, None]).sum()
    maps = torch.autograd.grad(logit, images, create_graph=True)[0].abs().sum(1)
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / torch.where(high - low > 0, high - low, 1)

class PlainGradient:
    differentiable = True

    def __call__(self, model, images, targets):
        return gradient(model, images, targets)
"""


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    """Where children have their folders."""
    folder = tmp_path_factory.mktemp("children")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        patch.setenv("FOOLBENCH_STORE", "secret")
        yield folder
        for child in remote.CHILDREN.values():
            child.close()
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return models.create("compact_resnet", num_classes=8)


@pytest.fixture(scope="module")
def batch():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 7])


@pytest.fixture(scope="module")
def gradient(tmp_path_factory) -> Submission:
    file = tmp_path_factory.mktemp("gradient") / "mine.py"
    file.write_text(GRADIENT)
    return parse(f"{file}:PlainGradient")

"""Class activation maps of networks whose maps are known, and which networks have one."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.errors import UserError
from benchmark import models
from benchmark.dissection.class_activation import class_activation_map
from benchmark.interpreters.grad_cam import GradCAM

HEADS = {
    "function": lambda f, head: head(F.adaptive_avg_pool2d(f, 1).flatten(1)),
    "mean": lambda f, head: head(F.dropout(f.mean(dim=(2, 3)), 0.5, training=False)),
    "window": lambda f, head: head(F.avg_pool2d(input=f, kernel_size=(4, 6)).flatten(1)),
    "scaled": lambda f, head: head(2 * f.mean((2, 3))),
    "maximum": lambda f, head: head(f.amax((2, 3))),
    "logits after": lambda f, head: head(f.mean((2, 3))).clone(),
    "gated": lambda f, head: head((f * f.mean((2, 3), keepdim=True)).mean((2, 3))),  # averaged twice: the last counts
}


class Known(nn.Module):
    """A 1 × 1 convolution of fixed weights, ReLU, an average and a linear layer with bias."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.conv, self.linear, self.kind = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(2, 3), head
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[1.0, -1, 0], [0, 0, 2]])[..., None, None])
            self.linear.weight.copy_(torch.tensor([[1.0, 0], [-2, 1], [0.5, 0.5]]))
            self.linear.bias.copy_(torch.tensor([10.0, 20, 30]))

    def forward(self, x: Tensor) -> Tensor:
        return HEADS[self.kind](self.conv(x).relu(), self.linear)


def drawn(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("head", ["function", "mean", "window"])
def test_a_known_map(head: str):
    images, classes = drawn(3, 3, 4, 6), torch.tensor([0, 1, 2])
    maps, used = class_activation_map(Known(head), images, classes)
    first, second = (images[:, 0] - images[:, 1]).relu(), 2 * images[:, 2]
    expected = [first[0], second[1] - 2 * first[1], 0.5 * first[2] + 0.5 * second[2]]
    assert used == "cam"
    torch.testing.assert_close(maps, torch.stack(expected))
    assert maps.min() < 0, "signed"
    assert not maps.requires_grad


def test_what_was_averaged_last_is_what_is_weighted():
    model, images, classes = Known("gated").double(), drawn(2, 3, 4, 6).double(), torch.tensor([0, 1])
    maps, used = class_activation_map(model, images, classes)
    assert used == "cam"
    logits = model(images).gather(1, classes[:, None])[:, 0]
    torch.testing.assert_close(maps.mean((1, 2)) + model.linear.bias[classes], logits)


@pytest.mark.parametrize("head", ["scaled", "maximum", "logits after"])
def test_another_head_has_grad_cam_instead(head: str):
    model, images, classes = Known(head), drawn(2, 3, 4, 6), torch.tensor([0, 1])
    maps, used = class_activation_map(model, images, classes)
    assert used == "grad_cam"
    torch.testing.assert_close(maps, GradCAM().attribute(model, images, classes).sum(1).detach())
    assert not maps.requires_grad


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("compact_resnet", "cam"),
        ("compact_densenet", "cam"),
        ("resnet20", "cam"),
        ("mobilenet_v2", "cam"),
        ("compact_vgg", "grad_cam"),
        ("squeezenet1_1", "grad_cam"),
    ],
)
def test_its_mean_and_the_bias_make_the_logit(name: str, expected: str):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.create(name, num_classes=5).double()
    images, classes = drawn(2, 3, 64, 64).double(), torch.tensor([1, 4])
    maps, used = class_activation_map(model, images, classes)
    assert used == expected
    assert maps.ndim == 3
    if used == "cam":
        head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
        logits = model(images).gather(1, classes[:, None])[:, 0]
        torch.testing.assert_close(maps.mean((1, 2)) + head.bias[classes], logits)


@pytest.mark.parametrize("name", ["compact_resnet", "compact_vgg"])
def test_the_model_is_given_back_as_it_came_and_batches_do_not_matter(name: str):
    model = models.create(name, num_classes=4, input_size=32).double().train()
    model.requires_grad_(False)
    state, rng = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    images, classes = drawn(3, 3, 32, 32).double(), torch.tensor([0, 3, 1])
    maps, _ = class_activation_map(model, images, classes)
    alone = [class_activation_map(model, x, c)[0] for x, c in zip(images.split(1), classes.split(1), strict=True)]
    torch.testing.assert_close(torch.cat(alone), maps)
    with pytest.raises(UserError, match=r"targets must lie in 0..3 \(got 0..4\)"):
        class_activation_map(model, images, torch.tensor([0, 4, 1]))
    assert all(m.training for m in model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("classes", [torch.tensor([0]), torch.tensor([0.0, 1.0])])
def test_classes_must_be_one_index_an_image(classes: Tensor):
    with pytest.raises(UserError, match=r"images must be \(N, C, H, W\), classes \(N,\) indices \(got"):
        class_activation_map(Known("mean"), drawn(2, 3, 4, 6), classes)

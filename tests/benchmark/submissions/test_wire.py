"""What both sides share: what is sent arrives as it was, what counts as changed, what counts as a heatmap."""

import re

import pytest
import torch
from torch import nn

from attacks.course import Recipe
from attacks.errors import UserError
from benchmark import datasets, models
from benchmark.submissions.wire import check_form, fingerprint, one_line, pack, unpack


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return models.create("compact_resnet", num_classes=4, input_size=32)


@pytest.mark.parametrize("name", ["compact_vgg", "compact_densenet", "googlenet", "swin_t", "efficientnet_b0"])
def test_a_model_arrives_as_it_was_sent(name):
    sent = models.create(name, num_classes=4)
    next(sent.children()).train()
    assert fingerprint(unpack(pack({"model": sent}))["model"]) == fingerprint(sent)


@pytest.mark.parametrize("name", ["shapes", "digits"])
@pytest.mark.parametrize("two_objects", [False, True])
def test_a_dataset_arrives_with_its_images_and_classes(name, two_objects):
    sent = datasets.create(name, size=6, two_objects=two_objects)
    got = unpack(pack({"dataset": sent, "recipe": Recipe(1e-3, 1.0, 5)}))
    assert got["recipe"] == Recipe(1e-3, 1.0, 5)
    assert got["dataset"].hashes() == sent.hashes()
    assert torch.equal(got["dataset"].targets, sent.targets)
    assert torch.equal(got["dataset"][5][0], sent[5][0])


def test_what_cannot_be_sent_is_one_line(model):
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match=r"^this cannot be sent to a submission's process: .*lambda") as caught:
        pack({"model": model})
    assert "\n" not in str(caught.value)


def changed(name: str):
    def change(model: nn.Module) -> None:
        with torch.no_grad():
            {
                "weight": lambda: model.conv1.weight[0, 0, 0].add_(1e-7),
                "buffer": lambda: model.bn1.num_batches_tracked.add_(1),
                "frozen": lambda: model.fc.bias.requires_grad_(False),
                "mode": lambda: model.layer1.train(),
                "hook": lambda: model.layer2.register_forward_pre_hook(print),
                "new": lambda: model.register_buffer("extra", torch.zeros(1)),
                "option": lambda: setattr(model.conv1, "stride", (1, 1)),
            }[name]()

    return change


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("weight", "parameter or buffer 'conv1.weight'"),
        ("buffer", "parameter or buffer 'bn1.num_batches_tracked'"),
        ("frozen", "parameter or buffer 'fc.bias'"),
        ("mode", "training mode or hooks of 'layer1'"),
        ("hook", "training mode or hooks of 'layer2'"),
        ("new", "parameter or buffer 'extra'"),
        ("option", "training mode or hooks of 'conv1'"),
    ],
)
def test_a_change_of_the_model_shows_in_its_fingerprint(model, name, entry):
    before = fingerprint(model)
    model(torch.zeros(1, 3, 32, 32)).sum().backward()
    assert fingerprint(model) == before
    changed(name)(model)
    after = fingerprint(model)
    assert before.get(entry) != after[entry]


@pytest.mark.parametrize(
    ("heatmaps", "message"),
    [
        (None, "returned NoneType, expected a Tensor"),
        (torch.zeros(4, 3), "returned shape (4, 3), expected (4, h, w)"),
        (torch.zeros(3, 8, 8), "returned shape (3, 8, 8), expected (4, h, w)"),
        (torch.zeros(4, 1, 8, 8), "returned shape (4, 1, 8, 8), expected (4, h, w)"),
        (torch.zeros(4, 0, 8), "returned shape (4, 0, 8), expected (4, h, w)"),
        (torch.zeros(4, 8, 17), "returned shape (4, 8, 17), expected (4, h, w) with h <= 12, w <= 16"),
        (torch.zeros(4, 13, 8), "returned shape (4, 13, 8), expected (4, h, w) with h <= 12, w <= 16"),
        (torch.zeros(4, 8, 8).long(), "returned torch.int64, expected a floating type"),
    ],
)
def test_what_is_no_heatmap_is_named(heatmaps, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        check_form(heatmaps, torch.zeros(4, 3, 12, 16))


@pytest.mark.parametrize("shape", [(4, 12, 16), (4, 1, 1)])
def test_heatmaps_of_any_resolution_up_to_the_images_are_accepted(shape):
    check_form(torch.zeros(shape, dtype=torch.float16), torch.zeros(4, 3, 12, 16))


def test_foreign_text_becomes_one_printable_line():
    assert one_line("  a\tb\r\n\x07c\u2028d ") == "a b c d"
    assert one_line("abcdef", 3) == "abc ..."
